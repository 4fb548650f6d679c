"""Calls are chosen so that they tell a set of policies from its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.fuzz.choose import MOST, Chosen, candidates, choose
from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Family,
    Mesh,
    MtlsMode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
)
from meshlab.model import addresses as places
from meshlab.strategies import policy_sets

MESH = replace(read("quickstart").topology.mesh, authorization_policies=(), peer_authentications=())
POSSIBLE = candidates(MESH)


def with_rule(rule: Rule, action: Action = Action.ALLOW) -> Mesh:
    policy = AuthorizationPolicy(name="only", namespace="shop", action=action, rules=(rule,))
    return replace(MESH, authorization_policies=(policy,))


def names(chosen: list[Chosen]) -> set[str]:
    return {f"{one.call.source.key}->{one.call.to}/{one.call.family}" for one in chosen}


def test_a_caller_out_of_the_mesh_with_an_account_is_always_among_them() -> None:
    for mesh in policy_sets(MESH, 100, seed=1):
        chosen = choose(mesh, POSSIBLE, most=4)
        assert any(not mesh.is_enrolled(one.call.source) for one in chosen)


@pytest.mark.parametrize("most", [4, 8, 32])
def test_there_are_never_more_than_asked_for_and_never_the_same_twice(most: int) -> None:
    for mesh in policy_sets(MESH, 50, seed=2):
        chosen = choose(mesh, POSSIBLE, most=most)
        assert len(chosen) <= most
        assert len(names(chosen)) == len(chosen)


def test_both_sides_of_a_block_are_called() -> None:
    client = MESH.pod("shop/client")
    chosen = choose(with_rule(Rule(sources=(Source(ip_blocks=(f"{client.ipv4}/31",)),))), POSSIBLE, most=8)
    inside = {one.call.source.key for one in chosen if one.call.family == 4 and one.decision.allowed}
    assert "shop/client" in inside
    assert any(one.call.source.key != "shop/client" and not one.decision.allowed for one in chosen)


def test_both_sides_of_a_port_are_called() -> None:
    chosen = choose(with_rule(Rule(operations=(Operation(ports=("9090",)),)), Action.DENY), POSSIBLE, most=8)
    assert {(one.call.port, one.decision.allowed) for one in chosen} >= {(9090, False), (8080, True)}


def test_a_port_with_a_mode_of_its_own_is_called_from_out_of_the_mesh() -> None:
    strict = PeerAuthentication(
        name="only",
        namespace="shop",
        selector={"app": "server"},
        mode=MtlsMode.STRICT,
        port_level_mtls={9090: MtlsMode.PERMISSIVE},
    )
    chosen = choose(replace(MESH, peer_authentications=(strict,)), POSSIBLE, most=16)
    outside = {(one.call.to, one.decision.allowed) for one in chosen if not MESH.is_enrolled(one.call.source)}
    assert outside >= {("shop/server:9090", True), ("shop/server:8080", False)}


def test_calls_that_were_judged_otherwise_before_come_first() -> None:
    before = with_rule(Rule(operations=(Operation(ports=("9090",)),)), Action.DENY)
    chosen = choose(MESH, POSSIBLE, most=6, before=before)
    assert any(one.call.port == 9090 for one in chosen)


def test_a_service_is_called_by_its_address_with_either_verdict() -> None:
    chosen = choose(with_rule(Rule(operations=(Operation(ports=("8080",)),)), Action.DENY), POSSIBLE, most=8)
    assert any(one.call.service and not one.decision.allowed for one in chosen)
    chosen = choose(MESH, POSSIBLE, most=8)
    assert any(one.call.service and one.decision.allowed for one in chosen)


def test_a_call_to_a_service_is_judged_at_the_pod_behind_it() -> None:
    (service,) = MESH.services
    calls = [call for call in POSSIBLE if call.service]
    assert {call.to for call in calls} == {"server.shop:80"}
    assert {(call.destination.key, call.port, call.connection.port) for call in calls} == {("shop/server", 8080, 8080)}
    assert {call.address for call in calls} == {service.ipv4, service.ipv6}
    assert all(MESH.is_enrolled(call.source) for call in calls), "there is no kube-proxy for the others"
    assert {call.hbone for call in calls if call.source.key == "shop/server"} == {False}, "it may answer itself"
    assert {call.hbone for call in calls if call.source.key != "shop/server"} == {True}


def test_a_service_with_two_pods_is_called_where_they_are_of_one_mind() -> None:
    twin = replace(MESH.pod("shop/server"), name="twin", labels={"app": "server", "twin": "yes"})
    twins = replace(MESH, pods=(*MESH.pods, twin))
    calls = [call for call in candidates(twins) if call.service]
    assert {(call.destination.key, *(other.destination.key for other in call.also)) for call in calls} == {
        ("shop/server", "shop/twin")
    }
    nobody = AuthorizationPolicy(
        name="only", namespace="shop", selector={"twin": "yes"}, action=Action.DENY, rules=(Rule(),)
    )
    everywhere = replace(nobody, selector=None)
    for policy, called in ((nobody, False), (everywhere, True)):
        chosen = choose(replace(twins, authorization_policies=(policy,)), candidates(twins), most=200)
        assert any(one.call.service for one in chosen) is called


def test_a_service_with_a_pod_out_of_the_mesh_is_not_called() -> None:
    twin = replace(MESH.pod("shop/server"), name="twin", labels={"app": "server", "istio.io/dataplane-mode": "none"})
    assert not any(call.service for call in candidates(replace(MESH, pods=(*MESH.pods, twin))))


def test_another_turn_is_another_choice() -> None:
    sets = policy_sets(MESH, 8, seed=3)
    firsts, others = ([names(choose(mesh, POSSIBLE, most=6, turn=turn)) for mesh in sets] for turn in (0, 11))
    assert sum(first != other for first, other in zip(firsts, others, strict=True)) >= 4


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("cluster.local/ns/shop/sa/Client", id="letter case"),
        pytest.param("*/Shop/sa/client", id="letter case of the namespace"),
        pytest.param("*x/sa/client", id="one part more"),
    ],
)
def test_the_call_that_shows_a_value_taken_for_its_neighbour_is_among_few(value: str) -> None:
    """It is from one of 56 pods. None matches the value itself, so that nothing else draws the client."""
    client = MESH.pod("shop/client")
    crowd = [
        replace(client, name=f"n{n}", service_account=f"n{n}", ipv4=places.pod4(1, n), ipv6=places.pod6(1, n))
        for n in range(10, 60)
    ]
    crowded = replace(MESH, pods=(*crowd, *MESH.pods))
    deny = AuthorizationPolicy(
        name="only", namespace="shop", action=Action.DENY, rules=(Rule(sources=(Source(principals=(value,)),)),)
    )
    chosen = choose(replace(crowded, authorization_policies=(deny,)), candidates(crowded), most=8)
    assert any(one.call.source.key == "shop/client" for one in chosen)


def test_allowed_and_denied_are_both_common() -> None:
    chosen = [one for mesh in policy_sets(MESH, 300, seed=4) for one in choose(mesh, POSSIBLE)]
    share = sum(one.decision.allowed for one in chosen) / len(chosen)
    print(f"{share:.0%} of {len(chosen)} calls are allowed; {MOST} at most in one set")  # noqa: T201
    assert 0.3 <= share <= 0.7


def test_nobody_is_called_where_nobody_listens() -> None:
    deaf: frozenset[tuple[str, int, Family]] = frozenset(
        (pod.key, port.number, 6) for pod in MESH.pods for port in pod.ports
    )
    assert {call.family for call in candidates(MESH, deaf)} == {4}
    assert len(candidates(MESH, deaf)) == len(POSSIBLE) / 2
