"""Calls of one pair at one time do not vouch for each other: the tunnel must have carried the bytes of all of them."""

from __future__ import annotations

from dataclasses import replace

import capture_scenes as scenes
import pytest

from meshlab.model import Call, Outcome, direct
from meshlab.model.report import Result
from meshlab.proofs import verdicts
from meshlab.proofs.cohorts import Cohort, alone, cohorts

SCRIPT = scenes.play(scenes.SCENES["clean"])
CALL = scenes.call(SCRIPT, 1)


def call(number: int, started_ns: int, ended_ns: int, sent: int = 100, got: int = 50) -> Call:
    return replace(
        CALL,
        number=number,
        started_ns=started_ns,
        ended_ns=ended_ns,
        sent_bytes=sent,
        body=bytes(got),
        body_bytes=got,
        peer=None,
    )


def test_calls_that_overlap_are_one_cohort_and_the_next_begins_when_all_have_ended() -> None:
    calls = [call(1, 0, 10), call(2, 5, 20), call(3, 15, 18), call(4, 21, 30)]
    found = cohorts((one, "shop/server") for one in calls)
    assert found[1] is found[2] is found[3]
    assert (found[1].started_ns, found[1].ended_ns, found[1].calls) == (0, 20, 3)
    assert found[4] == alone(calls[3])


def test_calls_of_other_pairs_and_families_are_other_cohorts() -> None:
    calls = [(call(1, 0, 10), "shop/a"), (call(2, 0, 10), "shop/b"), (replace(call(3, 0, 10), family=6), "shop/a")]
    assert {cohort.calls for cohort in cohorts(calls).values()} == {1}


@pytest.mark.parametrize("outcome", [Outcome.RESET, Outcome.TIMEOUT], ids=str)
def test_a_call_that_was_not_answered_has_sent_nothing_for_sure_but_its_question(outcome: Outcome) -> None:
    refused = alone(replace(call(1, 0, 10), outcome=outcome))
    assert (refused.there_bytes, refused.back_bytes) == (9, 9)
    assert (alone(call(1, 0, 10)).there_bytes, alone(call(1, 0, 10)).back_bytes) == (109, 59)


def test_a_cohort_that_sent_more_than_its_tunnel_carried_went_another_way() -> None:
    window, wiring = scenes.window_of(scenes.as_pcapng("clean")), scenes.wiring()
    small = Cohort(CALL.started_ns, CALL.ended_ns, 2, 100, 100)
    assert verdicts.encrypted(window, wiring, CALL, scenes.to_server(CALL), small).result is Result.HELD
    for large in (replace(small, there_bytes=10**6), replace(small, back_bytes=10**6)):
        for prove in (verdicts.encrypted, verdicts.path):
            proof = prove(window, wiring, CALL, scenes.to_server(CALL), large)
            assert (proof.result, "2 calls of that time sent" in proof.reason) == (Result.FAILED, True)
            assert "on node-1:shop/client: one of them went another way" in proof.reason


@pytest.mark.parametrize("first", ["shop/intruder", "shop/server"])
def test_a_call_that_may_have_reached_one_of_two_pods_is_looked_for_at_both(first: str) -> None:
    """The tunnel to the other one carries something at the same time, and too little to be this call."""
    script, tls = scenes.Script(), scenes.recorded_tls()
    ways = {
        "shop/intruder": [scenes.CLIENT, scenes.INTRUDER],
        "shop/server": [scenes.CLIENT, scenes.FABRIC_1, scenes.FABRIC_2, scenes.SERVER],
    }
    for port, (pod, way) in enumerate(ways.items(), 40000):
        tunnel = scenes.Tcp(script, "shop/client", pod, port, 15008, way)
        tunnel.open()
        tunnel.say(tls.hello)
        tunnel.say(tls.server, back=True)
        tunnel.say(tls.finished + (tls.bulk if pod == "shop/server" else b""))
    window = scenes.window_of(scenes.as_file(script))
    paths = sorted((direct("shop/client", pod, 8080) for pod in ways), key=lambda path: path.server.pod != first)
    one = call(1, scenes.T0, script.now_ns(), sent=len(tls.bulk) // 2)
    for prove in (verdicts.encrypted, verdicts.path):
        assert prove(window, scenes.wiring(), one, paths).result is Result.HELD
        lost = prove(window, scenes.wiring(), replace(one, sent_bytes=10**7), paths)
        assert (lost.result, "went another way" in lost.reason) == (Result.FAILED, True)
