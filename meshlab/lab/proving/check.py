"""``meshlab check``: build, call every cell of the matrix, prove, tear down, report.

One window holds all calls. What each cell should do is known before (``matrix``), what it did is read from bytes, and
each proof says what it rests on. Pods that stay pending are opened all the same, so that the report shows what happens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshlab.errors import AuditError, LabError, LabLostError
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.endings import ending
from meshlab.lab.calls.names import Target, behind
from meshlab.lab.calls.requests import ask
from meshlab.lab.lab import Lab
from meshlab.lab.lifetime import open_lab
from meshlab.lab.proving.capture import Capture
from meshlab.lab.proving.evidence import save_somewhere, write_conversation
from meshlab.lab.proving.judging import Arrived, judge
from meshlab.lab.proving.matrix import (
    BULK_BYTES,
    MISSED_BY_CHANCE,
    Control,
    PlannedCell,
    calls_to_reach_all,
    cells,
    control_for,
    missed_by_chance,
    unasked,
)
from meshlab.lab.settings import LabSettings
from meshlab.lab.sources import Source
from meshlab.model import Call, Family, Pod, Topology
from meshlab.model.report import CheckReport, Proof, Result, StepRow

_CALL_TIMEOUT_S = 10.0
"""More than usual: all calls of a check are made at once."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A check that is over, while its lab is still up."""

    lab: Lab
    capture: Capture
    report: CheckReport
    calls: tuple[tuple[Call, ...], ...]
    """Of each cell of the report, in its order."""


@dataclass(slots=True)
class _Made:
    """The calls of a check, by what they are for."""

    of_cell: dict[str, list[Call]] = field(default_factory=dict)
    again: dict[str, list[Call]] = field(default_factory=dict)
    """Calls of the second round, over tunnels that are open already."""
    loopback: dict[tuple[str, int, int], Call] = field(default_factory=dict)
    """(pod, port, family) -> the server's own call to itself."""

    def first(self, cell: PlannedCell) -> Call:
        return self.of_cell[cell.name][0]


def run(
    topology: Topology,
    *,
    source_path: Path | None = None,
    ztunnel: str | None = None,
    ztunnel_at: Mapping[str, str] | None = None,
    waypoint: str | None = None,
    mutant: str | None = None,
    variant: str | None = None,
    artifacts: Path | None = None,
    keep: Callable[[Checked], None] | None = None,
    record: Path | None = None,
    ready_timeout_s: float | None = None,
    progress: Callable[[str], None] | None = None,
    play: Callable[[Lab], tuple[StepRow, ...]] | None = None,
) -> CheckReport:
    """Check a topology.

    Args:
        source_path: the file it was read from; its folder is visible in the lab.
        artifacts: where to save captures, logs and rules, also if all held; if not given, only where not all held.
        keep: given all that there is to be seen, instead of ``artifacts``; the ztunnels then hand over TLS secrets.
        record: folder for the conversation of the node proxies with control plane and agents.
        progress: told what is being done.
        play: plays ``spec.steps``, which is done behind the matrix.

    Raises:
        UsageError: an option names nothing, or a row of ``spec.expect`` names no cell.
        HostNotReadyError: this machine cannot hold a lab.
        LabError: the lab was lost while it was built or called.
    """
    say = progress or (lambda _: None)
    cells(topology)  # a row of spec.expect that names no cell is refused before anything is built
    say(f"building {len(topology.nodes)} nodes and {len(topology.mesh.pods)} pods")
    settings: LabSettings = {
        "ztunnel": ztunnel,
        "ztunnel_at": ztunnel_at or {},
        "waypoint": waypoint,
        "mutant": mutant,
        "variant": variant,
        "ready_timeout_s": ready_timeout_s,
        "record": record is not None,
        "keylog": keep is not None,
        "allow_pending": True,
    }
    closing = 0.0
    audit: list[str] = []
    report = None
    try:
        with open_lab(Source(topology, source_path), **settings) as lab:
            checked = check_cells(lab, cells(topology, lab.not_listening), say)
            if play is not None and topology.steps:
                say(f"playing {len(topology.steps)} steps")
                checked = replace(checked, report=replace(checked.report, steps=play(lab)))
            unsaved = write_conversation(lab, record).unsaved if record is not None else []
            say("tearing down")
            closing = time.monotonic()
            report = replace(checked.report, audit=(*checked.report.audit, *complaints(lab)), unsaved=tuple(unsaved))
            if keep is not None:
                keep(replace(checked, report=report))
            elif artifacts is not None or report.result is not Result.HELD:
                saved = save_somewhere(lab, artifacts, topology.name)
                report = replace(report, artifacts=str(saved.folder), unsaved=(*report.unsaved, *saved.unsaved))
    except AuditError as error:
        audit = [line for line in str(error).splitlines() if line]
    if report is None:
        raise LabError("\n".join(audit))
    known = set("\n".join(report.audit).splitlines())
    late = tuple(line for line in audit if line not in known)
    timings = {**report.timings_ms, "teardown": round((time.monotonic() - closing) * 1000, 1)}
    return replace(report, audit=(*report.audit, *late), timings_ms=timings)


