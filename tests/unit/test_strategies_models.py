"""What the strategies give can be written and read again, and is as varied as they promise."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given, settings
from policy_strategies import example_mesh

from meshlab.model import AuthorizationPolicy, CallStep, Mesh, Node, PeerAuthentication, Service, SpiffeId, Topology
from meshlab.oracle import connection, decide
from meshlab.strategies import (
    authorization_policies,
    calls,
    peer_authentications,
    policies,
    policy_sets,
    services,
    spiffe_ids,
    topologies,
)
from meshlab.topology import dump, load

MESH = example_mesh()
_quick = settings(deadline=None, derandomize=True, database=None, max_examples=40)


def loaded(mesh: Mesh) -> Mesh:
    nodes = tuple(Node(name=name) for name in sorted({pod.node for pod in mesh.pods}))
    return load(dump(Topology(name="written", nodes=nodes, mesh=mesh)), "written.yaml").mesh


@_quick
@given(policies(MESH))
def test_generated_policies_load_as_they_were_dumped(mesh: Mesh) -> None:
    again = loaded(mesh)
    assert again.authorization_policies == mesh.authorization_policies
    assert again.peer_authentications == mesh.peer_authentications


@_quick
@given(authorization_policies(MESH, "alone"))
def test_one_authorization_policy_loads_as_it_was_dumped(policy: AuthorizationPolicy) -> None:
    event(f"action {policy.action}")
    assert policy.name == "alone"
    assert loaded(replace(MESH, authorization_policies=(policy,))).authorization_policies == (policy,)


@_quick
@given(peer_authentications(MESH, "alone"))
def test_one_peer_authentication_loads_as_it_was_dumped(policy: PeerAuthentication) -> None:
    event(f"mode {policy.mode}")
    assert loaded(replace(MESH, peer_authentications=(policy,))).peer_authentications == (policy,)


@_quick
@given(topologies())
def test_generated_topologies_load_as_they_were_dumped(topology: Topology) -> None:
    event(f"{len(topology.mesh.pods)} pods")
    again = load(dump(topology), "generated.yaml")
    assert replace(again, mesh=replace(again.mesh, namespaces=())) == replace(
        topology, mesh=replace(topology.mesh, namespaces=())
    )
    assert all(namespace in again.mesh.namespaces for namespace in topology.mesh.namespaces)


@_quick
@given(topologies())
def test_one_pod_of_a_generated_topology_is_out_of_the_mesh(topology: Topology) -> None:
    assert [pod for pod in topology.mesh.pods if not topology.mesh.is_enrolled(pod)] == [topology.mesh.pods[-1]]


@_quick
@given(services(MESH))
def test_a_generated_service_has_endpoints_that_declare_its_port(service: Service) -> None:
    ends = MESH.endpoints(service)
    event(f"{len(ends)} endpoints")
    wanted = {port.target_port for port in service.ports}
    assert any(wanted <= {port.number for port in pod.ports} for pod in ends)


@_quick
@given(spiffe_ids(MESH))
def test_generated_identities_are_written_and_read(identity: SpiffeId) -> None:
    event("a pod's" if identity in {pod.identity("cluster.local") for pod in MESH.pods} else "nearly a pod's")
    assert SpiffeId.parse(str(identity)) == identity


@_quick
@given(calls(MESH))
def test_a_generated_call_carries_the_verdict_of_the_policies(call: CallStep) -> None:
    to, _, port = call.to.rpartition(":")
    assert call.family is not None
    asked = connection(MESH, MESH.pod(call.source), MESH.pod(to), int(port), call.family)
    assert call.expect is decide(MESH, asked).verdict


def test_policy_sets_hardly_ever_repeat() -> None:
    sets = policy_sets(MESH, 500, seed=1)
    assert len({repr((mesh.authorization_policies, mesh.peer_authentications)) for mesh in sets}) >= 490
