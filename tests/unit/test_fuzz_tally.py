"""What a campaign counts, and the exit code that this comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.fuzz.choose import candidates, choose
from meshlab.fuzz.tally import FIELDS, Failure, Tally, fields_in_force
from meshlab.lab.sources import read
from meshlab.model import AuthorizationPolicy, Condition, MtlsMode, Operation, PeerAuthentication, Rule, Source

MESH = replace(read("quickstart").topology.mesh, authorization_policies=(), peer_authentications=())
SERVER, STORE = MESH.pod("shop/server"), MESH.pod("shop/store")
FAILED, FLAKY = Failure("a", "failed", ""), Failure("b", "flaky", "")


def test_a_field_is_in_force_where_its_policy_applies() -> None:
    rule = Rule(
        sources=(Source(principals=("*",), not_ip_blocks=("10.0.0.1",)),),
        operations=(Operation(not_ports=("80",)),),
        conditions=(Condition(key="source.ip", values=("10.0.0.1",)),),
    )
    policy = AuthorizationPolicy(name="p", namespace="shop", selector={"app": "server"}, rules=(rule,))
    mesh = replace(MESH, authorization_policies=(policy,))
    found = {"from.principals", "from.notIpBlocks", "to.notPorts", "when.source.ip.values", "action.ALLOW", "selector"}
    assert fields_in_force(mesh, SERVER) == found
    assert fields_in_force(mesh, STORE) == frozenset()


def test_a_rule_with_a_part_for_http_says_nothing_of_its_fields() -> None:
    rule = Rule(sources=(Source(principals=("*",)),), operations=(Operation(methods=("GET",)),))
    policy = AuthorizationPolicy(name="p", namespace="shop", rules=(rule,))
    assert fields_in_force(replace(MESH, authorization_policies=(policy,)), SERVER) == {"action.ALLOW"}


@pytest.mark.parametrize(
    ("namespace", "selector", "level"),
    [
        ("istio-system", None, "mtls.mesh"),
        ("shop", None, "mtls.namespace"),
        ("shop", {"app": "server"}, "mtls.workload"),
    ],
)
def test_the_level_of_a_mode_is_told(namespace: str, selector: dict[str, str] | None, level: str) -> None:
    mode = PeerAuthentication(name="m", namespace=namespace, selector=selector, mode=MtlsMode.STRICT)
    assert fields_in_force(replace(MESH, peer_authentications=(mode,)), SERVER) == {level}


def test_no_field_is_in_force_out_of_the_mesh() -> None:
    everywhere = AuthorizationPolicy(name="p", namespace="istio-system", rules=(Rule(),))
    mesh = replace(MESH, authorization_policies=(everywhere,))
    assert fields_in_force(mesh, MESH.pod("plain/archive")) == frozenset()
    assert fields_in_force(mesh, SERVER) == {"action.ALLOW", "rules.empty"}


def test_calls_are_counted_by_verdict_and_workers_add_up() -> None:
    mesh = replace(MESH, authorization_policies=(AuthorizationPolicy(name="none", namespace="shop"),))
    chosen = choose(mesh, candidates(mesh))
    one, other = Tally(seconds=2.0), Tally(seconds=3.0)
    one.count(mesh, chosen)
    other.count(mesh, chosen)
    both = Tally()
    both.add(one)
    both.add(other)
    assert both.calls == 2 * len(chosen)
    assert both.allowed == 2 * sum(item.decision.allowed for item in chosen)
    assert both.fields["rules.none", False] > 0
    assert both.seconds == 3.0
    assert set(both.unseen) < set(FIELDS) or both.unseen == list(FIELDS)


@pytest.mark.parametrize(
    ("tally", "code"),
    [
        (Tally(), 5),
        (Tally(examples=1), 0),
        (Tally(examples=1, failures=[FAILED, FLAKY]), 1),
        (Tally(examples=1, failures=[FLAKY]), 4),
        (Tally(examples=1, unproven=1), 4),
    ],
    ids=["nothing ran", "nothing was wrong", "failed", "flaky", "could not be told"],
)
def test_the_exit_code_says_how_it_went(tally: Tally, code: int) -> None:
    assert tally.exit_code == code


def test_json_has_what_scripts_were_promised() -> None:
    told = Tally(examples=1, calls=4, allowed=1, seconds=2.0, failures=[FLAKY]).to_json()
    keys = ["schemaVersion", "examples", "calls", "verdicts_per_s", "allow_share", "fields", "happened", "failures"]
    assert list(told) == keys
    assert (told["verdicts_per_s"], told["allow_share"]) == (2.0, 0.25)
    assert told["failures"] == [{"file": "b", "result": "flaky"}]
    assert told["fields"]["selector"] == {"allow": 0, "deny": 0}
