"""What an echo remembers of the bytes it received: which connections, how many bytes on each, and which canaries.

This is the server's side of "no byte arrived". Each connection is kept with its client, its port, its times and its
bytes, so that a call that got only its first byte through is seen; canaries show whose bytes they were. The record is
bounded. It says until when it has forgotten, so that an absence before that moment proves nothing.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

from meshlab.proofs.canary import CANARY, LONGEST_BYTES, WHOLE


@dataclass(slots=True)
class Connection:
    """One connection that a listener accepted."""

    pod: str
    port: int
    client: str
    """The client's address as the server's socket saw it."""
    client_port: int
    opened_ns: int
    """When it was accepted, by CLOCK_REALTIME."""
    last_ns: int
    """When its last byte arrived; ``opened_ns`` where none did."""
    bytes: int = 0

    def row(self) -> list[str | int]:
        """The fields in their order, as they travel."""
        return [self.pod, self.port, self.client, self.client_port, self.opened_ns, self.last_ns, self.bytes]


@dataclass(slots=True)
class Received:
    """The record of one echo."""

    clock: Callable[[], int] = field(default=partial(time.clock_gettime_ns, time.CLOCK_REALTIME))
    most: int = 100_000
    """How many connections, and how many canaries, are kept; the oldest goes first."""
    forgotten_until_ns: int = 0
    """Connections and canaries received up to this moment may have been dropped; 0 if none were."""
    _connections: OrderedDict[int, Connection] = field(default_factory=OrderedDict)
    """By identity, the one with the latest byte last."""
    _canaries: OrderedDict[bytes, tuple[int, Counter[str]]] = field(default_factory=OrderedDict)
    """When the latest came, and on how many connections to each pod."""

    def opened(self, pod: str, port: int, client: str, client_port: int) -> Connection:
        """Begin to count a connection."""
        now = self.clock()
        connection = Connection(pod, port, client, client_port, now, now)
        self._connections[id(connection)] = connection
        if len(self._connections) > self.most:
            self._forget(self._connections.popitem(last=False)[1].last_ns)
        return connection

    def took(self, connection: Connection, size: int) -> None:
        """Count ``size`` bytes that arrived on ``connection`` now."""
        connection.bytes += size
        connection.last_ns = self.clock()
        self._connections[id(connection)] = connection
        self._connections.move_to_end(id(connection))

    def add(self, canary: bytes, pod: str) -> None:
        """Remember ``canary``, of another connection to ``pod``, as the latest."""
        _, pods = self._canaries.pop(canary, (0, Counter()))
        pods[pod] += 1
        self._canaries[canary] = self.clock(), pods
        if len(self._canaries) > self.most:
            self._forget(self._canaries.popitem(last=False)[1][0])

    def among(self, canaries: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return those of ``canaries`` that were received, each with the number of connections to each pod."""
        found = ((canary, self._canaries.get(canary.encode())) for canary in canaries)
        return {canary: dict(seen[1]) for canary, seen in found if seen is not None}

    def since(self, ns: int) -> Iterator[Connection]:
        """The connections that were open, or got a byte, at ``ns`` or later."""
        return takewhile(lambda connection: connection.last_ns >= ns, reversed(self._connections.values()))

    def _forget(self, ns: int) -> None:
        self.forgotten_until_ns = max(self.forgotten_until_ns, ns)


@dataclass(slots=True)
class CanaryScanner:
    """Finds the canaries of one stream, also one that is split over two reads."""

    record: Received
    pod: str
    _latest: bytes = b""
    _tail: bytes = b""

    def feed(self, data: bytes) -> None:
        """Search ``data`` behind what came before."""
        text = self._tail + data
        if CANARY in text:
            for found in WHOLE.finditer(text):
                if found[0] != self._latest:  # it may stand in the tail still
                    self._latest = found[0]
                    self.record.add(found[0], self.pod)
        self._tail = text[-(LONGEST_BYTES - 1) :]
