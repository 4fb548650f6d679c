"""Identity has a grade, and is never held at one below what was asked for."""

from __future__ import annotations

import capture_scenes as scenes
import pytest

from meshlab.model import SpiffeId
from meshlab.model.report import Grade, Result
from meshlab.proofs import verdicts

CLIENT = SpiffeId("cluster.local", "shop", "client")
CALL = scenes.call(scenes.play(scenes.SCENES["clean"]), 1)


@pytest.mark.parametrize(
    ("seen", "grade", "at_least", "packets", "result", "says"),
    [
        (CLIENT, Grade.PEER, Grade.PEER, 9, Result.HELD, "sa/client, grade peer"),
        (str(CLIENT), Grade.CLAIM, Grade.CLAIM, 9, Result.HELD, "grade claim"),
        (CLIENT, Grade.KEYS, Grade.CLAIM, 9, Result.HELD, "grade keys"),
        (
            CLIENT,
            Grade.CLAIM,
            Grade.PEER,
            9,
            Result.CANNOT_TELL,
            "asked for at least peer; do so",
        ),
        (CLIENT, Grade.CLAIM, Grade.KEYS, 9, Result.CANNOT_TELL, "known at grade claim"),
        (None, Grade.PEER, Grade.PEER, 9, Result.CANNOT_TELL, "nobody saw the peer's certificate; do so"),
        (CLIENT, Grade.PEER, Grade.PEER, 0, Result.CANNOT_TELL, "no packet of the call was seen"),
        ("spiffe://x/ns/a/sa/b", Grade.CLAIM, Grade.PEER, 9, Result.FAILED, "the peer was spiffe://x/ns/a/sa/b"),
    ],
)
def test_it_holds_only_where_it_was_seen_well_enough(
    seen: SpiffeId | str | None, grade: Grade, at_least: Grade, packets: int, result: Result, says: str
) -> None:
    proof = verdicts.identity(
        CALL, CLIENT, seen, grade, at_least=at_least, packets=packets, control="it was verified", how="do so"
    )
    assert (proof.result, says in proof.reason) == (result, True)
    assert proof.grade is grade


def test_a_held_identity_needs_a_control() -> None:
    proof = verdicts.identity(CALL, CLIENT, CLIENT, Grade.PEER, packets=9, control="")
    assert proof.result is Result.CANNOT_TELL


def test_the_packets_of_a_call_are_counted_for_proofs_that_see_no_packets_themselves() -> None:
    window = scenes.window_of(scenes.as_pcapng("clean"))
    assert verdicts.tunnel_packets(window, scenes.wiring(), CALL, scenes.SERVER_8080) > 4
