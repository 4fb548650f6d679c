"""``meshlab fuzz`` without its terminal: workers, each with a lab of its own, and the files that failures become."""

from __future__ import annotations

import multiprocessing
import platform
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from meshlab import __version__
from meshlab.errors import HostNotReadyError, KernelRefusedError, LabError, MeshlabError
from meshlab.fuzz.bench import Bench, with_outsider
from meshlab.fuzz.bugfile import name_of, written
from meshlab.fuzz.campaign import Campaign, Limits
from meshlab.fuzz.example import Example
from meshlab.fuzz.properties import Wrong
from meshlab.fuzz.shrink import Shrunk, shrunk
from meshlab.fuzz.tally import Failure, Tally
from meshlab.kernel.forkserver import ForkServer
from meshlab.lab.sources import Source

_PROGRESS_S = 0.25
_LOOK_S = 0.5
_PATIENCE_S = 30.0
"""How long workers may take to end."""
_SHRINKING_S = 25.0
_LEAST_SHRINKING_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a campaign is told."""

    source: Source
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the labs: ``ztunnel``, ``mutant`` ..."""
    seed: int
    corpus: Path | None
    artifacts: Path
    """Where files of failures go."""
    limits: Limits
    workers: int = 1


Progress = Callable[[Tally], None]


@dataclass(slots=True)
class Ended:
    """How a campaign ended."""

    tally: Tally
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else self.tally.exit_code


def fuzz(plan: Plan, progress: Progress) -> Ended:
    """Run a campaign to its end, or until Ctrl-C; labs are closed in either case.

    Raises:
        MeshlabError: no lab can be opened.
    """
    plan = replace(plan, source=replace(plan.source, topology=with_outsider(plan.source.topology)))
    with _Interrupts() as interrupts:
        tally = _alone(plan, progress, interrupts) if plan.workers == 1 else _together(plan, progress, interrupts)
    return Ended(tally, interrupts.came)


class _Interrupts:
    """Ctrl-C while in a ``with``: noted, and acted upon where nothing is half done; a second one raises.

    Raised wherever it comes, it may come in a callback of the garbage collector, and is lost there.
    """

    came = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        return self.came

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            signal.default_int_handler(number, frame)
        self.came = True


# --- one worker ------------------------------------------------------------------------------------------------------


def _alone(plan: Plan, progress: Progress, stop: Callable[[], bool]) -> Tally:
    with Bench(plan.source, **plan.settings) as bench:
        reporter = Reporter(bench, plan, time.monotonic(), stop)
        campaign = Campaign(
            bench,
            seed=plan.seed,
            corpus=plan.corpus,
            limits=plan.limits,
            report=reporter,
            progress=_seldom(progress),
            stop=stop,
        )
        tally = campaign.run()
        last = bench.drop()
        if last and not tally.failures:
            tally.failures.append(reporter.unplayed(f"when the lab closed: {last}"))
    progress(tally)
    return tally