def check_cells(lab: Lab, planned: Sequence[PlannedCell], say: Callable[[str], None] = lambda _: None) -> Checked:
    """Call these cells on a running lab, and judge them."""
    started = time.monotonic()
    say(f"calling {sum(cell.calls for cell in planned)} times in {len(planned)} cells")
    with lab.capture() as capture:
        made = _call_all(lab, planned)
        _call_again(lab, planned, made)
    called = time.monotonic()
    say("proving")
    proofs = tuple(_proofs(capture, planned, made))
    beyond, received = capture.beyond(), capture.received()
    took = {"calls": called - started, "proofs": time.monotonic() - called}
    report = CheckReport(
        topology=lab.topology.name,
        implementations=lab.implementations,
        waypoints=dict.fromkeys(lab.site.waypoints, lab.site.waypoint.name),
        cells=tuple(
            judge(
                cell,
                made.of_cell[cell.name],
                _arrived(lab, cell, planned, made),
                again=made.again.get(cell.name, ()),
                beyond=beyond,
                received=received if _is_counted_by_echoes(lab, cell) else None,
            )
            for cell in planned
        ),
        proofs=proofs,
        notes=(*_notes(planned), *unasked(lab.mesh)),
        audit=tuple(f"{key} is still pending: {why}" for key, why in sorted(lab.pending.items())),
        timings_ms={**lab.timings_ms, **{name: round(value * 1000, 1) for name, value in took.items()}},
    )
    return Checked(lab, capture, report, tuple(tuple(made.of_cell[cell.name]) for cell in planned))


def _notes(planned: Sequence[PlannedCell]) -> Iterator[str]:
    """What a reader should know of a check that held."""
    if not any(cell.denying for cell in planned):
        yield "no cell is denied: nothing here shows that this mesh can refuse a call"
    if around := _ways_round(planned):
        yield (
            f"{len(around)} pods behind a waypoint can be called round it, such as {around[0]}: as in Istio, unless a"
            " policy there or `spec.profile: required` insists on the waypoint"
        )
    for calls in sorted({cell.calls for cell in planned if cell.counted}):
        yield (
            f"what becomes of a call at random is counted over {calls} calls; a right proxy fails with a probability"
            f" of at most {MISSED_BY_CHANCE:g} per cell"
        )
    for endpoints in sorted({len(cell.due.ways) for cell in planned if cell.balanced}):
        yield (
            f"each of {endpoints} endpoints of a Service has to answer one of {calls_to_reach_all(endpoints)} fresh"
            f" connections; a random choice leaves one out with a probability of {missed_by_chance(endpoints):.1e}"
        )


def _ways_round(planned: Sequence[PlannedCell]) -> list[str]:
    """The pods that a waypoint stands before, and that somebody may call at their own address, each with a caller."""
    guarded = {
        path.server.pod
        for cell in planned
        for way in cell.due.ways
        for path in way.kept_from or (way.path,)
        if len(path.legs) > 1
    }
    return [
        *{
            cell.to: f"{cell.to}:{cell.port} by {cell.source.key}"
            for cell in planned
            if cell.to in guarded and cell.oracle == "allow"
        }.values()
    ]


