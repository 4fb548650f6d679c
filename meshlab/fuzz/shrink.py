"""From a failing example to a small topology that still fails, and how often it does.

    a story: the failing call with the policies of its stage; else with what came before them
        --> policies, rules, values, steps taken away, one by one, on the lab that failed
        --> pods that no step names taken away, on labs of their own
        --> played twenty times, with every proof: failed, or flaky with a rate

Some faults hang on what a proxy met earlier, so that on the lab that failed anything fails. Then each try has a fresh
lab. Hypothesis shrinks the bytes that an example was read off, and needs a whole example for each try; here one is a
change of policies and one call, a few milliseconds, and what comes out are manifests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from meshlab.errors import LabError
from meshlab.fuzz.bench import Bench
from meshlab.fuzz.choose import Chosen
from meshlab.fuzz.example import Example, Stage
from meshlab.fuzz.properties import Wrong
from meshlab.fuzz.reduce import expecting, reduced, with_called_pods_only
from meshlab.fuzz.replay import RUNS, play, run_once
from meshlab.model import CallStep, PolicyStep, Step, Topology

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
    for story in _stories(bench.source.topology, example, fitting, before):
        small = shrinking.small(story)
        if small is not None:
            return _confirmed(bench, small, fitting)
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
        rate = self._rate(story)
        if not rate:
            return None
        self.tries = 1 if rate == 1 else min(RUNS, round(_SEEN_AGAIN / rate))
        here = reduced(story, self._fails_here)
        found = self._few_pods(here)
        if found is None and not self._in_time:
            return here
        if found is None and (start := self._few_pods(story)) is not None:
            return reduced(start, self._fails_afresh)
        return found

    def _rate(self, topology: Topology) -> float:
        """How often it fails: of three times, or of twenty, if it was not always; a lab that is lost costs too much."""
        first = [self._once(self.bench, topology) for _ in range(_SEEN_AGAIN)]
        if all(first) or (self.kind == "lost" and not any(first)):
            return float(all(first))
        more = [self._once(self.bench, topology) for _ in range(RUNS - _SEEN_AGAIN)]
        return (sum(first) + sum(more)) / RUNS

    def _few_pods(self, topology: Topology) -> Topology | None:
        """With as few pods as fail on every lab of their own."""
        for fewer in map(expecting, _small_worlds(topology)):
            if all(self._fails_afresh(fewer) for _ in range(_LABS)):
                return fewer
        return None

    def _fails_here(self, topology: Topology) -> bool:
        return self._in_time and any(self._once(self.bench, topology) for _ in range(self.tries))

    def _fails_afresh(self, topology: Topology) -> bool:
        """In whatever way."""
        if not self._in_time:
            return False
        with self.bench.on(topology) as fresh:
            return any(run_once(fresh, topology)[0] for _ in range(self.tries))

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


# --- stories ---------------------------------------------------------------------------------------------------------


def _stories(base: Topology, example: Example, wrong: Wrong, before: Example | None) -> Iterator[Topology]:
    """What may have led to ``wrong``, the shortest first."""
    stages = list(example.stages)
    at = next((place for place, stage in enumerate(stages) if _calls(stage, wrong)), 0)
    stage = stages[at]
    call = [_step(one) for one in _calls(stage, wrong)] or [_step(one) for one in stage.calls]
    yield _told(base, [(stage, call)])
    earlier = [*(before.stages if before else ()), *stages[:at]]
    if earlier:
        yield _told(base, [(earlier[-1], call), (stage, call)])
        yield _told(base, [(earlier[-1], _every(earlier[-1])), (stage, _every(stage))])
    yield _told(base, [(each, _every(each)) for each in stages])


def _calls(stage: Stage, wrong: Wrong) -> list[Chosen]:
    ends = (wrong.source, wrong.to, wrong.family)
    return [one for one in stage.calls if (one.call.source.key, one.call.to, one.call.family) == ends]


def _every(stage: Stage) -> list[CallStep]:
    return [_step(one) for one in stage.calls]


def _step(one: Chosen) -> CallStep:
    call = one.call
    return CallStep(source=call.source.key, to=call.to, family=call.family, expect=one.decision.verdict)


def _told(base: Topology, stages: Sequence[tuple[Stage, Sequence[CallStep]]]) -> Topology:
    (first, calls), *rest = stages
    steps: list[Step] = [*calls]
    for stage, more in rest:
        change = PolicyStep(
            authorization_policies=stage.mesh.authorization_policies,
            peer_authentications=stage.mesh.peer_authentications,
            replaces=True,
        )
        steps += [change, *more]
    return expecting(replace(base, mesh=first.mesh, expect=(), steps=tuple(steps)))


# --- fewer pods, and the end -----------------------------------------------------------------------------------------


def _small_worlds(topology: Topology) -> Iterator[Topology]:
    """Only pods that a step names; or those and one more, which makes the same calls from the same node."""
    yield with_called_pods_only(topology)
    mesh = topology.mesh
    steps = [step for step in topology.steps if isinstance(step, CallStep)]
    named = {step.source for step in steps} | {step.to.rpartition(":")[0] for step in steps}
    nodes = [mesh.pod(steps[-1].source).node, *(mesh.pod(key).node for key in sorted(named))]
    others = [pod for pod in mesh.pods if pod.key not in named and pod.node in nodes and mesh.is_enrolled(pod)]
    for other in sorted(others, key=lambda pod: nodes.index(pod.node)):
        more = tuple(replace(step, source=other.key) for step in steps)
        yield with_called_pods_only(replace(topology, steps=(*topology.steps, *more)))
    yield topology


def _confirmed(bench: Bench, topology: Topology, wrong: Wrong) -> Shrunk:
    """As ``meshlab replay`` would play it, on more labs than one."""
    runs: list[list[Wrong]] = []
    for _ in range(_LABS):
        with bench.on(topology) as fresh:
            runs += [run_once(fresh, topology)[0] for _ in range(RUNS // _LABS)]
    failed = [one for one in runs if one]
    return Shrunk(topology, failed[0][0] if failed else wrong, len(runs), len(failed))