def _seldom(progress: Progress) -> Progress:
    last = 0.0

    def tell(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last > _PROGRESS_S:
            last = time.monotonic()
            progress(tally)

    return tell


@dataclass(slots=True)
class Reporter:
    """Makes failures small and writes them; what has been written already is not new."""

    bench: Bench
    plan: Plan
    began: float
    stop: Callable[[], bool] = lambda: False
    _shapes: set[str] = field(default_factory=set)

    def __call__(self, example: Example, wrong: Sequence[Wrong], before: Example | None) -> Failure | None:
        evidence = self._evidence(wrong[0]) if wrong[0].kind == "lost" else ""
        small = shrunk(self.bench, example, wrong, before, self._patience_s(), self.stop)
        name = name_of(small.topology, small.wrong.kind)
        if name in self._shapes:
            return None
        self._shapes.add(name)
        rate = "" if small.result == "failed" else f" ({small.failed} of {small.runs} times)"
        path = self._write(name, written(small.topology, self._comments(small, evidence)))
        return Failure(str(path), small.result, f"{small.wrong.text}{rate}")

    def unplayed(self, text: str) -> Failure:
        """A failure that no call shows: the topology itself, with the reason."""
        topology = self.bench.source.topology
        path = self._write(name_of(topology, "lost"), written(topology, [text, *self._versions()]))
        return Failure(str(path), "failed", text)

    def _patience_s(self) -> float:
        """Not much longer than the campaign itself would have gone on."""
        if self.plan.limits.seconds is None:
            return _SHRINKING_S
        left = self.began + self.plan.limits.seconds - time.monotonic()
        return min(_SHRINKING_S, max(_LEAST_SHRINKING_S, left))

    def _comments(self, small: Shrunk, evidence: str) -> list[str]:
        played = f"Failed {small.failed} of {small.runs} times. Play it again: meshlab replay THIS-FILE"
        mutant = self.plan.settings.get("mutant")
        return [
            small.wrong.text,
            played + (f" --mutant {mutant}" if mutant else ""),
            f"Found by `meshlab fuzz`, seed {self.plan.seed}{f', with the mutant {mutant}' if mutant else ''}.",
            *self._versions(),
            *([f"What the lab left: {evidence}"] if evidence else []),
        ]

    def _versions(self) -> list[str]:
        try:
            names = sorted(set(self.bench.lab.implementations.values()))
        except LabError:
            names = []
        return [f"meshlab {__version__}, {platform.system()} {platform.release()}, ztunnel: {', '.join(names)}"]

    def _evidence(self, wrong: Wrong) -> str:
        lab = self.bench.open
        folder = self.plan.artifacts / f"{self.plan.source.topology.name}-lost-{time.time_ns() // 10**6}"
        with suppress(MeshlabError, OSError):
            if lab is not None:
                lab.save(folder)
                (folder / "reason.txt").write_text(f"{wrong.text}\n", encoding="utf-8")
                return folder.name
        return ""

    def _write(self, name: str, text: str) -> Path:
        self.plan.artifacts.mkdir(parents=True, exist_ok=True)
        path = self.plan.artifacts / name
        path.write_text(text, encoding="utf-8")
        return path


# --- several ---------------------------------------------------------------------------------------------------------


def _together(plan: Plan, progress: Progress, stop: Callable[[], bool]) -> Tally:
    """A process for each. They are told to stop by a word in their pipe, or by its end."""
    workers = dict(_started(plan, number) for number in range(plan.workers))
    latest: dict[Connection, Tally] = {}
    errors: list[MeshlabError] = []
    tell, told = _seldom(progress), False
    waiting = set(workers)
    while waiting:
        enough = len(_sum(latest.values()).failures) >= plan.limits.failures
        if (stop() or enough) and not told:
            told = True
            for pipe in waiting:
                with suppress(OSError):
                    pipe.send(None)
        for ready in wait(list(waiting), timeout=_LOOK_S):
            assert isinstance(ready, Connection)
            try:
                said = ready.recv()
            except (EOFError, OSError):
                waiting.discard(ready)
                continue
            if isinstance(said, Tally):
                latest[ready] = said
                tell(_sum(latest.values()))
            else:
                errors.append(said)
    for process in workers.values():
        process.join(_PATIENCE_S)
        process.kill()
    if errors:
        raise errors[0]
    total = _sum(latest.values())
    progress(total)
    return total


def _started(plan: Plan, number: int) -> tuple[Connection, SpawnProcess]:
    """A worker that never sees Ctrl-C itself: what is ignored stays so in a new program."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, _part(plan, number)), name=f"meshlab-fuzz-{number}")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return ours, process


def _sum(tallies: Any) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    known: dict[str, Failure] = {failure.file: failure for failure in total.failures}
    total.failures = list(known.values())
    return total


def _part(plan: Plan, number: int) -> Plan:
    """What one worker does: its share of the examples, other ones."""
    limits = plan.limits
    if limits.examples is not None:
        share = limits.examples // plan.workers + (number < limits.examples % plan.workers)
        limits = replace(limits, examples=share)
    return replace(plan, workers=1, limits=limits, seed=plan.seed + number * 1_000_000_007)


def _work(pipe: Connection, plan: Plan) -> None:
    """One worker's process."""
    try:
        _alone(plan, pipe.send, pipe.poll)
    except (HostNotReadyError, KernelRefusedError) as error:
        pipe.send(HostNotReadyError(str(error)))
    except MeshlabError as error:
        pipe.send(LabError(str(error)))
    except BrokenPipeError:
        return  # who started this is gone
    finally:
        ForkServer.close_shared()
        pipe.close()
