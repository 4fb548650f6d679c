"""What an echo remembers of the bytes it received: how many from whom, and which canaries were in them.

This is the server's side of "no byte arrived": a canary that is not here was in nothing that any listener received. The
record is bounded and says how much it has forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlab.proofs.canary import CANARY, LONGEST_BYTES, WHOLE


@dataclass(slots=True)
class Received:
    """The record of one echo."""

    most: int = 100_000
    """How many canaries are kept; the oldest goes first."""
    forgotten: int = 0
    """How many canaries had to go: an absence says nothing about those."""
    bytes_from: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """(pod, port, client's address) -> bytes received."""
    connections_from: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    _canaries: dict[bytes, None] = field(default_factory=dict)

    def add(self, canary: bytes) -> None:
        """Remember ``canary`` as the latest."""
        self._canaries.pop(canary, None)
        self._canaries[canary] = None
        if len(self._canaries) > self.most:
            del self._canaries[next(iter(self._canaries))]
            self.forgotten += 1

    def among(self, canaries: Iterable[str]) -> list[str]:
        """Those of ``canaries`` that were received."""
        return [canary for canary in canaries if canary.encode() in self._canaries]

    def counts(self) -> list[dict[str, str | int]]:
        """Bytes and connections by pod, port and client."""
        return [
            {"pod": key[0], "port": key[1], "client": key[2], "connections": number, "bytes": self.bytes_from[key]}
            for key, number in sorted(self.connections_from.items())
        ]


@dataclass(slots=True)
class CanaryScanner:
    """Finds the canaries of one stream, also one that is split over two reads."""

    record: Received
    _tail: bytes = b""

    def feed(self, data: bytes) -> None:
        """Search ``data`` behind what came before."""
        text = self._tail + data
        if CANARY in text:
            for found in WHOLE.finditer(text):
                self.record.add(found[0])
        self._tail = text[-(LONGEST_BYTES - 1) :]
