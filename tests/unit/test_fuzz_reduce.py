"""Making a failing topology smaller, without a lab: a predicate plays the lab's part."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from meshlab.fuzz.reduce import (
    called,
    fewer_pods,
    moved_block,
    reduced,
    smaller,
    with_pods,
    without_services,
)
from meshlab.lab.calls.names import behind
from meshlab.lab.sources import read
from meshlab.model import (
    FAMILIES,
    Action,
    AuthorizationPolicy,
    CallShape,
    CallStep,
    Mesh,
    Operation,
    PolicyStep,
    Rule,
    Source,
    Topology,
    Verdict,
)
from meshlab.model import addresses as places
from meshlab.oracle import connection, decide
from meshlab.play.moments import expecting, verdicts
from meshlab.strategies import calls as step_calls
from meshlab.strategies import policy_sets, topologies
from meshlab.topology import after, dump, load

BASE = read("quickstart").topology
SERVER = "shop/server:8080"
CALL = CallStep(source="shop/client", to=SERVER, family=4, expect=Verdict.ALLOW)
BY_NAME = replace(CALL, to="server.shop:80")


def told(topology: Topology = BASE, *steps: CallStep | PolicyStep) -> Topology:
    judged = expecting(replace(topology, expect=(), steps=steps or (CALL,)))
    assert judged is not None
    return judged


def test_calls_expect_what_the_policies_of_their_moment_say() -> None:
    deny = AuthorizationPolicy(name="all", namespace="shop", action=Action.DENY, rules=(Rule(),))
    change = PolicyStep(authorization_policies=(deny,), replaces=True)
    first, _, second = told(BASE, CALL, change, CALL).steps
    assert isinstance(first, CallStep)
    assert isinstance(second, CallStep)
    assert (first.expect, second.expect) == (Verdict.ALLOW, Verdict.DENY)


def test_whatever_is_made_smaller_is_a_topology_that_loads() -> None:
    for mesh in policy_sets(BASE.mesh, 4, seed=7):
        change = PolicyStep(
            authorization_policies=mesh.authorization_policies,
            peer_authentications=mesh.peer_authentications,
            replaces=True,
        )
        for less in smaller(told(replace(BASE, mesh=mesh), CALL, change, CALL)):
            again = load(dump(less), "smaller.yaml")
            assert again.steps == less.steps
            assert again.mesh.authorization_policies == less.mesh.authorization_policies


def test_only_what_makes_it_fail_is_left() -> None:
    culprit = Source(principals=("cluster.local/ns/shop/sa/client", "other"), ip_blocks=("10.0.0.0/8",))
    rule = Rule(sources=(Source(namespaces=("shop",)), culprit), operations=(Operation(ports=("80", "8080")),))
    policy = AuthorizationPolicy(name="p", namespace="shop", selector={"app": "server"}, rules=(Rule(), rule))
    start = told(replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(policy,))), CALL, CALL)

    def fails(topology: Topology) -> bool:
        return any(
            "other" in source.principals
            for policy in topology.mesh.authorization_policies
            for rule in policy.rules
            for source in rule.sources
        )

    small = reduced(start, fails)
    assert small.mesh.peer_authentications == ()
    (left,) = small.mesh.authorization_policies
    assert left.selector is None
    assert left.rules == (Rule(sources=(Source(principals=("other",)),)),)
    assert len(small.steps) == 1


def test_a_predicate_that_never_holds_is_asked_no_more_than_allowed() -> None:
    asked: list[Topology] = []
    start = told()

    def never(candidate: Topology) -> bool:
        asked.append(candidate)
        return False

    assert reduced(start, never, tries=3) == start
    assert len(asked) <= 3


def test_only_the_pods_asked_for_are_left_and_their_addresses_follow_their_place() -> None:
    start = replace(told(), mesh=replace(BASE.mesh, authorization_policies=(), peer_authentications=()))
    fewer = with_pods(start, called(start))
    assert [pod.key for pod in fewer.mesh.pods] == ["shop/client", "shop/server"]
    assert load(dump(fewer), "fewer.yaml").mesh.pods == fewer.mesh.pods
    assert [namespace.name for namespace in fewer.mesh.namespaces] == ["shop"]
    assert [service.key for service in fewer.mesh.services] == ["server.shop"]
    assert without_services(fewer).mesh.services == ()
    beside = with_pods(start, {"shop/client", "shop/store"})
    assert beside.mesh.services == ()
    assert [node.name for node in beside.nodes] == ["node-1"]


def test_with_fewer_pods_a_call_expects_what_the_policies_say_of_its_new_address() -> None:
    """A block that was near to the store moves with it, and onto the address that the caller then has."""
    call = replace(CALL, source="shop/batch", to="shop/store:5432")
    alone = with_pods(told(BASE, call), {call.source, "shop/store"}).mesh
    here, there = int(alone.pod(call.source).ipv4), int(alone.pod("shop/store").ipv4)
    block = IPv4Address(int(BASE.mesh.pod("shop/store").ipv4) ^ here ^ there)
    policy = AuthorizationPolicy(
        name="p", namespace="shop", action=Action.DENY, rules=(Rule(sources=(Source(ip_blocks=(f"{block}/32",)),)),)
    )
    start = told(
        replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(policy,), peer_authentications=())), call
    )
    fewer = next(fewer_pods(start))
    (before,), (after,) = start.steps, fewer.steps
    assert isinstance(before, CallStep)
    assert isinstance(after, CallStep)
    assert (before.expect, after.expect) == (Verdict.ALLOW, Verdict.DENY)


def test_a_file_of_which_the_policies_do_not_say_one_thing_of_each_call_is_no_candidate() -> None:
    deny = AuthorizationPolicy(
        name="p", namespace="shop", action=Action.DENY, rules=(Rule(sources=(Source(ip_blocks=("::/0",)),)),)
    )
    start = replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(deny,)), expect=())
    assert expecting(replace(start, steps=(replace(CALL, family=None),))) is None, "one family is denied"
    assert expecting(replace(start, steps=(replace(CALL, to="server.shop:81"),))) is None, "nobody can answer"
    four, six = told(start, *(replace(CALL, family=family) for family in (4, 6))).steps
    assert [step.expect for step in (four, six) if isinstance(step, CallStep)] == ["allow", "deny"]


def test_a_service_whose_pods_are_of_two_minds_is_no_candidate_for_any_proxy() -> None:
    """Of such a file a right proxy fails one half of the runs: it picks one pod or the other."""
    twin = replace(BASE.mesh.pod("shop/server"), name="twin", labels={"app": "server", "twin": "yes"})
    nobody = AuthorizationPolicy(name="all", namespace="shop", action=Action.DENY, rules=(Rule(),))
    half = replace(nobody, name="half", selector={"twin": "yes"})
    twins = replace(BASE.mesh, pods=(*BASE.mesh.pods, twin), peer_authentications=())
    start = told(replace(BASE, mesh=replace(twins, authorization_policies=(half, nobody))), BY_NAME)
    assert expecting(replace(start, mesh=replace(twins, authorization_policies=(half,)))) is None
    asked = asked_of(start)
    assert asked
    assert all(len(verdicts(one.mesh, BY_NAME)) == 1 for one in asked if one.steps == start.steps)


def asked_of(start: Topology) -> list[Topology]:
    """Every candidate that the shrinker asks about, of whatever it takes for failing."""
    asked: list[Topology] = []

    def sometimes(candidate: Topology) -> bool:
        asked.append(candidate)
        return len(asked) % 3 == 0

    reduced(start, sometimes)
    return [*asked, *fewer_pods(start)]


@settings(deadline=None, max_examples=30, phases=[Phase.generate])
@given(topologies().filter(lambda world: world.mesh.services and len(world.mesh.pods) > 1), st.data())
def test_a_right_proxy_fails_no_candidate_of_whatever_world(world: Topology, data: st.DataObject) -> None:
    """It gives the oracle's verdict at a pod of its choice, over each family that is asked for."""
    changes = [
        PolicyStep(
            authorization_policies=mesh.authorization_policies,
            peer_authentications=mesh.peer_authentications,
            replaces=True,
        )
        for mesh in policy_sets(world.mesh, 2, seed=data.draw(st.integers(0, 1 << 16)))
    ]
    calls = [data.draw(st.one_of(step_calls(world.mesh), calls_of_services(world.mesh))) for _ in range(4)]
    steps: tuple[CallStep | PolicyStep, ...] = (calls[0], changes[0], *calls[1:3], changes[1], *calls[2:])
    start = expecting(replace(world, expect=(), steps=steps))
    assume(start is not None)
    assert start is not None
    for candidate in asked_of(start):
        mesh = candidate.mesh
        for step in candidate.steps:
            if isinstance(step, PolicyStep):
                mesh = after(replace(candidate, mesh=mesh), step)
                continue
            assert isinstance(step, CallStep)
            for family in (step.family,) if step.family else FAMILIES:
                pod, port = data.draw(st.sampled_from(behind(mesh, step.to)))
                answer = decide(mesh, connection(mesh, mesh.pod(step.source), pod, port, family))
                assert answer.verdict is step.expect


