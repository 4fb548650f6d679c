"""From a failing example to a small topology that still fails, and how often it does.

    of a history, its last few steps on a lab of its own: if these fail, steps are taken away on fresh labs
    stories of what may have led to it, the shortest first: the first that fails on a lab of its own
        --> policies, rules, values, steps taken away, one by one, on that lab
        --> pods taken away, each time on a fresh lab
        --> played twenty times, with every proof: failed, or flaky with a rate

Some faults hang on what a proxy met earlier, so that on a lab on which it failed once anything fails. Then each try has
a fresh lab. Whatever is tried has to fail by the same sign (``sign.py``), and is judged anew by the oracle, so that a
right proxy cannot fail what is left. Hypothesis shrinks the bytes that an example was read off, and needs a whole
example for each try; here one is a change of policies and one call, a few milliseconds, and what comes out are
manifests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from meshlab.errors import LabError
from meshlab.fuzz import histories
from meshlab.fuzz.example import Example
from meshlab.fuzz.histories import History
from meshlab.fuzz.reduce import fewer_pods, fewer_steps, plainer, reduced
from meshlab.fuzz.sign import Sign, seen_sign, sign_of
from meshlab.fuzz.stories import stories
from meshlab.model import Topology
from meshlab.play.bench import Bench
from meshlab.play.faults import Wrong
from meshlab.play.replay import RUNS, play, run_once

Known = Callable[[Sign, Sign], bool]
"""Whether a second sign is one by which the first is known again."""
_LABS = 2
"""Fresh labs on which what is written has failed."""
_CONFIRMING_S = 15.0
_SEEN_AGAIN = 3
"""A failure is first played so often; if it came every time, it counts as one that always comes."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A failing topology, and how often it failed."""

    topology: Topology
    wrong: Wrong
    runs: int
    failed: int
    cut_short: bool
    """Whether there was no time to make it as small as can be."""

    @property
    def result(self) -> str:
        return "failed" if self.failed == self.runs else "flaky"


def shrunk(
    bench: Bench,
    example: Example | History,
    wrong: Sequence[Wrong],
    before: Example | History | None,
    seconds: float = 25.0,
    stop: Callable[[], bool] = lambda: False,
) -> Shrunk:
    """The smallest topology found within ``seconds``, or until ``stop``, that shows what ``wrong`` tells of.

    The last story is given as it is where nothing fails on a fresh lab.
    """
    fitting = next((one for one in wrong if one.source), wrong[0])
    if isinstance(example, History):  # what is wrong later may follow from what was wrong first
        fitting = min((one for one in wrong if one.source), key=lambda one: one.stage, default=fitting)
    if fitting.kind == "lost":
        seconds /= 4  # each try may cost a lab
    shrinking = _Shrinking(bench, seen_sign(fitting), time.monotonic() + seconds, stop)
    alike = [fitting, *(one for one in wrong if one.kind == fitting.kind and one is not fitting)]
    for ending in histories.endings(example, alike) if isinstance(example, History) else ():
        small = shrinking.small_ending(ending)
        if small is not None and (found := shrinking.confirmed(small, fitting)).result == "failed":
            return found
    story, at_times = bench.source.topology, None
    for story in _told(bench.source.topology, example, alike, before):
        small = shrinking.small(story)
        if small is not None and (found := shrinking.confirmed(small, fitting)).failed:
            if found.result == "failed" or not isinstance(example, History):
                return found
            at_times = at_times or found  # what is missing in it may have been left by an earlier run on its lab
    return at_times or shrinking.confirmed(story, fitting)


def _told(
    base: Topology, example: Example | History, wrong: Sequence[Wrong], before: Example | History | None
) -> Iterator[Topology]:
    if isinstance(example, History):
        return histories.stories(example, wrong)
    return stories(base, example, wrong, before if isinstance(before, Example) else None)


