"""A topology file played: its rows of ``spec.expect`` and its ``spec.steps``, call by call, and what was wrong.

FIXED        every run was as the file says                     0
FAILED       none was                                           1
FLAKY        some were, and how many                            4
CANNOT-RUN   no lab can run it here, or it may not be run       3
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from meshlab.errors import (
    CannotTellError,
    HostNotReadyError,
    KernelRefusedError,
    LabError,
    ProofFailedError,
    RejectedError,
)
from meshlab.lab import Lab
from meshlab.lab.proving.evidence import Evidence, save_somewhere
from meshlab.lab.sources import Source
from meshlab.model import CallStep, Expectation, Step, Topology
from meshlab.model.report import SCHEMA_VERSION
from meshlab.play.bench import Bench
from meshlab.play.faults import Wrong
from meshlab.play.player import Player

RUNS = 20
"""How often a file is played, to tell what fails from what fails at times."""


class Word(StrEnum):
    """What a replay comes to."""

    FIXED = "FIXED"
    FAILED = "FAILED"
    FLAKY = "FLAKY"
    CANNOT_RUN = "CANNOT-RUN"

    @property
    def exit_code(self) -> int:
        return {Word.FIXED: 0, Word.FAILED: 1, Word.FLAKY: 4, Word.CANNOT_RUN: 3}[self]


@dataclass(frozen=True, slots=True)
class Played:
    """What all runs of one file came to."""

    word: Word
    runs: int = 0
    failed: int = 0
    reasons: tuple[str, ...] = ()
    """What was wrong in the first run in which anything was, or why nothing could be run."""
    implementations: tuple[str, ...] = ()
    artifacts: str | None = None
    """The folder with what a run saw: the first in which anything was wrong and whose lab was still there, or any."""
    unsaved: tuple[str, ...] = ()
    """What is missing there, each with the reason."""

    def to_json(self) -> dict[str, Any]:
        return {
            "schemaVersion": SCHEMA_VERSION,
            "result": self.word.value,
            "runs": self.runs,
            "failed": self.failed,
            "reasons": list(self.reasons),
            "implementations": list(self.implementations),
            "artifacts": self.artifacts,
            "unsaved": list(self.unsaved),
        }


def steps_of(topology: Topology) -> tuple[Step, ...]:
    """Rows of ``spec.expect``, then ``spec.steps``."""
    return (*map(_row, topology.expect), *topology.steps)


def _row(row: Expectation) -> CallStep:
    return CallStep(source=row.source, to=row.to, expect=row.verdict, family=row.family)


def replay(source: Source, runs: int = RUNS, artifacts: Path | None = None, **settings: Any) -> Played:
    """Play the file ``runs`` times in one lab; a lab that is lost fails its run, and another goes on.

    Args:
        artifacts: where to save captures, logs and rules, also if nothing was wrong; else only where something was.

    Raises:
        UsageError: a setting names nothing.
    """
    kept: Evidence | None = None
    found: list[tuple[list[Wrong], str]] = []
    with Bench(source, **{"allow_pending": False, **settings}) as bench:
        try:
            names = tuple(sorted(set(bench.lab.implementations.values())))
        except (HostNotReadyError, KernelRefusedError, LabError) as error:
            return Played(Word.CANNOT_RUN, reasons=(str(error),))
        for _ in range(runs):
            found.append(run_once(bench, source.topology))
            if found[-1][0] and bench.open and kept is None:
                kept = save_somewhere(bench.open, artifacts, source.topology.name)
        if bench.open and kept is None and artifacts is not None:
            kept = save_somewhere(bench.open, artifacts, source.topology.name)
        late = bench.drop()
    played = replace(_played(found, late), implementations=names)
    return replace(played, artifacts=str(kept.folder), unsaved=tuple(kept.unsaved)) if kept else played


def _played(found: Sequence[tuple[list[Wrong], str]], late: str) -> Played:
    """What runs came to, and what was wrong with the lab when it closed."""
    runs = len(found)
    wrong = [one for one, _ in found if one]
    doubts = [doubt for one, doubt in found if doubt and not one]
    if late and not wrong:
        return Played(Word.FAILED, runs, runs, (f"when the lab closed: {late}",))
    if not wrong and doubts:
        return Played(Word.CANNOT_RUN, runs, 0, (f"it could not be told: {doubts[0]}",))
    word = Word.FIXED if not wrong else Word.FAILED if len(wrong) == runs else Word.FLAKY
    return Played(word, runs, len(wrong), tuple(one.text for one in wrong[0]) if wrong else ())


def run_once(bench: Bench, topology: Topology) -> tuple[list[Wrong], str]:
    """One run, from the policies of the file on: what was wrong, and what could not be told."""
    try:
        return play(bench.lab, topology)
    except RejectedError as error:
        return [Wrong("rejected", str(error))], ""
    except LabError as error:
        late = bench.drop()
        return [Wrong("lost", late or str(error))], ""


def steps_hold(lab: Lab, runs: int = 1) -> None:
    """Play the file that ``lab`` was opened with.

    Raises:
        ProofFailedError: something was not as it says.
        CannotTellError: whether it was could not be seen.
    """
    __tracebackhide__ = True
    for run in range(1, runs + 1):
        wrong, doubt = play(lab, lab.topology)
        if wrong:
            raise ProofFailedError("\n".join([f"in run {run} of {runs}:", *(one.text for one in wrong)]))
        if doubt:
            raise CannotTellError(f"in run {run} of {runs}: {doubt}")


def play(lab: Lab, topology: Topology, *, prove: bool = True) -> tuple[list[Wrong], str]:
    """Put the policies of ``topology`` into effect and go through its steps.

    Args:
        prove: also that nothing was in clear and that identities are the pods' own; else verdicts only.
    """
    lab.reset(replace(topology.mesh, authorization_policies=(), peer_authentications=()))
    player = Player(lab, prove=prove)
    try:
        player.open_window()
        lab.replace(topology.mesh)  # within the window: a proxy may be wrong while a policy comes
        for place, step in enumerate(steps_of(topology)):
            player.play(place, step)
    except BaseException:
        with suppress(LabError):
            player.close()
        raise
    return player.close()
