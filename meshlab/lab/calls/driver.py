"""Makes the calls of traffic and holds its connections: a thread that asks for sockets, and tasks on the loop.

    thread     each 50 ms: asks netd for the sockets of what is due, and hands it to the loop
    the loop   makes each call at its time; holds each open connection, asks it now and then, and looks whether it ends

Before ``start`` returns, every pair was called once and every connection was tried, and ``stop`` calls every pair once
more: so that a block that takes no time still says what was before it, and what is behind it.

Of the calls only counts and failures are kept. What a call comes to is judged by the meshes that were in effect during
it (``explained.py``).
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from meshlab.errors import ConnectionEndedError, KernelRefusedError, LabError, LabLostError, ProtocolError
from meshlab.lab.calls import requests
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.connections import CORRUPTED, SILENCE, OpenConnection
from meshlab.lab.calls.explained import explain
from meshlab.lab.calls.opening import OpenConnections, sockets_for
from meshlab.lab.calls.pairs import Pair, Planned, plan
from meshlab.lab.calls.stream import US, now_ns
from meshlab.lab.calls.tally import Broken, Tally
from meshlab.lab.calls.traffic import TrafficLoop, perform
from meshlab.lab.view import ViewForTraffic
from meshlab.model import Mesh

_TICK_S = 0.05
_AT_ONCE = 253
"""So many sockets netd gives in one answer; no tick asks for more, of calls or of connections."""
_MOST_UNDER_WAY = 250
"""Calls that have begun and not ended. While there are so many none is begun: a machine that has too much to do then
calls less often, and no call times out for that."""
_OPENED_AT_ONCE = 50
"""Connections in the making: listeners have short queues."""
_STANDS_S = 10.0
"""So long, at most, ``start`` waits for the first calls and connections."""
_LATE_S = 1.0
"""Calls that are later than this are left out, not made up for."""
_ASK_EVERY_S = 0.2
_SILENT_S = 5.0
"""A connection that has not answered for so long is broken."""
_AGAIN_S = 1.0
"""After so long a connection that was refused is tried again."""
_SLACK_S = 30.0
_QUESTION = b"still there?\n"


@dataclass(frozen=True, slots=True)
class _Due:
    """A connection to open, again or for the first time."""

    at: float
    """time.monotonic()."""
    pair: Pair


class Driver:
    """See the module. Started once, and stopped once."""

    def __init__(
        self,
        lab: ViewForTraffic,
        loop: TrafficLoop,
        connections: OpenConnections,
        pairs: Sequence[Pair],
        rate: float,
        held: int,
    ) -> None:
        self.tally = Tally()
        self.failure: BaseException | None = None
        """The error that ended the traffic early."""
        self._lab = lab
        self._loop = loop
        self._connections = connections
        self._pairs = pairs
        self._rate = rate
        self._plans: tuple[Mesh, dict[Pair, Planned | None]] | None = None
        self._next_pair = 0
        self._next_at = time.monotonic()
        self._to_open = deque(_Due(0.0, pair) for _ in range(held) for pair in pairs)
        self._living: set[OpenConnection] = set()
        """On the loop's thread only."""
        self._begun = 0
        """Calls; written by the thread only, as ``_over`` is by the loop."""
        self._over = 0
        self._made = 0
        """Connections, as ``_begun``; ``_tried`` as ``_over``."""
        self._tried = 0
        self._turn = asyncio.Semaphore(_OPENED_AT_ONCE)
        self._running: list[Future[None]] = []
        self._ending = False
        self._stop = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="meshlab-background", daemon=True)

    def start(self) -> None:
        """Begin, and return when traffic stands.

        Raises:
            LabLostError: a part of the lab that traffic needs is gone.
        """
        self._call_each_pair()
        while self._open_due():
            pass
        self.wait_for(lambda: self._over == self._begun and self._tried == self._made, _STANDS_S)
        self._next_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Begin no more calls, wait for those that are under way, and ask every connection a last time.

        Raises:
            LabLostError: a part of the lab that traffic needs is gone.
        """
        self._stop.set()
        self._thread.join(_SLACK_S)
        if self.failure is None:
            self._call_each_pair()
        self._loop.run(self._last_round(), _SLACK_S)
        wait(self._running, requests.TIMEOUT_S + 2 * _SILENT_S + _SLACK_S)
        self._look_for_failures()
        if self.failure is not None:
            raise self.failure

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``is_so``, which is asked after everything that happens. Returns whether it became so.

        It is asked without a lock, so that it may ask an open connection, which needs the loop.
        """
        deadline = time.monotonic() + timeout_s
        while self.failure is None:
            self._news.clear()
            if is_so():
                return True
            if not self._news.wait(max(0.0, deadline - time.monotonic())):
                return is_so()
        raise self.failure

    async def _last_round(self) -> None:
        """Let everyone who holds a connection ask a last time."""
        self._ending = True
        for connection in self._living:
            connection.stream.wake()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stop.wait(_TICK_S) and self.failure is None:
                self._open_due()
                self._call_due()
                self._look_for_failures()
                self._tell()
        except (LabError, KernelRefusedError) as error:
            self.failure = error
        self._tell()

    def _tell(self) -> None:
        """Let those who wait for something look again."""
        self._news.set()

    def _look_for_failures(self) -> None:
        """Forget what has ended, unless it ended in an error of ours."""
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            self.failure = self.failure or future.exception()

    def _call_due(self) -> None:
        """Hand the calls of the next tick to the loop."""
        now, due = time.monotonic(), list[tuple[float, Request]]()
        if self._next_at < now - _LATE_S:
            self._next_at = now
        while self._rate and self._next_at < now + _TICK_S and len(due) < _AT_ONCE:
            if self._begun - self._over + len(due) >= _MOST_UNDER_WAY:
                break
            planned = self._planned(self._pairs[self._next_pair])
            self._next_pair = (self._next_pair + 1) % len(self._pairs)
            if planned is None:
                self.tally.skipped += 1
            else:
                due.append((self._next_at, planned.call))
            self._next_at += 1 / self._rate
        if due:
            self._hand_over(due)

    def _call_each_pair(self) -> None:
        """Hand a call of every pair to the loop, now."""
        planned = [self._planned(pair) for pair in self._pairs if self._rate]
        self.tally.skipped += planned.count(None)
        if due := [(0.0, one.call) for one in planned if one is not None]:
            self._hand_over(due)

    def _hand_over(self, due: Sequence[tuple[float, Request]]) -> None:
        sockets = self._sockets([request for _, request in due])
        canaries = self._lab.canaries(len(due))
        for sock, (at, request), (number, canary) in zip(sockets, due, canaries, strict=True):
            if sock is None:
                self.tally.skipped += 1
                continue
            self._begun += 1
            self._running.append(self._loop.start(self._call(sock, request, canary, number, at)))

    def _open_due(self) -> bool:
        """Begin to open the connections that are due, and to hold them. Returns whether there were some."""
        now, due = time.monotonic(), list[tuple[Pair, Request]]()
        for _ in range(min(len(self._to_open), _AT_ONCE)):
            one = self._to_open.popleft()
            planned = self._planned(one.pair) if one.at <= now else None
            if planned is None:
                self._to_open.append(one)
            else:
                due.append((one.pair, planned.line))
        if not due:
            return False
        sockets = self._sockets([request for _, request in due])
        canaries = self._lab.canaries(len(due))
        for sock, (pair, request), canary in zip(sockets, due, canaries, strict=True):
            if sock is None:
                self._to_open.append(_Due(now + _AGAIN_S, pair))
                continue
            connection = self._connections.make([sock], [request], [canary])[0]
            self._made += 1
            self._running.append(self._loop.start(self._hold(connection, pair)))
        return True

    def _sockets(self, wanted: Sequence[Request]) -> list[socket.socket | None]:
        """A socket for each; ``None`` where the pod has gone meanwhile."""
        try:
            return list(sockets_for(self._lab.site, wanted))
        except LabLostError:
            raise
        except (KeyError, KernelRefusedError, LabError):
            if len(wanted) == 1:
                return [None]
        return [sock for request in wanted for sock in self._sockets([request])]

    def _planned(self, pair: Pair) -> Planned | None:
        """What ``pair`` is in the mesh that is in effect now; planned once for each mesh."""
        mesh = self._lab.mesh
        if self._plans is None or self._plans[0] is not mesh:
            self._plans = mesh, {}
        plans = self._plans[1]
        if pair not in plans:
            plans[pair] = plan(mesh, pair)
        return plans[pair]

    # --- on the loop -------------------------------------------------------------------------------------------------

    async def _call(self, sock: socket.socket, request: Request, canary: bytes, number: int, at: float) -> None:
        try:
            with sock:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                call = await perform(sock, request, canary, number)
        finally:
            self._over += 1
        meshes = self._lab.history.between(call.started_ns, call.ended_ns)
        self.tally.took(call, explain(call, meshes, self._lab.not_listening))
        self._tell()

    async def _hold(self, connection: OpenConnection, pair: Pair) -> None:
        """Open a connection and hold it until it breaks or traffic ends; a broken one is opened again."""
        async with self._turn:
            await connection.opened()
        self._tried += 1
        if connection.stream.closed_by:
            self.tally.not_opened += 1
            self._to_open.append(_Due(time.monotonic() + _AGAIN_S, pair))
            self._tell()
            return
        self.tally.opened += 1
        self._living.add(connection)
        self._tell()
        try:
            by = await self._held_until_it_ends(connection)
        finally:
            self._living.discard(connection)
        if by:
            at_ns = connection.stream.closed_at_ns or now_ns()
            self.tally.broke(Broken(connection.source, connection.to, at_ns, by))
            self._to_open.append(_Due(time.monotonic(), pair))
            self._tell()
        connection.stream.end(US)

    async def _held_until_it_ends(self, connection: OpenConnection) -> str:
        """Ask now and then. Returns who ended the connection; nothing, where traffic has ended first."""
        stream = connection.stream
        while True:
            try:
                async with asyncio.timeout(self._pause_s()):
                    await stream.wait(lambda: bool(stream.closed_by) or self._ending)
            except TimeoutError:
                pass
            is_last = self._ending
            if by := await self._asked(connection):
                return by
            if is_last:
                return ""

    async def _asked(self, connection: OpenConnection) -> str:
        """Ask once, at a built-in echo. Returns who ended the connection, if it is open no more."""
        stream = connection.stream
        await stream.settle()
        if stream.closed_by or not connection.is_echo:
            return stream.closed_by
        try:
            async with asyncio.timeout(_SILENT_S):
                await connection.asked(_QUESTION)
        except ConnectionEndedError:
            return stream.closed_by
        except TimeoutError:
            return SILENCE
        except ProtocolError:
            return CORRUPTED
        self.tally.asks_answered += 1
        self._tell()
        return ""

    def _pause_s(self) -> float:
        """How long to wait between two questions, so that all connections together ask at most ``rate`` a second."""
        return max(_ASK_EVERY_S, len(self._living) / max(self._rate, 1.0))
