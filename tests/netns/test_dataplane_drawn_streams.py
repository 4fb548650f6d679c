"""What any right data plane does with a hundred connections at once that are slow, silent, old, one-sided or many."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
from drawn_streams import CONNECTIONS, draw, is_varied, wrong
from stream_players import LAB, play

from meshlab.model import Outcome
from meshlab.model.report import Result

if TYPE_CHECKING:
    from meshlab.lab import Lab

LabFactory = Callable[..., AbstractContextManager["Lab"]]
SEEDS = [int(seed) for seed in os.environ.get("MESHLAB_STREAMS", "1").split(",")]


@pytest.mark.meshlab_dataplane
@pytest.mark.parametrize("seed", SEEDS)
def test_a_connection_is_what_tcp_says_it_is_until_a_policy_ends_it(lab_factory: LabFactory, seed: int) -> None:
    scripts = draw(seed, CONNECTIONS)
    assert is_varied(scripts), "another seed, please"
    with lab_factory(LAB) as lab:
        with lab.capture() as capture:
            played = play(lab, scripts)
            call = lab.pod("shop/other").http("http://shop/echo:8080/")
        proofs = capture.nothing_in_clear([call])
    found = wrong(scripts, played.seen)
    assert not found, "\n".join([f"{len(found)} faults of {len(scripts)} connections, seed {seed}:", *found[:20]])
    assert played.denied.outcome in Outcome.REFUSED, "a policy holds also when nothing has changed for a while"
    assert {proof.result for proof in proofs} == {Result.HELD}, [proof.reason for proof in proofs]
