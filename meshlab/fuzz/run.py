"""``meshlab fuzz`` without its terminal: workers, each with a lab of its own, and the files that failures become."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from meshlab import __version__
from meshlab.errors import LabError, MeshlabError
from meshlab.fuzz.bench import Bench, with_outsider
from meshlab.fuzz.bugfile import name_of, written
from meshlab.fuzz.campaign import Campaign, Limits
from meshlab.fuzz.example import Example
from meshlab.fuzz.properties import Wrong
from meshlab.fuzz.shrink import Shrunk, shrunk
from meshlab.fuzz.tally import Failure, Tally
from meshlab.lab.sources import Source

_PROGRESS_S = 0.25
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
    return _alone(plan, progress) if plan.workers == 1 else _together(plan, progress)


# --- one worker ------------------------------------------------------------------------------------------------------


def _alone(plan: Plan, progress: Progress) -> Ended:
    began = time.monotonic()
    bench = Bench(plan.source, **plan.settings)
    reporter = _Reporter(bench, plan, began)
    campaign = Campaign(
        bench, seed=plan.seed, corpus=plan.corpus, limits=plan.limits, report=reporter, progress=_seldom(progress)
    )
    ended = Ended(campaign.tally)
    with bench:
        try:
            campaign.run()
        except KeyboardInterrupt:
            ended.interrupted = True
        last = bench.drop()
    if last and not ended.interrupted:
        campaign.tally.failures.append(reporter.unplayed(f"when the lab closed: {last}"))
    progress(campaign.tally)
    return ended


def _seldom(progress: Progress) -> Progress:
    last = 0.0

    def tell(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last > _PROGRESS_S:
            last = time.monotonic()
            progress(tally)

    return tell


@dataclass(slots=True)
class _Reporter:
    """Makes failures small and writes them; what has been written already is not new."""

    bench: Bench
    plan: Plan
    began: float
    _shapes: set[str] = field(default_factory=set)

    def __call__(self, example: Example, wrong: Sequence[Wrong], before: Example | None) -> Failure | None:
        evidence = self._evidence(wrong[0]) if wrong[0].kind == "lost" else ""
        small = shrunk(self.bench, example, wrong, before, self._patience_s())
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


def _together(plan: Plan, progress: Progress) -> Ended:
    """A process for each; an interrupt goes to all, and their reports are waited for."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Connection, Any] = {}
    for number in range(plan.workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, _part(plan, number)), name=f"meshlab-fuzz-{number}")
        process.start()
        theirs.close()
        pipes[ours] = process
    latest: dict[Connection, Tally] = {}
    ended, errors = Ended(Tally()), list[str]()
    tell = _seldom(progress)
    waiting, deadline = set(pipes), float("inf")
    while waiting and time.monotonic() < deadline:
        try:
            for pipe in wait(list(waiting), timeout=1.0):
                assert isinstance(pipe, Connection)
                try:
                    said = pipe.recv()
                except EOFError:
                    waiting.discard(pipe)
                    continue
                if isinstance(said, Tally):
                    latest[pipe] = said
                    tell(_sum(latest.values()))
                elif said == "interrupted":
                    ended.interrupted = True
                else:
                    errors.append(str(said))
        except KeyboardInterrupt:
            ended.interrupted, deadline = True, time.monotonic() + _PATIENCE_S
            for process in pipes.values():
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT)
    for process in pipes.values():
        process.join(_PATIENCE_S)
        process.kill()
    ended.tally = _sum(latest.values())
    if errors and not latest:
        raise LabError(errors[0])
    progress(ended.tally)
    return ended


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

    def once(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)
    try:
        ended = _alone(plan, pipe.send)
        pipe.send(ended.tally)
        if ended.interrupted:
            pipe.send("interrupted")
    except KeyboardInterrupt:
        pipe.send("interrupted")
    except MeshlabError as error:
        pipe.send(f"{error}")
    finally:
        from meshlab.kernel.forkserver import ForkServer

        ForkServer.close_shared()
        pipe.close()