def calls_of_services(mesh: Mesh) -> st.SearchStrategy[CallStep]:
    return st.builds(
        CallStep,
        source=st.sampled_from([pod.key for pod in mesh.pods if mesh.is_enrolled(pod)]),
        to=st.sampled_from([f"{service.key}:{port.port}" for service in mesh.services for port in service.ports]),
        expect=st.just(Verdict.ALLOW),
        family=st.sampled_from([None, 4, 6]),
    )


def test_the_pods_behind_a_service_stay_with_it() -> None:
    start = told(BASE, BY_NAME)
    assert called(start) == {"shop/client", "shop/server"}
    fewer = without_services(with_pods(start, called(start)))
    assert [service.key for service in fewer.mesh.services] == ["server.shop"]
    assert load(dump(fewer), "fewer.yaml").steps == start.steps


def test_a_service_is_left_out_where_its_pod_fails_as_well() -> None:
    def fails_to_8080(topology: Topology) -> bool:
        return any(isinstance(step, CallStep) and step.to in ("server.shop:80", SERVER) for step in topology.steps)

    assert [step.to for step in reduced(told(BASE, BY_NAME), fails_to_8080).steps if isinstance(step, CallStep)] == [
        SERVER
    ]


def test_a_pod_that_calls_itself_by_name_does_not_come_to_call_its_own_address() -> None:
    hairpin = replace(BY_NAME, source="shop/server")
    asked = asked_of(told(BASE, hairpin))
    assert {step.to for one in asked for step in one.steps if isinstance(step, CallStep)} <= {"server.shop:80"}