@dataclass(slots=True)
class _Shrinking:
    """One failure while it is made smaller."""

    bench: Bench
    sign: Sign
    """Of what failed last, and so of what is looked for."""
    until: float
    stop: Callable[[], bool]
    tries: int = field(default=1)
    """So often a candidate is played before it counts as one that holds."""

    def small_ending(self, ending: Topology) -> Topology | None:
        """As ``small`` of a few steps of a history. A lab on which they have failed once is not trusted any more.

        What starts again or comes again leaves its traces, so steps are taken away on fresh labs.
        """
        known = self.sign
        if not self._fails_afresh(ending, Sign.is_alike):
            return None
        fewer = reduced(ending, self._fails_afresh, ways_of=fewer_steps)
        told = self.sign
        with self.bench.on(fewer) as own:
            plain = reduced(fewer, lambda candidate: self._fails_on(own, candidate), ways_of=plainer)
        if self._fails_always(plain):
            return plain
        self.sign = told
        if self._fails_always(fewer) or not self._in_time:
            return fewer
        self.sign = known
        return None

    def small(self, story: Topology) -> Topology | None:
        """A small topology that fails as ``story`` does, on every fresh lab; ``None`` where there is none."""
        if not self._in_time:
            return None
        with self.bench.on(story) as own:
            rate = self._rate(own, story)
            if not rate:
                return None
            self.tries = 1 if rate == 1 else min(RUNS, round(_SEEN_AGAIN / rate))
            told = self.sign
            here = reduced(story, lambda candidate: self._fails_on(own, candidate))
        if self._fails_always(here):
            return self._with_few_pods(here)
        if not self._in_time:
            return here
        self.sign = told
        return self._with_few_pods(reduced(self._with_few_pods(story), self._fails_afresh))

    def _rate(self, own: Bench, topology: Topology) -> float:
        """How often it fails: of three times, or of twenty, if it was not always; a lab that is lost costs too much."""
        first = [self._once(own, topology, Sign.is_alike) for _ in range(_SEEN_AGAIN)]
        if all(first) or (self.sign.kind == "lost" and not any(first)):
            return float(all(first))
        more = [self._once(own, topology, Sign.is_alike) for _ in range(RUNS - _SEEN_AGAIN) if self._in_time]
        return (sum(first) + sum(more)) / (len(first) + len(more))

    def _with_few_pods(self, topology: Topology) -> Topology:
        """With as few pods as fail on every lab of their own."""
        for fewer in fewer_pods(topology):
            if self._fails_always(fewer, Sign.is_alike):  # its policies are the same, but for moved blocks
                return fewer
        return topology

    def _fails_always(self, topology: Topology, known: Known = Sign.is_kept_by) -> bool:
        return all(self._fails_afresh(topology, known) for _ in range(_LABS))

    def _fails_on(self, bench: Bench, topology: Topology, known: Known = Sign.is_kept_by) -> bool:
        return self._in_time and any(self._once(bench, topology, known) for _ in range(self.tries))

    def _fails_afresh(self, topology: Topology, known: Known = Sign.is_kept_by) -> bool:
        """On a lab of its own."""
        if not self._in_time:
            return False
        with self.bench.on(topology) as fresh:
            return self._fails_on(fresh, topology, known)

    def confirmed(self, topology: Topology, wrong: Wrong) -> Shrunk:
        """As ``meshlab replay`` would play it, on more labs than one; fewer times where that takes too long."""
        cut_short = not self._in_time
        runs: list[list[Wrong]] = []
        until = time.monotonic() + _CONFIRMING_S
        for _ in range(_LABS):
            with self.bench.on(topology) as fresh:
                for _ in range(RUNS // _LABS):
                    if runs and (time.monotonic() > until or self.stop()):
                        break
                    runs.append(run_once(fresh, topology)[0])
        failed = [one for one in runs if one]
        seen = [one for run in failed for one in run]
        named = next((one for one in seen if self.sign.is_alike(seen_sign(one))), seen[0] if seen else wrong)
        return Shrunk(topology, named, len(runs), len(failed), cut_short)

    @property
    def _in_time(self) -> bool:
        return time.monotonic() < self.until and not self.stop()

    def _once(self, bench: Bench, topology: Topology, known: Known) -> bool:
        """Whether it fails by a sign by which the failure is known; what is kept is then known by that one."""
        signs = [sign_of(topology, one) for one in self._played(bench, topology)]
        found = next((sign for sign in signs if known(self.sign, sign)), None)
        self.sign = found or self.sign
        return found is not None

    def _played(self, bench: Bench, topology: Topology) -> list[Wrong]:
        if self.sign.kind != "verdict":
            return run_once(bench, topology)[0]
        try:
            return play(bench.lab, topology, prove=False)[0]
        except LabError:
            bench.drop()
            return []
