"""What a check found, in the one vocabulary that every table, file and exit code uses.

``Cell`` and ``Proof`` are rows of the two tables; ``CheckReport`` is both, and says the exit code. The JSON form is a
promise to scripts (``schemaVersion``). A field named ``source`` here is spelt ``from`` there: Python keeps that word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from meshlab.model.workload import Family

SCHEMA_VERSION = 1


class Result(StrEnum):
    """How a cell, a proof or a whole check came out."""

    HELD = "held"
    FAILED = "failed"
    CANNOT_TELL = "cannot-tell"
    """A control is missing, packets were lost, or the answer had two readings."""
    CANNOT_RUN = "cannot-run"

    @staticmethod
    def overall(results: Iterable[Result]) -> Result:
        """The result of the whole: what failed outranks what could not run, that what cannot be told.

        Of nothing at all it is ``CANNOT_RUN``: a check that looked at nothing has not held.
        """
        seen = frozenset(results)
        for result in (Result.FAILED, Result.CANNOT_RUN, Result.CANNOT_TELL, Result.HELD):
            if result in seen:
                return result
        return Result.CANNOT_RUN


class Grade(StrEnum):
    """Who saw what a proof says."""

    WIRE = "wire"
    """Seen in packets."""
    PEER = "peer"
    """An endpoint of ours saw the certificate."""
    KEYS = "keys"
    """Decrypted with the lab's keys."""
    CLAIM = "claim"
    """A log or a metric says so."""


Passage = Literal["allow", "deny", "mixed", "unclear"]
"""What a cell lets through. ``mixed``: a Service whose endpoints disagree. ``unclear``: seen only, neither way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One pair of the matrix on one port and family: what was expected, and what the bytes did."""

    source: str
    """The calling pod, ``namespace/name``."""
    to: str
    """``namespace/pod`` or ``service.namespace``, without the port."""
    port: int
    """The port that was dialled."""
    family: Family
    expected: Passage
    """The row of ``spec.expect`` that names the cell, else the oracle's verdict."""
    oracle: Passage
    seen: Passage
    outcome: str
    """``Outcome`` as text; several, where calls of one cell ended differently."""
    rule: str
    """The rule by which the oracle decided."""
    result: Result
    reason: str = ""
    """Why it did not hold; where it held, what else was seen, or nothing."""
    request: str = ""
    """What was asked for, where a waypoint reads requests: ``GET server.shop/a with x-a: 1``."""
    response: str = ""
    """What came back: who answered or with which status; of many calls, how often each."""

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.source,
            "to": self.to,
            "port": self.port,
            "family": self.family,
            **({"request": self.request, "response": self.response} if self.request else {}),
            "expected": self.expected,
            "oracle": self.oracle,
            "seen": self.seen,
            "outcome": self.outcome,
            "rule": self.rule,
            "result": self.result.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One thing that was to be shown from packets, certificates or logs, and what its control was."""

    id: str
    """Unique in its report, e.g. ``encrypted:shop/client->shop/server:8080/4``."""
    kind: str
    """``encrypted``, ``denied``, ``path``, ``identity`` or ``nothing-in-clear``."""
    source: str
    to: str
    port: int
    family: Family
    grade: Grade
    packets: int
    """Packets that the proof rests on, beacons aside. 0 never holds."""
    canaries: int
    """Canaries that were searched for."""
    control: str
    """What shows that the opposite would have been seen; empty where there was nothing."""
    result: Result
    reason: str = ""
    """Why it did not hold, or could not be told and what would help; where it held, what else was seen, or nothing."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "from": self.source,
            "to": self.to,
            "port": self.port,
            "family": self.family,
            "grade": self.grade.value,
            "packets": self.packets,
            "canaries": self.canaries,
            "control": self.control,
            "result": self.result.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step of ``spec.steps`` as it was played."""

    place: int
    """From 1."""
    step: str
    """In a few words."""
    result: Result
    reason: str = ""
    """Why it did not hold."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Of ``traffic``: ``failed_new``, ``broken_open``, ``in_plaintext`` and ``kept_plaintext``."""

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "step": self.step,
            "result": self.result.value,
            "reason": self.reason,
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All that one ``meshlab check`` found."""

    topology: str
    implementations: Mapping[str, str]
    """Node -> name of its node proxy."""
    waypoints: Mapping[str, str] = field(default_factory=dict)
    """Gateway, ``namespace/name`` -> name of its waypoint."""
    cells: tuple[Cell, ...] = ()
    proofs: tuple[Proof, ...] = ()
    steps: tuple[StepRow, ...] = ()
    """Of ``spec.steps``, in order."""
    audit: tuple[str, ...] = ()
    """What was not as it should be besides cells and proofs: exits, panics, NACKs, pods that stayed pending."""
    notes: tuple[str, ...] = ()
    """What a reader should know of what was and was not tested; they change no result."""
    artifacts: str | None = None
    """Folder with captures, logs, rules and configuration, where they were saved."""
    unsaved: tuple[str, ...] = ()
    """What could not be saved there, each with the reason. It changes no result."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """``build`` (until every program runs), ``ready`` (until everything is in effect; ``build`` is a part of it),
    ``calls``, ``proofs``, ``teardown``."""

    @property
    def result(self) -> Result:
        if self.audit:
            return Result.FAILED
        if not self.cells and not self.steps:
            return Result.CANNOT_RUN
        rows: list[Cell | Proof | StepRow] = [*self.cells, *self.proofs, *self.steps]
        return Result.overall([row.result for row in rows])

    @property
    def exit_code(self) -> int:
        """0 all held, 1 something failed, 3 cannot run here, 4 cannot tell, 5 nothing to run."""
        if not (self.cells or self.steps or self.audit):
            return 5
        return {Result.HELD: 0, Result.FAILED: 1, Result.CANNOT_RUN: 3, Result.CANNOT_TELL: 4}[self.result]

    @property
    def seconds(self) -> float:
        """From nothing to nothing again."""
        return sum(took for name, took in self.timings_ms.items() if name != "build") / 1000

    def to_json(self) -> dict[str, Any]:
        return {
            "schemaVersion": SCHEMA_VERSION,
            "topology": self.topology,
            "implementations": dict(self.implementations),
            **({"waypoints": dict(self.waypoints)} if self.waypoints else {}),
            "result": self.result.value,
            "cells": [cell.to_json() for cell in self.cells],
            "proofs": [proof.to_json() for proof in self.proofs],
            "steps": [row.to_json() for row in self.steps],
            "audit": list(self.audit),
            "notes": list(self.notes),
            "artifacts": self.artifacts,
            "unsaved": list(self.unsaved),
            "timings_ms": dict(self.timings_ms),
        }
