"""Client ends of HBONE connections, and the pool that lets streams share them.

One connection serves one source identity and address, one destination and one set of identities that it may have:
what differs in any of these never shares a TLS session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.protocols.hbone import (
    REFUSED_STREAM,
    ConnectRequested,
    Framing,
    HboneClient,
    LocalLost,
    OpenUpstream,
    StreamReset,
    Target,
    TunnelOpened,
    TunnelRefused,
)
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls
from meshlab.proxykit.tunnel import TunnelConnection

MAX_STREAMS = 100
"""On one connection."""
IDLE_S = 300.0
"""How long an unused connection is kept."""
TRIES = 3
"""How many connections a stream is asked for on, where peers take leave of each as they get it."""
_REASONS = {400: "Bad Request", 401: "Unauthorized", 503: "Service Unavailable"}


class TunnelRefusedError(ProtocolError):
    """The peer will not have this tunnel; ``code`` is its HTTP status, ``None`` where it gave none."""


class UntouchedError(TunnelRefusedError):
    """The peer has done nothing with this tunnel, because it wants it on another connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of each connection, as the environment says."""

    max_streams: int = MAX_STREAMS
    idle_s: float = IDLE_S


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
        self.rules: HboneClient
        super().__init__(HboneClient(), Framing(client=True))
        self.tls: Tls = tls
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when the server was accepted; fails when it was not."""
        self.idle_s = IDLE_S
        """It is closed when it has carried no stream for so long."""
        self.max_streams = MAX_STREAMS
        self.given_up = False
        """The peer or its pool wants no new streams on it."""
        self.spare: Callable[[], bool] = lambda: False
        """Says whether its pool has another connection with room for what this one would carry."""
        self.on_end: Callable[[ClientTunnel], object] = lambda tunnel: None
        """Called when it is lost."""
        self._idle: asyncio.TimerHandle | None = None
        self._answers: dict[int, tuple[asyncio.Future[None], Half]] = {}

    @property
    def has_room(self) -> bool:
        most = min(self.max_streams, self.framing.peer_max_streams)
        return self.state is ConnectionState.OPEN and self.framing.open_streams < most

    async def open(self, authority: str, headers: Mapping[str, str], half: Half) -> None:
        """Open a stream and give it to ``half``.

        Raises:
            UntouchedError: the peer wants the stream on another connection.
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
        if not self.ready.done():  # else whoever waited was cancelled, and is about to close it
            self.ready.set_result(None)

    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        assert not isinstance(effect, OpenUpstream)  # a server's
        answer, half = self._answers[effect.stream]
        match effect:
            case TunnelOpened(stream):
                self.open_transport(stream, half)
                if not answer.done():  # else whoever asked was cancelled, and is about to say so
                    answer.set_result(None)
            case TunnelRefused(status=status, untouched=untouched):
                if not answer.done():
                    answer.set_exception(_refused(status, self.error, untouched=untouched))
                self.stream_closed(effect.stream)

    def going_away(self) -> None:
        self.given_up = True
        self.enter(ConnectionState.DRAINING)
        self._close_when_idle()

    def left_out(self, last_stream: int) -> None:
        for stream in self.rules.left_out(last_stream):
            self.tell(StreamReset(stream, REFUSED_STREAM))

    def stream_closed(self, stream: int) -> None:
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._idle:
            self._idle.cancel()
        if self.idle and not self.lost:
            unwanted = self.state is not ConnectionState.OPEN or self.spare()
            self._idle = self._loop.call_later(0.0 if unwanted else self.idle_s, self._close_if_idle, unwanted)

    def _close_if_idle(self, unwanted: bool) -> None:
        if unwanted and self.state is ConnectionState.OPEN and not self.spare():
            self._close_when_idle()  # the other one went first
        elif self.idle:
            self.close()

    def ended(self, error: str, before: ConnectionState) -> None:
        if not self.ready.done():
            self.ready.set_exception(TunnelRefusedError(error))
            self.ready.exception()  # seen: nobody may be waiting any more
        if self._idle:
            self._idle.cancel()
        self.on_end(self)


def _refused(status: int | None, error: str, *, untouched: bool) -> TunnelRefusedError:
    if untouched:
        return UntouchedError("h2 failed: the peer does not take the stream on this connection")
    if status is None:
        return TunnelRefusedError(f"h2 failed: {error or 'the stream was reset'}")
    return TunnelRefusedError(f"http status: {status} {_REASONS.get(status, '')}".rstrip(), status)


Connect = Callable[[Key], Awaitable[ClientTunnel]]
"""Opens a connection; it is ready, and the peer is one of ``key.peers``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Failure:
    """An attempt to connect that came to nothing; those who waited for it share it."""

    reason: str


