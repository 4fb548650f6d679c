"""A file's steps gone through once, as a check: a cell for each call, judged by what its step expects then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from meshlab.errors import AuditError, NotAcknowledgedError, RejectedError, UsageError
from meshlab.lab import Lab, open_lab
from meshlab.lab.proving.capture import Capture
from meshlab.lab.proving.check import Checked, complaints, requests
from meshlab.lab.proving.judging import judge
from meshlab.lab.proving.matrix import PlannedCell, cell_of
from meshlab.lab.sources import Source
from meshlab.model import FAMILIES, Call, CallStep, Topology, TrafficStep
from meshlab.model.report import CheckReport, Proof
from meshlab.play.faults import shaped
from meshlab.play.player import Player
from meshlab.play.replay import steps_of


@dataclass(slots=True)
class _Gone:
    """What was gone through."""

    planned: list[PlannedCell] = field(default_factory=list)
    calls: list[tuple[Call, ...]] = field(default_factory=list)
    refused: str = ""
    """Why it did not get to its end: a proxy did not take a change of policies."""


def run_steps(
    topology: Topology,
    *,
    source_path: Path | None = None,
    keep: Callable[[Checked], None] | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> CheckReport:
    """Go through ``spec.expect`` and ``spec.steps`` in one lab; as ``check.run`` otherwise.

    Raises:
        LabError: the lab could not be built, or was lost.
    """
    say = progress or (lambda _: None)
    checked = None
    say(f"building {len(topology.nodes)} nodes and {len(topology.mesh.pods)} pods")
    try:
        with open_lab(Source(topology, source_path), keylog=keep is not None, **settings) as lab:
            say("going through the steps")
            checked = _check(lab)
            if keep is not None:
                keep(checked)
            say("tearing down")
    except AuditError:
        if checked is None or not checked.report.audit:
            raise
    return checked.report


def _check(lab: Lab) -> Checked:
    started = time.monotonic()
    with lab.capture() as capture:
        gone = _go(lab)
    report = CheckReport(
        topology=lab.topology.name,
        implementations=lab.implementations,
        cells=tuple(judge(cell, calls) for cell, calls in zip(gone.planned, gone.calls, strict=True)),
        proofs=tuple(_proofs(capture, gone)),
        audit=tuple(filter(None, (gone.refused, *complaints(lab)))),
        timings_ms={**lab.timings_ms, "calls": round((time.monotonic() - started) * 1000, 1)},
    )
    return Checked(lab, capture, report, tuple(gone.calls))


def _go(lab: Lab) -> _Gone:
    gone, player = _Gone(), Player(lab, prove=False)
    for place, step in enumerate(steps_of(lab.topology)):
        if isinstance(step, CallStep):
            for cell in _cells(lab, step):
                gone.planned.append(cell)
                sent = [shaped(lab, request, step.shape) for request in requests(lab, cell)] * step.times
                gone.calls.append(tuple(lab.calls(sent)))
            continue
        if isinstance(step, TrafficStep):
            raise UsageError("a bundle has one window, and `traffic` needs one of its own: use `meshlab replay`")
        try:
            player.play(place, step)
        except (RejectedError, NotAcknowledgedError) as error:
            gone.refused = str(error)
            break
    wrong, _ = player.close()
    gone.refused = gone.refused or "\n".join(one.text for one in wrong)
    return gone


def _cells(lab: Lab, step: CallStep) -> Iterator[PlannedCell]:
    for family in (step.family,) if step.family else FAMILIES:
        cell = cell_of(lab.mesh, step.source, step.to, family, lab.not_listening)
        if cell is not None:
            yield replace(cell, expected=step.expect.value)


def _proofs(capture: Capture, gone: _Gone) -> Iterator[Proof]:
    """That nothing was in clear between enrolled pods, and who the answered ones were."""
    hbone = [
        call
        for cell, calls in zip(gone.planned, gone.calls, strict=True)
        for call in calls
        if cell.hbone and not cell.hairpin
    ]
    yield from capture.encrypted(hbone)
    yield from (capture.best_identity(call) for call in hbone if call.answered)
    if hbone:
        yield from capture.nothing_in_clear(hbone)
