"""From the bytes of a cell's calls to its result."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from meshlab.lab.proving.judging import Arrived, judge
from meshlab.lab.proving.matrix import (
    MISSED_BY_CHANCE,
    PlannedCell,
    calls_to_reach_all,
    missed_by_chance,
)
from meshlab.model import Call, Expected, Outcome, Peer, Pod, Reaches, Refused, Way, direct
from meshlab.model.addresses import pod4, pod6
from meshlab.model.report import Result

CLIENT = Pod(name="client", namespace="shop", node="node-1", ipv4=pod4(0, 0), ipv6=pod6(0, 0))
SERVER = Pod(name="server", namespace="shop", node="node-1", ipv4=pod4(0, 1), ipv6=pod6(0, 1))


def _due(**pods: bool) -> Expected:
    """What is due of a call to one of these pods, each of which allows it or not."""
    return Expected(
        tuple(
            Way(direct("shop/client", f"shop/{pod}", 8080), Reaches(f"shop/{pod}") if allowed else Refused(), "")
            for pod, allowed in pods.items()
        ),
        "no policy applies",
    )


ALLOWED = PlannedCell(
    source=CLIENT,
    destination=SERVER,
    address=SERVER.ipv4,
    port=8080,
    family=4,
    expected="allow",
    due=_due(server=True),
)
DENIED = replace(ALLOWED, expected="deny", due=_due(server=False))
MIXED = replace(ALLOWED, expected="mixed", due=_due(a=True, b=False))
BALANCED = replace(ALLOWED, due=_due(a=True, b=True), balanced=True)


def _call(outcome: Outcome, by: str | None = None, error: str = "") -> Call:
    return Call(
        number=7,
        source="shop/client",
        to="shop/server:8080",
        family=4,
        source_ip=CLIENT.ipv4,
        source_port=40000,
        destination_ip=SERVER.ipv4,
        port=8080,
        canary=b"c",
        outcome=outcome,
        started_ns=1,
        ended_ns=2,
        body=b"hello",
        peer=Peer(pod=by, server_port=8080, address=CLIENT.ipv4, port=40000) if by else None,
        error=error,
    )


OK = _call(Outcome.OK, by="shop/server")


def test_an_answer_is_what_an_allowed_cell_wants() -> None:
    cell = judge(ALLOWED, [OK])
    assert (cell.seen, cell.outcome, cell.result, cell.reason) == ("allow", "ok", Result.HELD, "")


def test_a_pod_with_a_program_of_its_own_answers_without_saying_who_it_is() -> None:
    assert judge(ALLOWED, [_call(Outcome.OK)]).result is Result.HELD


@pytest.mark.parametrize("outcome", list(Outcome.REFUSED), ids=str)
def test_a_denial_may_end_in_any_kind_of_refusal(outcome: Outcome) -> None:
    cell = judge(DENIED, [_call(outcome)])
    assert (cell.seen, cell.result) == ("deny", Result.HELD)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK], ids=str)
def test_no_other_end_than_an_answer_holds_an_allowed_cell(outcome: Outcome) -> None:
    cell = judge(ALLOWED, [_call(outcome)])
    assert (cell.outcome, cell.result) == (str(outcome), Result.FAILED)
    assert cell.reason


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.TLS_ALERT], ids=str)
def test_silence_does_not_show_that_a_policy_denied(outcome: Outcome) -> None:
    cell = judge(DENIED, [_call(outcome)])
    assert (cell.seen, cell.result) == ("unclear", Result.CANNOT_TELL)
    assert str(outcome) in cell.reason


@pytest.mark.parametrize(
    "outcome",
    [Outcome.CLOSED_LATE, Outcome.HTTP_STATUS, Outcome.WRONG_BACKEND, Outcome.CORRUPTED],
    ids=str,
)
def test_a_denied_call_that_got_any_bytes_back_fails(outcome: Outcome) -> None:
    assert judge(DENIED, [_call(outcome)]).result is Result.FAILED


@pytest.mark.parametrize("by", ["shop/server", None])
def test_a_denied_call_that_was_answered_fails(by: str | None) -> None:
    cell = judge(DENIED, [_call(Outcome.OK, by=by)])
    assert (cell.seen, cell.result) == ("allow", Result.FAILED)
    assert "denied was answered" in cell.reason


def test_a_refusal_of_an_allowed_call_says_the_systems_words() -> None:
    assert "Connection reset" in judge(ALLOWED, [_call(Outcome.RESET, error="Connection reset")]).reason


def test_an_answer_from_a_pod_that_was_not_called_fails() -> None:
    cell = judge(ALLOWED, [_call(Outcome.OK, by="shop/other")])
    assert cell.result is Result.FAILED
    assert "shop/other" in cell.reason


@pytest.mark.parametrize("call", [OK, _call(Outcome.RESET)], ids=["answered", "refused"])
def test_a_row_that_contradicts_the_oracle_fails_whatever_is_seen(call: Call) -> None:
    cell = judge(replace(ALLOWED, expected="deny"), [call])
    assert cell.result is Result.FAILED
    assert "spec.expect says deny, the policies say allow" in cell.reason
    assert f"the bytes say {cell.seen}" in cell.reason


def test_a_mixed_service_holds_when_each_answer_is_from_an_endpoint_that_allows() -> None:
    cell = judge(MIXED, [_call(Outcome.OK, by="shop/a")] * 11 + [_call(Outcome.RESET)] * 9)
    assert (cell.seen, cell.outcome, cell.result) == ("mixed", "11 ok, 9 reset", Result.HELD)


def test_one_answer_from_an_endpoint_that_denies_fails_a_mixed_service() -> None:
    calls = [_call(Outcome.OK, by="shop/a")] * 10 + [_call(Outcome.RESET)] * 9 + [_call(Outcome.OK, by="shop/b")]
    cell = judge(MIXED, calls)
    assert cell.result is Result.FAILED
    assert "denied was answered by shop/b" in cell.reason


@pytest.mark.parametrize("call", [_call(Outcome.OK, by="shop/a"), _call(Outcome.RESET)], ids=["answers", "refusals"])
def test_a_mixed_service_of_which_one_side_was_seen_cannot_be_told(call: Call) -> None:
    assert judge(MIXED, [call] * 20).result is Result.CANNOT_TELL


def test_one_refusal_among_answers_fails_an_allowed_cell() -> None:
    assert judge(ALLOWED, [OK, _call(Outcome.RESET)]).result is Result.FAILED


def test_one_answer_among_refusals_fails_a_denied_cell() -> None:
    assert judge(DENIED, [_call(Outcome.RESET), _call(Outcome.OK)]).result is Result.FAILED


def test_a_cell_that_was_never_called_could_not_run() -> None:
    assert judge(DENIED, []).result is Result.CANNOT_RUN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"address": ip_address("10.64.0.9")}, "the server saw the client at 10.64.0.9, not at "),
        ({"server_port": 9090}, "a call arrived at port 9090 of shop/server, not at 8080"),
    ],
)
def test_an_answer_is_not_enough_where_the_server_saw_another_client_or_port(change: dict[str, Any], says: str) -> None:
    assert OK.peer is not None
    cell = judge(ALLOWED, [replace(OK, peer=replace(OK.peer, **change))])
    assert (cell.seen, cell.result, says in cell.reason) == ("allow", Result.FAILED, True)


def test_a_balanced_cell_holds_only_where_each_endpoint_has_answered() -> None:
    one, other = (_call(Outcome.OK, by=pod) for pod in BALANCED.paths)
    assert judge(BALANCED, [one] * 39 + [other]).result is Result.HELD
    cell = judge(BALANCED, [one] * 40)
    assert (cell.result, cell.reason) == (
        Result.FAILED,
        "none of 40 fresh connections reached shop/b, and nothing prefers another endpoint"
        " (a random choice leaves one out with a probability of 1.8e-12)",
    )


@pytest.mark.parametrize("endpoints", [2, 3, 5, 10, 50])
def test_a_random_choice_fails_a_balanced_cell_less_than_once_in_a_million(endpoints: int) -> None:
    assert missed_by_chance(endpoints) <= MISSED_BY_CHANCE
    assert calls_to_reach_all(endpoints) >= 40


def _own(outcome: Outcome, error: str = "", received: int = 9) -> Call:
    """A call to a program of a pod's own."""
    return replace(_call(outcome, error=error), echo=False, received_bytes=received)