@dataclass(slots=True)
class _Opening:
    """What those share who want a connection of one key while none has room."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted_by: int = 0
    failure: _Failure | None = None
    """The last one."""


class Pool:
    """The connections of one pod."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._tunnels: dict[Key, list[ClientTunnel]] = {}
        self._openings: dict[Key, _Opening] = {}

    async def get(self, key: Key) -> ClientTunnel:
        """Return a connection with room for a stream. Open the stream before the next ``await``.

        Raises:
            OSError: nobody is there.
            ProtocolError: the peer was not accepted, or closed the new connection before anybody could use it.
        """
        if (tunnel := self._with_room(key)) is not None:
            return tunnel
        opening = self._openings.setdefault(key, _Opening())
        opening.wanted_by += 1
        try:
            return await self._open(key, opening)
        finally:
            opening.wanted_by -= 1
            if not opening.wanted_by:
                self._openings.pop(key, None)

    async def _open(self, key: Key, opening: _Opening) -> ClientTunnel:
        seen = opening.failure
        async with opening.lock:
            if (tunnel := self._with_room(key)) is not None:
                return tunnel
            if (failure := opening.failure) is not seen and failure is not None:
                # else the last of a hundred would wait a hundred times as long
                raise TunnelRefusedError(failure.reason)
            try:
                return await self._connect_anew(key)
            except (OSError, ProtocolError) as error:
                opening.failure = _Failure(str(error) or type(error).__name__)
                raise

    async def _connect_anew(self, key: Key) -> ClientTunnel:
        """Connect, and again where the peer took leave in the same breath as it accepted us: it is being replaced."""
        for _ in range(TRIES):
            tunnel = await self._connect(key)
            if tunnel.has_room:
                self._take_in(key, tunnel)
                return tunnel
            tunnel.close()
            if not tunnel.given_up:
                break
        raise TunnelRefusedError(f"h2 failed: a new connection takes no stream: {tunnel.error or 'it is full'}")

    def _take_in(self, key: Key, tunnel: ClientTunnel) -> None:
        self._tunnels.setdefault(key, []).append(tunnel)
        tunnel.spare = lambda: any(other.has_room for other in self._tunnels.get(key, ()) if other is not tunnel)
        tunnel.on_end = lambda lost: self._forget(key, lost)

    def _forget(self, key: Key, tunnel: ClientTunnel) -> None:
        tunnels = self._tunnels.get(key, [])
        if tunnel in tunnels:
            tunnels.remove(tunnel)
        if not tunnels:
            self._tunnels.pop(key, None)

    def _with_room(self, key: Key) -> ClientTunnel | None:
        return next((tunnel for tunnel in self._tunnels.get(key, ()) if tunnel.has_room), None)

    def retire(self, stale: Callable[[Key], bool]) -> None:
        """Open no new streams on the connections of these keys: each is closed when its streams have ended."""
        for key in [key for key in self._tunnels if stale(key)]:
            for tunnel in list(self._tunnels[key]):
                tunnel.going_away()

    def close(self) -> None:
        for tunnels in list(self._tunnels.values()):
            for tunnel in list(tunnels):
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
