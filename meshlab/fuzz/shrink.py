"""From a failing example to a small topology that still fails, and how often it does.

    stories of what may have led to it, the shortest first: the first that fails on a lab of its own
        --> policies, rules, values, steps taken away, one by one, on that lab
        --> pods taken away, each time on a fresh lab
        --> played twenty times, with every proof: failed, or flaky with a rate

Some faults hang on what a proxy met earlier, so that on a lab on which it failed once anything fails. Then each try has
a fresh lab. Hypothesis shrinks the bytes that an example was read off, and needs a whole example for each try; here one
is a change of policies and one call, a few milliseconds, and what comes out are manifests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from meshlab.errors import LabError
from meshlab.fuzz.bench import Bench
from meshlab.fuzz.example import Example
from meshlab.fuzz.properties import Wrong
from meshlab.fuzz.reduce import called, expecting, reduced, with_pods, without_services
from meshlab.fuzz.replay import RUNS, play, run_once
from meshlab.fuzz.stories import stories
from meshlab.model import CallStep, Topology

_LABS = 2
"""Fresh labs on which what is written has failed."""
_SEEN_AGAIN = 3
"""A failure is first played so often; if it came every time, it counts as one that always comes."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A failing topology, and how often it failed."""

    topology: Topology
    wrong: Wrong
    runs: int
    failed: int

    @property
    def result(self) -> str:
        return "failed" if self.failed == self.runs else "flaky"


def shrunk(
    bench: Bench,
    example: Example,
    wrong: Sequence[Wrong],
    before: Example | None,
    seconds: float = 25.0,
    stop: Callable[[], bool] = lambda: False,
) -> Shrunk:
    """The smallest topology found within ``seconds``, or until ``stop``, that shows what ``wrong`` tells of.

    The last story is given as it is where nothing fails on a fresh lab.
    """
    fitting = next((one for one in wrong if one.source), wrong[0])
    if fitting.kind == "lost":
        seconds /= 4  # each try may cost a lab
    shrinking = _Shrinking(bench, fitting.kind, time.monotonic() + seconds, stop)
    story = bench.source.topology
    alike = [fitting, *(one for one in wrong if one.kind == fitting.kind and one is not fitting)]
    for story in stories(bench.source.topology, example, alike, before):
        small = shrinking.small(story)
        if small is not None and (found := _confirmed(bench, small, fitting)).failed:
            return found
    return _confirmed(bench, story, fitting)


@dataclass(slots=True)
class _Shrinking:
    """One failure while it is made smaller."""

    bench: Bench
    kind: str
    until: float
    stop: Callable[[], bool]
    tries: int = field(default=1)
    """So often a candidate is played before it counts as one that holds."""

    def small(self, story: Topology) -> Topology | None:
        """A small topology that fails as ``story`` does, on every fresh lab; ``None`` where there is none."""
        if not self._in_time:
            return None
        with self.bench.on(story) as own:
            rate = self._rate(own, story)
            if not rate:
                return None
            self.tries = 1 if rate == 1 else min(RUNS, round(_SEEN_AGAIN / rate))
            here = reduced(story, lambda candidate: self._fails_on(own, candidate))
        if self._fails_always(here):
            return self._with_few_pods(here)
        if not self._in_time:
            return here
        return self._with_few_pods(reduced(self._with_few_pods(story), self._fails_afresh))

    def _rate(self, own: Bench, topology: Topology) -> float:
        """How often it fails: of three times, or of twenty, if it was not always; a lab that is lost costs too much."""
        first = [self._once(own, topology) for _ in range(_SEEN_AGAIN)]
        if all(first) or (self.kind == "lost" and not any(first)):
            return float(all(first))
        more = [self._once(own, topology) for _ in range(RUNS - _SEEN_AGAIN)]
        return (sum(first) + sum(more)) / RUNS

    def _with_few_pods(self, topology: Topology) -> Topology:
        """With as few pods as fail on every lab of their own."""
        for fewer in _small_worlds(topology):
            if self._fails_always(fewer):
                return fewer
        return topology

    def _fails_always(self, topology: Topology) -> bool:
        return all(self._fails_afresh(topology) for _ in range(_LABS))

    def _fails_on(self, bench: Bench, topology: Topology) -> bool:
        return self._in_time and any(self._once(bench, topology) for _ in range(self.tries))

    def _fails_afresh(self, topology: Topology) -> bool:
        """On a lab of its own."""
        if not self._in_time:
            return False
        with self.bench.on(topology) as fresh:
            return self._fails_on(fresh, topology)

    @property
    def _in_time(self) -> bool:
        return time.monotonic() < self.until and not self.stop()

    def _once(self, bench: Bench, topology: Topology) -> bool:
        """In the way that is looked for."""
        try:
            if self.kind == "verdict":
                return bool(play(bench.lab, topology, prove=False)[0])
        except LabError:
            bench.drop()
            return False
        return any(one.kind == self.kind for one in run_once(bench, topology)[0])


def _small_worlds(topology: Topology) -> Iterator[Topology]:
    """Only pods that a step names; or those and one more, which may make the same calls after them."""
    named = called(topology)
    if len(named) == len(topology.mesh.pods) and not topology.mesh.services:
        return
    yield without_services(with_pods(topology, named))
    if topology.mesh.services:
        yield with_pods(topology, named)
    others = [pod for pod in topology.mesh.pods if pod.key not in named]
    for other in others:
        yield with_pods(topology, {*named, other.key})
    steps = [step for step in topology.steps if isinstance(step, CallStep)]
    for other in filter(topology.mesh.is_enrolled, others):
        more = tuple(replace(step, source=other.key) for step in steps)
        yield expecting(with_pods(replace(topology, steps=(*topology.steps, *more)), {*named, other.key}))


def _confirmed(bench: Bench, topology: Topology, wrong: Wrong) -> Shrunk:
    """As ``meshlab replay`` would play it, on more labs than one."""
    runs: list[list[Wrong]] = []
    for _ in range(_LABS):
        with bench.on(topology) as fresh:
            runs += [run_once(fresh, topology)[0] for _ in range(RUNS // _LABS)]
    failed = [one for one in runs if one]
    return Shrunk(topology, failed[0][0] if failed else wrong, len(runs), len(failed))
