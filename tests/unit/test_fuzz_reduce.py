"""Making a failing topology smaller, without a lab: a predicate plays the lab's part."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.fuzz.reduce import (
    called,
    expecting,
    fewer_pods,
    moved_block,
    reduced,
    smaller,
    with_pods,
    without_services,
)
from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    CallStep,
    Operation,
    PolicyStep,
    Rule,
    Source,
    Topology,
    Verdict,
)
from meshlab.model import addresses as places
from meshlab.strategies import policy_sets
from meshlab.topology import dump, load

BASE = read("quickstart").topology
SERVER = "shop/server:8080"
CALL = CallStep(source="shop/client", to=SERVER, family=4, expect=Verdict.ALLOW)


def told(topology: Topology = BASE, *steps: CallStep | PolicyStep) -> Topology:
    return expecting(replace(topology, expect=(), steps=steps or (CALL,)))


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


def test_of_a_call_over_both_families_that_differ_the_expectation_is_left_as_it_was() -> None:
    deny = AuthorizationPolicy(
        name="p", namespace="shop", action=Action.DENY, rules=(Rule(sources=(Source(ip_blocks=("::/0",)),)),)
    )
    start = replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(deny,)))
    either, four, six = told(start, *(replace(CALL, family=family) for family in (None, 4, 6))).steps
    assert [step.expect for step in (either, four, six) if isinstance(step, CallStep)] == ["allow", "allow", "deny"]
    denied = told(start, replace(CALL, family=None, expect=Verdict.DENY)).steps[0]
    assert isinstance(denied, CallStep)
    assert denied.expect is Verdict.DENY


BY_NAME = replace(CALL, to="server.shop:80")


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
