"""What a proof says, in the words that every report uses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshlab.model import Family


class Result(StrEnum):
    """One vocabulary everywhere."""

    HELD = "held"
    FAILED = "failed"
    CANNOT_TELL = "cannot-tell"
    CANNOT_RUN = "cannot-run"


class Grade(StrEnum):
    """How a proof knows."""

    WIRE = "wire"
    """Seen in packets."""
    PEER = "peer"
    """An endpoint of ours saw the certificate."""
    KEYS = "keys"
    """Decrypted with the lab's keys."""
    CLAIM = "claim"
    """A log or a metric says so."""

    def reaches(self, least: Grade) -> bool:
        """Is it at least as good as ``least``?"""
        order = list(Grade)
        return order.index(self) <= order.index(least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One statement about one call (or, with ``to`` a link's name, about all traffic there)."""

    id: str
    kind: str
    source: str
    to: str
    port: int
    family: Family | None
    grade: Grade
    packets: int
    """Packets on which it rests."""
    canaries: int
    """Canaries that were searched for."""
    control: str
    """What shows that the opposite would have been seen. Never empty where the proof held."""
    result: Result
    reason: str
