"""What the strategies give can be written and read again, and is as varied as they promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, event, find, given, settings
from policy_strategies import example_mesh

from meshlab.fuzz.choose import candidates
from meshlab.model import (
    AuthorizationPolicy,
    CallShape,
    CallStep,
    Mesh,
    Node,
    PeerAuthentication,
    Service,
    SpiffeId,
    Topology,
    Verdict,
)
from meshlab.oracle import connection, decide
from meshlab.strategies import (
    authorization_policies,
    call_shapes,
    calls,
    peer_authentications,
    policies,
    policy_sets,
    services,
    spiffe_ids,
    topologies,
)
from meshlab.strategies.choices import Choices
from meshlab.strategies.shapes import draw_shape
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
def test_of_a_generated_topology_at_most_the_last_pod_is_out_of_the_mesh(topology: Topology) -> None:
    pods = topology.mesh.pods
    event(f"{len(pods)} pods on {len(topology.nodes)} nodes")
    assert [pod for pod in pods if not topology.mesh.is_enrolled(pod)] in ([], [pods[-1]])
    assert topology.mesh.is_enrolled(pods[0])


@_quick
@given(topologies())
def test_in_a_generated_topology_somebody_can_be_called(topology: Topology) -> None:
    event(f"{len(topology.mesh.services)} services")
    assert candidates(topology.mesh)


@_quick
@given(topologies(allow_all=True, programs=True))
def test_policies_that_allow_all_let_every_call_through(topology: Topology) -> None:
    """Also those with a say: an ALLOW policy that matches everything is one."""
    event("programs" if any(pod.program for pod in topology.mesh.pods) else "none")
    event(f"{len(topology.mesh.authorization_policies)} policies")
    decided = [decide(topology.mesh, way.connection) for one in candidates(topology.mesh) for way in one.ways]
    assert all(decision.allowed for decision in decided)


@pytest.mark.parametrize(
    ("what", "has"),
    [
        ("a service with pods on two nodes", lambda t: any(_nodes_behind(t, s) > 1 for s in t.mesh.services)),
        ("a service whose port is not its pods'", lambda t: any(_is_mapped(t, s) for s in t.mesh.services)),
        ("no service", lambda t: not t.mesh.services),
        ("an account of one name in two namespaces", lambda t: _most_namespaces(t) > 1),
        ("namespaces of which one begins another", lambda t: _has_look_alikes(t)),
        ("a node without a pod", lambda t: len({pod.node for pod in t.mesh.pods}) < len(t.nodes)),
        ("one pod", lambda t: len(t.mesh.pods) == 1),
        ("eight pods", lambda t: len(t.mesh.pods) == 8),
        ("three nodes", lambda t: len(t.nodes) == 3),
        ("a port that greets", lambda t: any(port.server_first for pod in t.mesh.pods for port in pod.ports)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_topologies_of_every_kind_are_drawn(what: str, has: Callable[[Topology], bool]) -> None:
    drawn = find(topologies(), has, settings=settings(max_examples=400, database=None, phases=[Phase.generate]))
    assert has(drawn), what


def _nodes_behind(topology: Topology, service: Service) -> int:
    return len({pod.node for pod in topology.mesh.endpoints(service)})


def _is_mapped(topology: Topology, service: Service) -> bool:
    return any(
        port.port != topology.mesh.target(service, port, pod)
        for port in service.ports
        for pod in topology.mesh.endpoints(service)
    )


def _most_namespaces(topology: Topology) -> int:
    accounts = {(pod.service_account, pod.namespace) for pod in topology.mesh.pods}
    return max(Counter(account for account, _ in accounts).values())


def _has_look_alikes(topology: Topology) -> bool:
    names = {pod.namespace for pod in topology.mesh.pods}
    return any(one != other and one.startswith(other) for one in names for other in names)


@_quick
@given(call_shapes())
def test_a_generated_shape_is_one_that_a_file_may_have(shape: CallShape) -> None:
    event(f"{shape.kind} {shape.mode} {shape.method}")
    step = CallStep(source="shop/a-web", to="shop/ab-web-admin:8080", family=4, expect=Verdict.ALLOW, shape=shape)
    nodes = (Node(name="node-1"), Node(name="node-2"))
    topology = Topology(name="shapes", nodes=nodes, mesh=MESH, steps=(step,))
    assert load(dump(topology), "shapes.yaml").steps == (step,)


def test_few_generated_shapes_have_a_large_body() -> None:
    random = Random(3)  # noqa: S311
    sizes = [draw_shape(Choices(random.randbytes(10))).body_bytes for _ in range(4000)]
    assert 0.002 < sum(size > 1 << 19 for size in sizes) / len(sizes) < 0.02
    assert {(edge << 10) + step for edge in (16, 64, 1024) for step in (-1, 0, 1)} <= set(sizes)


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