@pytest.mark.parametrize("outcome", [Outcome.HTTP_STATUS, Outcome.NOT_HTTP, Outcome.CLOSED_LATE, Outcome.TIMEOUT])
def test_any_byte_of_a_pods_own_program_is_an_answer_and_the_cell_says_which(outcome: Outcome) -> None:
    cell = judge(ALLOWED, [_own(outcome, error="HTTP 404")])
    assert (cell.seen, cell.result) == ("allow", Result.HELD)
    assert cell.reason == f"the pod's own program answered ({outcome}, HTTP 404)"
    assert judge(DENIED, [_own(outcome)]).result is Result.FAILED


def test_a_program_of_a_pods_own_that_gave_no_byte_has_not_answered() -> None:
    assert judge(ALLOWED, [_own(Outcome.CLOSED, received=0)]).result is Result.FAILED
    assert judge(DENIED, [_own(Outcome.CLOSED, received=0)]).result is Result.HELD


NOBODY = replace(ALLOWED, silent=("shop/server",))


def test_where_nobody_listens_a_refusal_is_not_held_against_the_mesh() -> None:
    cell = judge(NOBODY, [_call(Outcome.RESET)])
    assert (cell.expected, cell.seen, cell.result) == ("allow", "deny", Result.HELD)
    assert judge(NOBODY, [OK]).result is Result.HELD, "it may have begun to listen since"
    assert judge(NOBODY, [_call(Outcome.TIMEOUT)]).result is Result.FAILED, "a refusal is due, not silence"


