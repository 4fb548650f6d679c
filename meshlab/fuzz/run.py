"""``meshlab fuzz`` without its terminal: workers, each with a lab of its own, and the files that failures become."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from meshlab.errors import HostNotReadyError, KernelRefusedError, LabError, MeshlabError
from meshlab.fuzz.campaign import Campaign
from meshlab.fuzz.plan import Plan
from meshlab.fuzz.reporter import Reporter
from meshlab.fuzz.tally import Tally
from meshlab.kernel.forkserver import ForkServer
from meshlab.play.bench import Bench, with_outsider
from meshlab.strategies.histories import with_echo_image

_PROGRESS_S = 0.25
_LOOK_S = 0.5
_PATIENCE_S = 30.0
"""How long workers may take to end."""
_UNFINISHED = 3
"""Exit code: nothing was wrong, as far as it went."""
_ENDED = "ended"
"""A worker's last word."""
_STOP = "stop"
_ENOUGH = "enough"
"""Stop; and what is being made small is not wanted any more."""


Progress = Callable[[Tally], None]


@dataclass(slots=True)
class Ended:
    """How a campaign ended."""

    tally: Tally
    interrupted: bool = False
    errors: Sequence[str] = ()
    """Of workers that could not go on."""

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        return self.tally.exit_code or (_UNFINISHED if self.errors else 0)


def fuzz(plan: Plan, progress: Progress) -> Ended:
    """Run a campaign to its end, or until Ctrl-C; labs are closed in either case.

    Raises:
        MeshlabError: no lab can be opened.
    """
    topology = with_outsider(plan.source.topology)
    if plan.histories:
        topology = with_echo_image(topology)
    plan = replace(plan, source=replace(plan.source, topology=topology))
    errors: list[MeshlabError] = []
    with _Interrupts() as interrupts:
        if plan.workers == 1:
            tally = _alone(plan, progress, interrupts)
        else:
            tally, errors = _together(plan, progress, interrupts)
    if errors and not tally.examples:
        raise errors[0]
    return Ended(tally, interrupts.came, [str(error) for error in errors])


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


def _alone(
    plan: Plan, progress: Progress, stop: Callable[[], bool], unwanted: Callable[[], bool] = lambda: False
) -> Tally:
    with Bench(plan.source, **plan.settings) as bench:
        reporter = Reporter(bench, plan, time.monotonic(), stop, unwanted)
        campaign = Campaign(
            bench,
            seed=plan.seed,
            corpus=plan.corpus,
            limits=plan.limits,
            report=reporter,
            histories=plan.histories,
            progress=_seldom(progress),
            stop=stop,
        )
        tally = campaign.run()
        if campaign.gone:
            tally.failures.append(reporter.unplayed(campaign.gone))
        if last := bench.drop():
            tally.failures.append(reporter.unplayed(f"when the lab closed: {last}"))
    progress(tally)
    return tally


def _seldom(progress: Progress) -> Progress:
    last = 0.0

    def tell(tally: Tally) -> None:
        nonlocal last
        if tally.doing or time.monotonic() - last > _PROGRESS_S:
            last = time.monotonic()
            progress(tally)

    return tell


# --- several ---------------------------------------------------------------------------------------------------------


def _together(plan: Plan, progress: Progress, stop: Callable[[], bool]) -> tuple[Tally, list[MeshlabError]]:
    """A process for each. They are told to stop by a word in their pipe, or by its end."""
    workers = dict(_started(plan, number) for number in range(plan.workers))
    latest: dict[Connection, Tally] = {}
    errors: list[MeshlabError] = []
    tell, told = _seldom(progress), False
    waiting, ended = set(workers), set[Connection]()
    while waiting:
        enough = len(_sum(latest.values()).failures) >= plan.limits.failures
        if (stop() or enough) and not told:
            told = True
            for pipe in waiting:
                with suppress(OSError):
                    pipe.send(_ENOUGH if enough else _STOP)
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
                ended.add(ready)
                errors += [said] if isinstance(said, MeshlabError) else []
    for pipe, process in workers.items():
        process.join(_PATIENCE_S)
        process.kill()
        if pipe not in ended:
            errors.append(LabError(f"{process.name} ended without a word, exit status {process.exitcode}"))
    total = _sum(latest.values())
    progress(total)
    return total, errors


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
    surest = sorted(total.failures, key=lambda failure: failure.result == "failed")  # of one file the last stays
    total.failures = list({failure.file: failure for failure in surest}.values())
    return total


def _part(plan: Plan, number: int) -> Plan:
    """What one worker does: its share of the examples, other ones."""
    limits = plan.limits
    if limits.examples is not None:
        share = limits.examples // plan.workers + (number < limits.examples % plan.workers)
        limits = replace(limits, examples=share)
    return replace(plan, workers=1, limits=limits, seed=plan.seed + number * 1_000_000_007)


@dataclass(slots=True)
class _Told:
    """What this worker was told by the one that started it; whether it was told anything."""

    pipe: Connection
    word: str = ""

    def __call__(self) -> bool:
        if not self.word and self.pipe.poll():
            try:
                self.word = self.pipe.recv()
            except EOFError:
                self.word = _STOP
        return bool(self.word)

    def enough(self) -> bool:
        return self() and self.word == _ENOUGH


def _end_with_who_started_this() -> None:
    """Whoever was killed has nobody end the workers in order; labs end with their owner, which is this process."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(pipe: Connection, plan: Plan) -> None:
    """One worker's process."""
    threading.Thread(target=_end_with_who_started_this, daemon=True).start()
    try:
        told = _Told(pipe)
        _alone(plan, pipe.send, told, told.enough)
        pipe.send(_ENDED)
    except (HostNotReadyError, KernelRefusedError) as error:
        pipe.send(HostNotReadyError(str(error)))
    except BrokenPipeError:
        return  # who started this is gone
    except (MeshlabError, OSError) as error:
        pipe.send(LabError(str(error)))
    finally:
        ForkServer.close_shared()
        pipe.close()
