"""The open connections of one lab: opened in tens, and ended when the lab closes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Collection, Iterable, Sequence

from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.connections import OpenConnection
from meshlab.lab.calls.stream import GONE, US
from meshlab.lab.calls.traffic import TrafficLoop
from meshlab.lab.site import Site

_AT_ONCE = 50
"""How many are being opened at a time: listeners have short queues, and a SYN that one drops comes again in 1 s."""
_SLACK_S = 30.0


class OpenConnections:
    """See the module. Thread-safe."""

    def __init__(self, loop: TrafficLoop, site: Site) -> None:
        self._loop = loop
        self._site = site
        self._open: set[OpenConnection] = set()
        self._lock = threading.Lock()

    def open(self, requests: Sequence[Request], canaries: Sequence[tuple[int, bytes]]) -> list[OpenConnection]:
        """Open one connection for each request, in order; how that ended is in ``closed_by``."""
        made = self.make(sockets_for(self._site, requests), requests, canaries)
        longest_s = max((request.timeout_s for request in requests), default=0.0)
        self._loop.run(_open_all(made), longest_s * (1 + len(made) / _AT_ONCE) + _SLACK_S)
        return made

    def make(
        self, sockets: Sequence[socket.socket], requests: Sequence[Request], canaries: Sequence[tuple[int, bytes]]
    ) -> list[OpenConnection]:
        """Connections that are not opened yet, one for each socket; the lab's end is theirs from now on."""
        made = [
            OpenConnection(self._loop, sock, request, number, canary, self._ended)
            for sock, request, (number, canary) in zip(sockets, requests, canaries, strict=True)
        ]
        with self._lock:
            self._open.update(made)
        return made

    def end_of(self, pods: Collection[str]) -> None:
        """End those that these pods (``namespace/name``) have opened: whoever held them there is no more."""
        with self._lock:
            left = [connection for connection in self._open if connection.source in pods]
        if left:
            self._loop.run(_end_all(left, GONE), _SLACK_S)

    def close(self) -> None:
        """End them all, at once."""
        with self._lock:
            left = list(self._open)
        if left:
            self._loop.run(_end_all(left), _SLACK_S)

    def _ended(self, connection: OpenConnection) -> None:
        with self._lock:
            self._open.discard(connection)


def sockets_for(site: Site, requests: Sequence[Request]) -> list[socket.socket]:
    """Non-blocking sockets in the netns of the callers of ``requests``, in order."""
    sockets = site.open_in_pods([(request.source, request.family) for request in requests])
    for sock in sockets:
        sock.setblocking(False)
    return sockets


async def _open_all(connections: Sequence[OpenConnection]) -> None:
    """Open them; an interruption ends them all."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def open_one(connection: OpenConnection) -> None:
        async with turn:
            await connection.opened()

    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(open_one(connection))
    except BaseException:
        await _end_all(connections)
        raise


async def _end_all(connections: Iterable[OpenConnection], by: str = US) -> None:
    for connection in connections:
        connection.stream.end(by)
    for connection in connections:
        await connection.stream.wait(lambda stream=connection.stream: stream.over)  # type: ignore[misc]