# --- calls -----------------------------------------------------------------------------------------------------------


def _call_all(lab: Lab, planned: Sequence[PlannedCell]) -> _Made:
    made = _Made()
    wanted: list[tuple[Callable[[Call], None], Request]] = []
    for cell in planned:
        keep = made.of_cell.setdefault(cell.name, []).append
        wanted += [(keep, request) for request in requests(lab, cell)]
    for pod, port, family in sorted(_loopbacks(planned) | _programs(lab, planned)):
        request = _loopback(lab, lab.mesh.pod(pod), port, family)
        wanted.append((_keeper(made.loopback, (pod, port, family)), request))
    for (keep, _), call in zip(wanted, lab.calls([request for _, request in wanted]), strict=True):
        keep(call)
    return made


def _call_again(lab: Lab, planned: Sequence[PlannedCell], made: _Made) -> None:
    """Call each cell once more, over tunnels that are open by now: in the first round nobody could mix them up."""
    asked = [
        cell
        for cell in planned
        if cell.hbone
        and cell.listening
        and cell.oracle != "mixed"
        and cell.due.is_certain
        and not (cell.request and cell.request.takes_s)
        and lab.is_echo(f"{cell.to}:{cell.port}")
    ]
    calls = lab.calls([next(requests(lab, cell)) for cell in asked])
    made.again = {cell.name: [call] for cell, call in zip(asked, calls, strict=True)}


def _keeper(where: dict[tuple[str, int, int], Call], key: tuple[str, int, int]) -> Callable[[Call], None]:
    return lambda call: where.__setitem__(key, call)


def requests(lab: Lab, cell: PlannedCell) -> Iterator[Request]:
    """The calls that a cell is made of."""
    target = Target(f"{cell.to}:{cell.port}", cell.address, cell.port, cell.family)
    request = ask(lab.mesh, cell.source.key, target, timeout_s=_CALL_TIMEOUT_S)
    if cell.request is not None:
        request = replace(
            request,
            method=cell.request.method,
            path=cell.request.path,
            headers={"Host": cell.request.authority, **dict(cell.request.headers)},
        )
    yield from [request] * cell.calls
    if cell.bulk and not cell.asked and request.echo and request.kind == "http":
        yield replace(request, kind="http", mode="echo-body", method="POST", body=os.urandom(BULK_BYTES))


def _loopbacks(planned: Sequence[PlannedCell]) -> set[tuple[str, int, Family]]:
    """Where a denied cell has no twin, the servers call themselves."""
    return {
        (target.pod, target.port, cell.family)
        for cell in planned
        if cell.listening and cell.denying and not cell.hairpin and control_for(cell, planned).twin is None
        for target in cell.denying
    }


def _programs(lab: Lab, planned: Sequence[PlannedCell]) -> set[tuple[str, int, Family]]:
    """Where a program of a pod's own listens: it calls itself, which shows whether it answers at all."""
    return {
        (pod.key, port, cell.family)
        for cell in planned
        for pod, port in _places(lab, cell)
        if cell.listening and pod.program is not None
    }


def _arrived(lab: Lab, cell: PlannedCell, planned: Sequence[PlannedCell], made: _Made) -> Arrived | None:
    """Which connections reached programs that answer nobody, not even their own pod.

    ``None`` where somebody does answer: then bytes are asked for, and this says nothing.
    """
    places = _places(lab, cell)
    own = [made.loopback.get((pod.key, port, cell.family)) for pod, port in places if pod.program is not None]
    if not own or len(own) < len(places) or any(call is None or call.answered for call in own):
        return None
    caller = cell.source.address(cell.family)
    counted = sum(lab.connections_to(pod.key).get((caller, port), 0) for pod, port in places)
    alike = [other for other in planned if (other.source, other.family) == (cell.source, cell.family)]
    due = sum(other.calls for other in alike if _leads_only_to(places, _places(lab, other)))
    return Arrived(counted - int(cell.hairpin), due)


