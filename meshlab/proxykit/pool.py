"""Client ends of HBONE connections, and the pool that lets streams share them.

One connection serves one source identity and address, one destination and one set of identities that it may have:
what differs in any of these never shares a TLS session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.protocols.hbone import (
    ConnectRequested,
    Framing,
    HboneClient,
    LocalLost,
    OpenUpstream,
    Target,
    TunnelOpened,
    TunnelRefused,
)
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls
from meshlab.proxykit.tunnel import TunnelConnection

MAX_STREAMS = 100
IDLE_S = 300.0
_REASONS = {400: "Bad Request", 401: "Unauthorized", 503: "Service Unavailable"}


class TunnelRefusedError(ProtocolError):
    """The peer will not have this tunnel; ``code`` is its HTTP status, ``None`` where it gave none."""


@dataclass(frozen=True, slots=True)
class Key:
    """What connections are shared by."""

    identity: SpiffeId
    source: IPv4Address | IPv6Address
    peers: frozenset[str]
    destination: Target


class ClientTunnel(TunnelConnection):
    """The client's end of one connection."""

    def __init__(self, tls: Tls) -> None:
        super().__init__(HboneClient(), Framing(client=True))
        self.tls: Tls = tls
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when the server was accepted; fails when it was not."""
        self.idle_s = IDLE_S
        """It is closed when it has carried no stream for so long."""
        self._idle: asyncio.TimerHandle | None = None
        self._answers: dict[int, tuple[asyncio.Future[None], Half]] = {}

    @property
    def has_room(self) -> bool:
        most = min(MAX_STREAMS, self.framing.peer_max_streams)
        return self.state is ConnectionState.OPEN and self.framing.open_streams < most

    async def open(self, authority: str, headers: Mapping[str, str], half: Half) -> None:
        """Open a stream and give it to ``half``.

        Raises:
            TunnelRefusedError: the peer said no, the connection was lost before it answered, or it is not open.
        """
        if self.state is not ConnectionState.OPEN:
            raise TunnelRefusedError(f"h2 failed: the connection is {self.state.value}: {self.error}".rstrip(": "))
        stream = self.framing.next_stream()
        answer: asyncio.Future[None] = self._loop.create_future()
        self._answers[stream] = answer, half
        if self._idle:
            self._idle.cancel()
        self.tell(ConnectRequested(stream, authority, headers))
        try:
            await answer
        except asyncio.CancelledError:
            self.tell(LocalLost(stream))
            raise
        finally:
            del self._answers[stream]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.tls.start()
        self.check_established()
        self.flush_soon()

    def established(self) -> None:
        self.ready.set_result(None)

    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        assert not isinstance(effect, OpenUpstream)  # a server's
        answer, half = self._answers[effect.stream]
        match effect:
            case TunnelOpened(stream):
                self.open_transport(stream, half)
                if not answer.done():  # else whoever asked was cancelled, and is about to say so
                    answer.set_result(None)
            case TunnelRefused(status=status):
                if not answer.done():
                    answer.set_exception(_refused(status, self.error))
                self.stream_closed(effect.stream)

    def going_away(self) -> None:
        self.enter(ConnectionState.DRAINING)
        self._close_when_idle()

    def stream_closed(self, stream: int) -> None:
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self.rules.live and not self.lost:
            idle_s = self.idle_s if self.state is ConnectionState.OPEN else 0.0
            self._idle = self._loop.call_later(idle_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.rules.live:
            self.close()

    def ended(self, error: str, before: ConnectionState) -> None:
        if not self.ready.done():
            self.ready.set_exception(TunnelRefusedError(error))
            self.ready.exception()  # seen: nobody may be waiting any more


def _refused(status: int | None, error: str) -> TunnelRefusedError:
    if status is None:
        return TunnelRefusedError(f"h2 failed: {error or 'the stream was reset'}")
    return TunnelRefusedError(f"http status: {status} {_REASONS.get(status, '')}".rstrip(), status)


Connect = Callable[[Key], Awaitable[ClientTunnel]]
"""Opens a connection; it is ready, and the peer is one of ``key.peers``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Failure:
    """An attempt to connect that came to nothing; those who waited for it share it."""

    reason: str


class Pool:
    """The connections of one pod."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._tunnels: dict[Key, list[ClientTunnel]] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._failures: dict[Key, _Failure] = {}
        """The last one of each key."""

    async def get(self, key: Key) -> ClientTunnel:
        """Return a connection with room for a stream. Open the stream before the next ``await``.

        Raises:
            OSError: nobody is there.
            ProtocolError: the peer was not accepted, or closed the new connection before anybody could use it.
        """
        if (tunnel := self._with_room(key)) is not None:
            return tunnel
        seen = self._failures.get(key)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (tunnel := self._with_room(key)) is not None:
                return tunnel
            if (failure := self._failures.get(key)) is not seen and failure is not None:
                raise TunnelRefusedError(
                    failure.reason
                )  # else the last of a hundred would wait a hundred times as long
            return await self._connect_anew(key)

    async def _connect_anew(self, key: Key) -> ClientTunnel:
        try:
            tunnel = await self._connect(key)
            if not tunnel.has_room:  # the peer may have taken leave in the same breath as it accepted us
                tunnel.close()
                raise TunnelRefusedError(f"h2 failed: a new connection takes no stream: {tunnel.error or 'it is full'}")
        except (OSError, ProtocolError) as error:
            self._failures[key] = _Failure(str(error) or type(error).__name__)
            raise
        self._tunnels.setdefault(key, []).append(tunnel)
        return tunnel

    def _with_room(self, key: Key) -> ClientTunnel | None:
        tunnels = self._tunnels.get(key)
        if not tunnels:
            return None
        if any(tunnel.lost for tunnel in tunnels):
            tunnels[:] = [tunnel for tunnel in tunnels if not tunnel.lost]
        return next((tunnel for tunnel in tunnels if tunnel.has_room), None)

    def close(self) -> None:
        for tunnels in self._tunnels.values():
            for tunnel in tunnels:
                tunnel.close()


async def connect_client(sock: object, tls: Tls, timeout_s: float) -> ClientTunnel:
    """Shake hands on a connected socket, which belongs to the connection from here on: nobody else may close it.

    Raises:
        TunnelRefusedError: the server was not accepted, or did not want us.
        TimeoutError: it did not answer.
    """
    loop = asyncio.get_running_loop()
    _, tunnel = await loop.create_connection(lambda: ClientTunnel(tls), sock=sock)  # type: ignore[call-overload]
    with contextlib.ExitStack() as undo:
        undo.callback(tunnel.close)
        async with asyncio.timeout(timeout_s):
            await tunnel.ready
        undo.pop_all()
    return tunnel  # type: ignore[no-any-return]
