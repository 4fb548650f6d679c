"""The server's end of one HBONE connection to a waypoint: each of its streams goes on in a tunnel, or a socket, of its
own choosing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshlab.errors import ProtocolError
from meshlab.model import PodPort
from meshlab.protocols.hbone import (
    ConnectReceived,
    Framing,
    HboneServer,
    OpenUpstream,
    Refusal,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamFailed,
    UpstreamOpened,
)
from meshlab.proxykit import sockets
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.splice import Half, join
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import Tls
from meshlab.proxykit.tunnel import TunnelConnection
from meshlab.waypoint.serving import Asked, Client


@dataclass(frozen=True, slots=True)
class Way:
    """Where a stream leads."""

    asked: Asked
    target: Target
    endpoint: PodPort | None = None
    """Where its bytes go; ``None``: its requests are read, and each goes where it has to."""


class Gate(Protocol):
    """What a connection needs of its waypoint."""

    tasks: Tasks

    async def secure(self) -> Tls:
        """TLS towards a client that must be of the mesh."""

    def choose(self, authority: str, client: Client) -> Way | Refusal:
        """Where one stream leads."""

    async def connect(self, target: Target, endpoint: PodPort) -> Half:
        """The way to an endpoint; raises ``OSError`` or ``ProtocolError``."""

    async def speak(self, authority: str, asked: Asked, client: Client, half: Half) -> None:
        """Serve the requests of one stream."""

    def opened(self, authority: str, source: Target, peer: str) -> None:
        """A stream goes on."""


class ServerTunnel(TunnelConnection):
    """One connection that a client's proxy opened."""

    def __init__(self, gate: Gate, on_end: Callable[[ServerTunnel], None]) -> None:
        super().__init__(HboneServer(self._judge), Framing(client=False))
        self._gate = gate
        self._on_end = on_end
        self._source: Target
        self._chosen: dict[int, tuple[str, Way]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        """Whatever ends with its stream: dialling, or reading requests."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._source = sockets.target_of(transport.get_extra_info("peername"))
        self._gate.tasks.spawn(self._prepare())

    async def _prepare(self) -> None:
        self.transport.pause_reading()
        try:
            self.tls = await self._gate.secure()
        except ProtocolError as error:
            self.drop(str(error))
        else:
            self.check_established()
            self.transport.resume_reading()

    @property
    def _client(self) -> Client:
        return Client(self.tls.peer if self.tls else None, self._source.address)

    def _judge(self, event: ConnectReceived) -> Target | Refusal:
        way = self._gate.choose(event.authority, self._client)
        if isinstance(way, Refusal):
            return way
        self._chosen[event.stream] = event.authority, way
        return way.target

    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        assert isinstance(effect, OpenUpstream)  # the others are a client's
        authority, way = self._chosen.pop(effect.stream)
        serving = (
            self._speak(effect.stream, authority, way.asked)
            if way.endpoint is None
            else self._splice(effect.stream, authority, way.target, way.endpoint)
        )
        self._serving[effect.stream] = self._gate.tasks.spawn(serving)

    def stream_closed(self, stream: int) -> None:
        if (serving := self._serving.pop(stream, None)) is not None:
            self._loop.call_soon(serving.cancel)

    async def _splice(self, stream: int, authority: str, target: Target, endpoint: PodPort) -> None:
        client, upstream = Half(), None
        try:
            upstream = await self._gate.connect(target, endpoint)
            self._serving.pop(stream, None)
            self._open(stream, authority, client)
            await join(client, upstream)
        except (OSError, TimeoutError, ProtocolError):
            self.tell(UpstreamFailed(stream))
        finally:
            self._serving.pop(stream, None)
            client.close()
            if upstream is not None:
                upstream.close()

    async def _speak(self, stream: int, authority: str, asked: Asked) -> None:
        half = Half()
        try:
            self._open(stream, authority, half)
            await self._gate.speak(authority, asked, self._client, half)
        finally:
            self._serving.pop(stream, None)
            half.close()

    def _open(self, stream: int, authority: str, half: Half) -> None:
        self.open_transport(stream, half)
        self.tell(UpstreamOpened(stream, {}))
        self._gate.opened(authority, self._source, str(self._client.identity or ""))

    # --- the connection --------------------------------------------------------------------------------------------

    def established(self) -> None:
        """The client was accepted; its CONNECTs may come."""

    def going_away(self) -> None:
        """A client that says so opens no more streams by itself."""

    def answered(self) -> None:
        """A PING was answered."""

    def ended(self, error: str, before: ConnectionState) -> None:
        self._on_end(self)
