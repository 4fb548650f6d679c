"""A denial is judged by what the servers counted, connections as well as bytes, and needs a twin that was counted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import capture_scenes as scenes
import pytest

from meshlab.model import Call, Outcome, PodPort
from meshlab.model.report import Proof, Result
from meshlab.proofs.arrivals import Arrival, Arrivals, surplus
from meshlab.proofs.denial import Twin, denied

HELD, FAILED, CANNOT_TELL = Result.HELD, Result.FAILED, Result.CANNOT_TELL
SCRIPT = scenes.play(scenes.SCENES["clean"])
WINDOW = scenes.window_of(scenes.as_pcapng("clean"))
ALLOWED, DENIED = scenes.call(SCRIPT, 1), scenes.call(SCRIPT, 2)
TWIN = Twin(ALLOWED, scenes.to_server(ALLOWED))
QUIET = scenes.arrivals(SCRIPT, {1: 100})


def prove(arrivals: Arrivals = QUIET, call: Call = DENIED, **options: Any) -> Proof:
    asked: dict[str, Any] = {"twin": TWIN, "calls": [ALLOWED, DENIED], **options}
    return denied(WINDOW, scenes.wiring(), call, scenes.to_server(call), arrivals, **asked)


def from_(address: str, size: int, *, after_ns: int = 1) -> Arrival:
    at = DENIED.started_ns + after_ns
    return Arrival("shop/server", 8080, ip_address(address), 41000, at, at, size)


def also(*arrivals: Arrival) -> Arrivals:
    return replace(QUIET, connections=(*QUIET.connections, *arrivals))


INTRUDER = str(DENIED.source_ip)


def test_it_holds_where_nothing_was_counted_but_the_twin() -> None:
    proof = prove()
    assert (proof.result, proof.reason) == (HELD, "reset, no connection and 0 bytes at the server")
    assert proof.control.startswith("call 1 of shop/client was allowed; 48 beacons")


@pytest.mark.parametrize("size", [0, 1, 20, 5000], ids="{} bytes".format)
def test_any_connection_of_its_client_fails_it_however_few_bytes_came(size: int) -> None:
    proof = prove(also(from_(INTRUDER, size)))
    assert (proof.result, proof.reason) == (
        FAILED,
        f"a connection from {INTRUDER} with {size} bytes reached shop/server:8080 (the caller saw: reset)",
    )


def test_a_copy_of_another_call_explains_one_connection() -> None:
    mirrored = replace(ALLOWED, number=3, started_ns=DENIED.started_ns, ended_ns=DENIED.ended_ns, peer=None)
    options: dict[str, Any] = {"calls": [ALLOWED, DENIED, mirrored], "copied": {3: [PodPort("shop/server", 8080)]}}
    one = from_(INTRUDER, 9)
    assert prove(also(one), **options).result is HELD
    assert prove(also(one, replace(one, client_port=41001)), **options).result is FAILED
    assert prove(also(one), calls=options["calls"]).result is FAILED


def test_a_connection_that_comes_long_after_the_call_has_ended_fails_it_too() -> None:
    assert prove(also(from_(INTRUDER, 9, after_ns=60 * 10**9))).result is FAILED


def test_a_connection_from_before_the_call_is_another_calls() -> None:
    assert prove(also(from_(INTRUDER, 9, after_ns=-1))).result is HELD


def test_a_connection_from_an_address_that_is_no_pods_may_be_the_denied_calls() -> None:
    assert prove(also(from_("10.1.2.3", 9))).reason.startswith("a connection from 10.1.2.3 with 9 bytes reached")
    assert prove(also(from_("10.1.2.3", 9, after_ns=5 * 10**9))).result is HELD


def test_the_servers_own_loopback_connection_is_nobodys() -> None:
    assert prove(also(from_("127.0.0.1", 9))).result is HELD


def test_its_canary_at_any_server_fails_it() -> None:
    proof = prove(replace(QUIET, canaries=frozenset({1, 2})))
    assert (proof.result, proof.reason) == (FAILED, "its canary reached a server (the caller saw: reset)")


def test_each_answered_call_of_the_client_explains_one_connection_and_no_more() -> None:
    later = replace(DENIED, number=7, outcome=Outcome.OK, peer=replace(ALLOWED.peer, address=DENIED.source_ip))  # type: ignore[type-var]
    assert prove(also(from_(INTRUDER, 9)), calls=[ALLOWED, DENIED, later]).result is HELD
    assert prove(also(from_(INTRUDER, 9), from_(INTRUDER, 9)), calls=[ALLOWED, DENIED, later]).result is FAILED


@pytest.mark.parametrize(
    ("call", "arrivals", "says"),
    [
        (replace(DENIED, outcome=Outcome.TIMEOUT), QUIET, "timeout, which is no refusal"),
        (DENIED, replace(QUIET, echoes=frozenset()), "nothing counts what shop/server:8080 receives"),
        (DENIED, replace(QUIET, forgotten_until_ns=DENIED.started_ns), "the echo has forgotten"),
        (DENIED, replace(QUIET, since_ns=DENIED.ended_ns), "it was made before the window"),
        (DENIED, scenes.arrivals(SCRIPT, {}), "the bytes of its twin, call 1 of shop/client, were not seen"),
        (DENIED, scenes.arrivals(SCRIPT, {1: 0}), "the bytes of its twin, call 1 of shop/client, were not seen"),
        (replace(DENIED, started_ns=scenes.T0, ended_ns=scenes.T0), QUIET, "no packet of it was seen"),
        (replace(DENIED, source="shop/client"), QUIET, "is no twin of it"),
    ],
)
def test_what_could_not_have_been_seen_cannot_be_told(call: Call, arrivals: Arrivals, says: str) -> None:
    proof = prove(arrivals, call)
    assert (proof.result, says in proof.reason) == (CANNOT_TELL, True)


def test_a_call_that_was_answered_was_not_denied() -> None:
    assert prove(call=replace(DENIED, outcome=Outcome.OK)).reason == "it was answered"


def test_without_a_twin_or_what_stands_for_it_nothing_holds() -> None:
    assert prove(twin=None).result is CANNOT_TELL
    loopback = prove(twin=None, instead="its loopback answered")
    assert (loopback.result, loopback.control.partition(";")[0]) == (HELD, "its loopback answered")


def test_a_refused_twin_shows_nothing() -> None:
    proof = prove(twin=Twin(replace(ALLOWED, outcome=Outcome.RESET), scenes.to_server(ALLOWED)))
    assert (proof.result, "then no refusal says anything" in proof.reason) == (CANNOT_TELL, True)


PROGRAM = PodPort("shop/server", 8080)


@pytest.mark.parametrize(
    ("connections", "result", "says"),
    [
        ({}, CANNOT_TELL, "the bytes of its twin, call 1 of shop/client, were not seen"),
        ({"10.128.0.1": 5, INTRUDER: 0}, HELD, "no connection and 0 bytes"),
        ({"10.128.0.1": 5, INTRUDER: 3}, FAILED, "3 connections from its client reached the program there"),
    ],
    ids=["none-at-all", "the-twins", "its-own"],
)
def test_at_a_program_of_a_pods_own_the_kernel_counts(connections: dict[str, int], result: Result, says: str) -> None:
    kernel = {(PROGRAM, ip_address(address)): number for address, number in connections.items()}
    proof = prove(Arrivals(since_ns=scenes.T0, programs=frozenset({"shop/server"}), kernel=kernel))
    assert (proof.result, says in proof.reason) == (result, True)


# --- more than was called -------------------------------------------------------------------------------------------


def beyond(*more: Arrival, calls: tuple[Call, ...] = (ALLOWED, DENIED)) -> dict[int, Arrival]:
    return surplus(also(*more), scenes.wiring(), calls, ["shop/client", "shop/intruder"])


def client_again(after_ns: int = 2) -> Arrival:
    at = ALLOWED.started_ns + after_ns
    return Arrival("shop/server", 8080, ALLOWED.source_ip, 42000, at, at, 9)


def test_one_connection_for_each_answered_call_is_what_there_should_be() -> None:
    assert beyond() == {}


@pytest.mark.parametrize("after_ns", [2, 10**10], ids=["at-once", "later"])
def test_a_second_connection_is_held_against_the_clients_latest_call(after_ns: int) -> None:
    assert beyond(client_again(after_ns)) == {1: client_again(after_ns)}


def test_a_connection_at_another_endpoint_is_one_too_many() -> None:
    elsewhere = replace(client_again(), pod="shop/plain", port=9090)
    assert beyond(elsewhere) == {1: elsewhere}


def test_connections_of_pods_that_run_programs_of_their_own_are_not_counted() -> None:
    assert surplus(also(client_again()), scenes.wiring(), [ALLOWED], ["shop/intruder"]) == {}


def test_a_call_that_was_cut_off_may_have_made_a_connection_and_a_refused_one_has_not() -> None:
    for outcome, explained in ((Outcome.TIMEOUT, True), (Outcome.CLOSED_LATE, True), (Outcome.RESET, False)):
        other = replace(ALLOWED, number=8, outcome=outcome, peer=None)
        assert (beyond(client_again(), calls=(ALLOWED, other)) == {}) is explained