def test_where_nobody_listens_a_denied_call_still_gets_no_answer() -> None:
    denied = replace(DENIED, silent=("shop/server",))
    assert judge(denied, [_call(Outcome.RESET)]).result is Result.HELD
    assert judge(denied, [OK]).result is Result.FAILED


SILENT = [_own(Outcome.CLOSED, received=0)]


def test_a_program_that_answers_nobody_is_judged_by_the_connections_that_reached_it() -> None:
    held = judge(ALLOWED, SILENT, Arrived(counted=2, due=2))
    assert held.result is Result.HELD
    assert "2 connections of shop/client reached it (2 were made)" in held.reason
    lost = judge(ALLOWED, SILENT, Arrived(counted=1, due=2))
    assert lost.result is Result.FAILED
    assert "1 connections of shop/client reached it (2 were made)" in lost.reason


def test_what_holds_over_new_tunnels_has_to_hold_over_open_ones_too() -> None:
    assert OK.peer is not None
    mixed_up = replace(OK, peer=replace(OK.peer, address=ip_address("10.64.0.9")))
    assert judge(ALLOWED, [OK], again=[OK]).result is Result.HELD
    cell = judge(ALLOWED, [OK], again=[mixed_up])
    assert (cell.result, cell.outcome) == (Result.FAILED, "ok")
    assert cell.reason.startswith("over a tunnel that was open already: the server saw the client at 10.64.0.9")


def test_a_call_that_made_two_connections_fails_its_cell() -> None:
    assert judge(ALLOWED, [OK], beyond={8: "another call's"}).result is Result.HELD
    cell = judge(ALLOWED, [OK], beyond={7: "one connection more"})
    assert (cell.result, cell.reason) == (Result.FAILED, "one connection more")
