"""A topology file played: its rows of ``spec.expect`` and its ``spec.steps``, call by call, and what was wrong.

FIXED        every run was as the file says                     0
FAILED       none was                                           1
FLAKY        some were, and how many                            4
CANNOT-RUN   no lab can run it here, or it may not be run       3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
    UsageError,
)
from meshlab.lab import Lab
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.names import behind, resolve
from meshlab.lab.calls.requests import ask
from meshlab.lab.proving.arrivals import arrived
from meshlab.lab.proving.capture import Capture
from meshlab.lab.proving.evidence import Evidence, save_somewhere
from meshlab.lab.sources import Source
from meshlab.model import FAMILIES, Call, CallStep, Expectation, Family, Mesh, PolicyStep, Step, Topology, Verdict
from meshlab.model.report import SCHEMA_VERSION, Grade, Result
from meshlab.oracle import connection, decide, decide_service
from meshlab.play.bench import Bench
from meshlab.play.faults import Wrong, fault, in_clear, is_tunnelled, named, shaped
from meshlab.topology import after

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
    wrong: list[Wrong] = []
    doubt = ""
    made: dict[int, tuple[int, Call]] = {}
    with ExitStack() as stack:
        capture = stack.enter_context(lab.capture()) if prove else None
        lab.replace(Mesh())  # so that no run begins with what the one before left
        lab.replace(topology.mesh)
        for place, step in enumerate(steps_of(topology)):
            if isinstance(step, PolicyStep):
                lab.replace(after(replace(lab.topology, mesh=lab.mesh), step))
            elif not isinstance(step, CallStep):
                raise cannot_play(step)
            else:
                calls = lab.calls(list(_requests(lab, step)))
                wrong += [replace(one, stage=place) for one in _wrong(lab, step, calls)]
                if not calls:
                    doubt = f"nobody can be called at {step.to}: it has no address of that family, or nobody listens"
                made |= {call.number: (place, call) for call in calls}
    if capture is None:
        return wrong, doubt
    tunnelled = [call for _, call in made.values() if is_tunnelled(lab.mesh, call)]
    leaked, unseen = in_clear(capture, tunnelled)
    answered = [call for call in tunnelled if call.answered and not leaked]  # in plaintext nobody has shown one
    seen = [*leaked, *_mistaken(lab.mesh, capture, answered)]
    placed = [replace(one, stage=made[one.number][0]) for one in seen]
    return [*placed[: len(leaked)], *wrong, *placed[len(leaked) :]], doubt or unseen


def _mistaken(mesh: Mesh, capture: Capture, calls: Sequence[Call]) -> Iterator[Wrong]:
    """Calls between pods of which one end was taken for somebody else."""
    for call in calls:
        ends = [mesh.pod(key) for key in (call.source, call.peer.pod if call.peer else "") if key]
        for who in dict.fromkeys(pod.identity(mesh.trust_domain) for pod in ends):
            proof = capture.identity(call, who, at_least=Grade.CLAIM)
            if proof.result is Result.FAILED:
                text = f"{named(call)}: {proof.reason}"
                yield Wrong("identity", text, call.source, call.to, call.family, number=call.number)


def cannot_play(step: Step) -> UsageError:
    """What is raised for a step that is neither a call nor a change of policies."""
    return UsageError(f"only calls and changes of policies can be played, and not a {type(step).__name__}")


def _families(lab: Lab, step: CallStep) -> Iterator[Family]:
    """Those in which ``step`` can be judged: its target has an address, and somebody listens there."""
    name = step.to.rpartition(":")[0]
    for family in (step.family,) if step.family else FAMILIES:
        addressed = "/" in name or any(s.address(family) for s in lab.mesh.services if s.key == name)
        places = {(pod.key, port, family) for pod, port in behind(lab.mesh, step.to)}
        if addressed and places.isdisjoint(lab.not_listening):
            yield family


def _requests(lab: Lab, step: CallStep) -> Iterator[Request]:
    pod, (name, _, port) = lab.mesh.pod(step.source), step.to.rpartition(":")
    for family in _families(lab, step):
        target = resolve(lab.mesh, pod, name, int(port), family)
        yield shaped(lab, ask(lab.mesh, pod.key, target), step.shape)


def _wrong(lab: Lab, step: CallStep, calls: Sequence[Call]) -> list[Wrong]:
    allowed = step.expect is Verdict.ALLOW
    arrivals = arrived(lab, [] if allowed else calls, calls)
    return [
        Wrong(
            kind="verdict",
            text=f"{named(call)} should be {'answered' if allowed else 'refused'}: {told}; {said(lab.mesh, call)}",
            source=call.source,
            to=call.to,
            family=call.family,
            seen=told,
            number=call.number,
            expect=step.expect,
        )
        for call in calls
        if (told := fault(lab.mesh, call, allowed=allowed, arrived=arrivals.get(call.number, "")))
    ]


def said(mesh: Mesh, call: Call) -> str:
    """What the policies now in effect say of a call, as half a sentence."""
    source, (name, _, port) = mesh.pod(call.source), call.to.rpartition(":")
    if "/" in name:
        decision = decide(mesh, connection(mesh, source, mesh.pod(name), int(port), call.family))
        return f"the policies {decision.verdict} it ({decision.rule})"
    service = next(service for service in mesh.services if service.key == name)
    of_service = decide_service(mesh, source, service, int(port), call.family)
    if of_service.expected == "mixed":
        return f"the policies allow it at some pods only ({of_service.rule})"
    return f"the policies {of_service.expected} it ({of_service.rule})"
