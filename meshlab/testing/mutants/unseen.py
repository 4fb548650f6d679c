"""Ztunnels that keep every promise in a short call of one client at a time, and break one of them otherwise.

They were written without a look at what meshlab checks: whether they are found measures the checks, not the mutants.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from meshlab.errors import ProtocolError
from meshlab.model import Connection, Decision, Verdict
from meshlab.protocols.hbone import Target
from meshlab.proxykit import sockets
from meshlab.proxykit.pool import ClientTunnel, Connect, Key, Pool
from meshlab.proxykit.splice import Half
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.state import Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- replicas-share-a-tunnel -----------------------------------------------------------------------------------------


class _PoolOfReplicas(Pool):
    """One for all pods of a node. Its tunnels are kept by everything but the client's address."""

    _of_the_node: ClassVar[dict[Key, list[ClientTunnel]]] = {}

    def __init__(self, connect: Connect) -> None:
        super().__init__(connect)
        self._tunnels = self._of_the_node

    async def get(self, key: Key) -> ClientTunnel:
        return await super().get(replace(key, source=key.destination.address))


class _OutboundOfReplicas(Outbound):
    pool_class = _PoolOfReplicas


replicas_share_a_tunnel = _made_of(Parts(outbound=_OutboundOfReplicas))


# --- leaks-after-a-pause ---------------------------------------------------------------------------------------------


class _Pausing(Half):
    """A connection of which ``copy`` gets what is said after a second of silence."""

    copy: Callable[[bytes], object] | None = None
    last_s: float | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        now = asyncio.get_running_loop().time()
        if self.copy is not None and self.last_s is not None and now - self.last_s > 1:
            self.copy(data)
        self.last_s = now


class _LeakingLate(Outbound):
    half_class = _Pausing

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        if way.tunnel is not None:
            assert isinstance(app, _Pausing)
            app.copy = lambda data: self._tasks.spawn(self._leak(way.target, data))
        return await super().carry(app, upstream, way)

    async def _leak(self, target: Target, data: bytes) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            sock = await sockets.connect_from(self.netns, target)
            _, writer = await asyncio.open_connection(sock=sock)
            writer.write(data)
            writer.close()


leaks_after_a_pause = _made_of(Parts(outbound=_LeakingLate))


# --- cuts-slow-answers-after-a-fin -----------------------------------------------------------------------------------


class _Impatient(Half):
    """After one side's FIN the other side has a second to end as well."""

    def eof_received(self) -> bool:
        asyncio.get_running_loop().call_later(1, self._give_up)
        return super().eof_received()

    def _give_up(self) -> None:
        self.peer.close()
        self.close()


class _ImpatientOutbound(Outbound):
    half_class = _Impatient


cuts_slow_answers_after_a_fin = _made_of(Parts(outbound=_ImpatientOutbound))


# --- admits-when-busy ------------------------------------------------------------------------------------------------


class _Overworked(Guard):
    """Does not judge who comes while 24 others are in."""

    def decide(self, own: Workload, connection: Connection) -> Decision:
        if len(self._live) >= 24:
            return Decision(Verdict.ALLOW, "busy")
        return super().decide(own, connection)


class _BusyDoor(Inbound):
    guard_class = _Overworked


admits_when_busy = _made_of(Parts(inbound=_BusyDoor))


# --- gives-a-late-answer-to-the-next ---------------------------------------------------------------------------------


class _Keeping(Half):
    """A tunnel's side keeps what its client did not wait for; an app's side says half a second late that it is lost."""

    late: ClassVar[dict[Target, bytes]] = {}
    target: Target | None = None
    """Where a tunnel's side leads to."""

    def data_received(self, data: bytes) -> None:
        if self.target is not None and not self.peer.is_open:
            self.late[self.target] = self.late.get(self.target, b"") + data
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.target is None and self.joined and self.peer.is_open:
            self.is_open = False
            asyncio.get_running_loop().call_later(0.5, super().connection_lost, exc)
        else:
            super().connection_lost(exc)


class _KeepingOutbound(Outbound):
    half_class = _Keeping

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        assert isinstance(upstream, _Keeping)
        upstream.target = way.target
        app.transport.write(_Keeping.late.pop(way.target, b""))
        return await super().carry(app, upstream, way)


gives_a_late_answer_to_the_next = _made_of(Parts(outbound=_KeepingOutbound))


# --- delivers-twice --------------------------------------------------------------------------------------------------


class _Doubled(Half):
    """One side of a splice. What goes to a tunnel's side goes to its ``shadow`` as well, which nobody reads."""

    shadow: _Doubled | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        assert isinstance(self.peer, _Doubled)
        if self.peer.shadow is not None:
            self.peer.shadow.transport.write(data)

    def eof_received(self) -> bool:
        if isinstance(self.peer, _Doubled) and self.peer.shadow is not None:
            self.peer.shadow.end()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.shadow is not None:
            self.shadow.close()


class _Doubling(Outbound):
    half_class = _Doubled

    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        upstream = await super().connect_tunnel(way, peer, own, record)
        if way.service is not None:
            with contextlib.suppress(OSError, ProtocolError):
                assert isinstance(upstream, _Doubled)
                upstream.shadow = await super().connect_tunnel(way, peer, own, record)  # type: ignore[assignment]
        return upstream


delivers_twice = _made_of(Parts(outbound=_Doubling))
