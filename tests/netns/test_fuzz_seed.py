"""The same seed in three campaigns, each on a lab of its own and with an empty corpus."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from meshlab.fuzz.campaign import Campaign, Limits
from meshlab.fuzz.tally import Tally
from meshlab.lab.sources import read
from meshlab.play.bench import Bench, with_outsider

_NUMBER = re.compile(r"^call \d+: ")
_REFUSED = re.compile(r": (connect-refused|reset|closed)( \([^;]*\))?; ")
"""Which of them a refused call ends in is chance."""

Seen = tuple[tuple[str, ...], tuple[str, ...]]
"""Of one example: the policies in effect at its end; its calls, each with how it ended, the verdict and its rule."""


def test_one_seed_gives_the_same_policies_and_the_same_verdict_of_each_call_three_times(tmp_path: Path) -> None:
    first, second, third = (_campaign(tmp_path / f"corpus-{number}", seed=3) for number in range(3))
    assert len(set(first)) == 6, "examples that are all alike would be the same with any seed"
    said = "\n".join(call for _, calls in first for call in calls)
    assert ": ok 200; the policies allow it (" in said
    assert ": refused; the policies deny it (" in said
    assert second == first
    assert third == first


def _campaign(corpus: Path, seed: int) -> list[Seen]:
    seen: list[Seen] = []
    calls_before = 0
    source = read("quickstart")

    def look(tally: Tally) -> None:
        nonlocal calls_before
        mesh, told = bench.lab.mesh, bench.lab.told(tally.calls - calls_before)
        assert len(told) == tally.calls - calls_before
        calls_before = tally.calls
        policies = map(repr, (*mesh.authorization_policies, *mesh.peer_authentications))
        seen.append((tuple(policies), tuple(map(_without_chance, told))))

    with Bench(replace(source, topology=with_outsider(source.topology))) as bench:
        limits = Limits(examples=6)
        campaign = Campaign(bench, seed=seed, corpus=corpus, limits=limits, report=lambda *_: None, progress=look)
        tally = campaign.run()
    assert (tally.examples, tally.repeated) == (6, 0)
    return seen


def _without_chance(sentence: str) -> str:
    return _REFUSED.sub(": refused; ", _NUMBER.sub("", sentence))