def _is_counted_by_echoes(lab: Lab, cell: PlannedCell) -> bool:
    """Whether echoes get the copies of its requests: other programs keep no canaries."""
    ways = (way for share in cell.due.shares for copies in share.copies for way in copies.ways)
    return all(lab.is_echo(f"{way.path.server.pod}:{way.path.server.port}") for way in ways)


def _leads_only_to(places: Sequence[tuple[Pod, int]], reached: Sequence[tuple[Pod, int]]) -> bool:
    return bool(reached) and all(place in places for place in reached)


def _places(lab: Lab, cell: PlannedCell) -> list[tuple[Pod, int]]:
    return behind(lab.mesh, f"{cell.to}:{cell.port}")


def _loopback(lab: Lab, pod: Pod, port: int, family: Family) -> Request:
    """From the pod to its own address, which is never captured; a program need not listen on 127.0.0.1."""
    own = Target(f"{pod.key}:{port}", pod.address(family), port, family)
    return ask(lab.mesh, pod.key, own, timeout_s=_CALL_TIMEOUT_S)


# --- proofs ----------------------------------------------------------------------------------------------------------


def _proofs(capture: Capture, planned: Sequence[PlannedCell], made: _Made) -> Iterator[Proof]:
    hbone = [cell for cell in planned if cell.hbone and not cell.hairpin]
    for cell in hbone:
        yield from capture.encrypted(_of_each_kind(cell, made.of_cell[cell.name]))
    for cell in planned:
        if not cell.listening:
            continue
        if cell.denying and not cell.hairpin:
            yield from _denied(capture, cell, planned, made)
        elif cell.oracle == "allow" and not cell.hbone and not cell.hairpin:
            yield capture.path(made.first(cell))
    for cell in hbone:
        if cell.oracle == "allow" and cell.listening:
            yield capture.best_identity(made.first(cell))
    if hbone:
        every = ((*made.of_cell[cell.name], *made.again.get(cell.name, ())) for cell in hbone)
        yield from capture.nothing_in_clear([call for calls in every for call in calls])


def _of_each_kind(cell: PlannedCell, calls: Sequence[Call]) -> list[Call]:
    """Return the calls of a cell whose tunnels are proven one by one: all, or of a counted cell one for each outcome.

    That nothing is in plaintext is proven of every call.
    """
    if not cell.counted:
        return [*calls]
    return [*{(call.status, call.peer.pod if call.peer else ""): call for call in reversed(calls)}.values()]


def _denied(capture: Capture, cell: PlannedCell, planned: Sequence[PlannedCell], made: _Made) -> Iterator[Proof]:
    """Of a Service whose endpoints disagree one refused call is looked at. If none was refused, the cell says so."""
    calls = made.of_cell[cell.name]
    refused = [call for call in calls if ending(call, cell.due) == "deny"]
    if cell.oracle == "mixed" and not refused:
        return
    call = (refused or calls)[0]
    control = control_for(cell, planned)
    if control.twin is not None:
        yield capture.denied(call, made.first(control.twin))
    else:
        yield capture.denied(call, instead=_instead(cell, control, made.loopback, made))


def _instead(cell: PlannedCell, control: Control, loopback: Mapping[tuple[str, int, int], Call], made: _Made) -> str:
    """The control where a port is denied to everyone, named; empty where it did not come off."""
    own = [loopback.get((target.pod, target.port, cell.family)) for target in sorted(cell.denying, key=str)]
    answered = [call for call in own if call is not None and call.answered]
    if len(answered) < len(own):
        return ""
    text = f"the server's own loopback call {answered[0].number} was answered"
    if control.elsewhere is not None and made.first(control.elsewhere).answered:
        text += f", and call {made.first(control.elsewhere).number} to port {control.elsewhere.port}"
    return text


# --- the end ---------------------------------------------------------------------------------------------------------


def complaints(lab: Lab) -> list[str]:
    """What the audit finds, as lines."""
    try:
        lab.audit()
    except (AuditError, LabLostError) as error:
        return str(error).splitlines()
    return []