def test_a_call_sends_only_what_it_has_to() -> None:
    """A body of a megabyte of which a bit is flipped behind the first 40,000 bytes, say."""
    shape = CallShape(kind="http", mode="echo-body", method="PUT", body_bytes=1 << 20, body_seed=7)

    def fails(topology: Topology) -> bool:
        return any(isinstance(step, CallStep) and step.shape.body_bytes > 40_000 for step in topology.steps)

    (step,) = reduced(told(BASE, replace(CALL, shape=shape)), fails).steps
    assert isinstance(step, CallStep)
    assert (step.shape.mode, step.shape.method) == ("plain", "GET")
    assert 40_000 < step.shape.body_bytes <= 80_000


def test_a_call_to_a_service_expects_what_the_policies_say_at_its_pod() -> None:
    deny = AuthorizationPolicy(
        name="p", namespace="shop", action=Action.DENY, rules=(Rule(operations=(Operation(ports=("8080",)),)),)
    )
    (step,) = told(replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(deny,))), BY_NAME).steps
    assert isinstance(step, CallStep)
    assert step.expect is Verdict.DENY


def test_a_namespace_in_which_only_a_policy_is_stays() -> None:
    """Whether such a policy holds for other namespaces may be what is asked."""
    policy = AuthorizationPolicy(name="p", namespace="plain", action=Action.DENY, rules=(Rule(),))
    start = told(replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(policy,))))
    fewer = with_pods(start, called(start))
    assert load(dump(fewer), "fewer.yaml").mesh.authorization_policies == (policy,)
    assert "plain" in {namespace.name for namespace in fewer.mesh.namespaces}


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([4, 6]), st.integers(0, 128), st.integers(0, 128))
def test_a_moved_block_holds_the_pod_it_held(version: int, length: int, bit: int) -> None:
    old, new = (places.pod4(1, 5), places.pod4(0, 1)) if version == 4 else (places.pod6(1, 5), places.pod6(0, 1))
    length, bit = min(length, old.max_prefixlen), min(bit, old.max_prefixlen - 1)
    block = f"{type(old)(int(old) ^ 1 << bit)}/{length}"
    moved = moved_block(block, {old: new})
    assert (old in ip_network(block, strict=False)) == (new in ip_network(moved, strict=False))


@pytest.mark.parametrize("block", ["0.0.0.0/0", "::/0"])
def test_everything_stays_everything(block: str) -> None:
    assert moved_block(block, {ip_address("10.0.0.1"): ip_address("10.0.0.2")}) == block
