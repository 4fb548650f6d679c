"""An HBONE connection on a socket: TLS, HTTP/2 and the rules of its streams, in one place that does the I/O.

    socket <-> Tls <-> Framing <-> HboneClient or HboneServer <-> a TunnelTransport per stream <-> Half

A stream is an asyncio transport, so that whatever drives a socket can drive a tunnel.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import cast

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import (
    CloseLocal,
    DataReceived,
    Effect,
    EndLocal,
    Event,
    Framing,
    GoawayReceived,
    HboneClient,
    HboneServer,
    LocalData,
    LocalEnded,
    LocalLost,
    OpenUpstream,
    PongReceived,
    StreamReset,
    StreamWritable,
    TunnelOpened,
    TunnelRefused,
    WireEvent,
    WriteLocal,
)
from meshlab.proxykit.connection_state import ESTABLISHED, MAY_FOLLOW, ConnectionState
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls, TlsError

PING_EVERY_S = 10.0
PING_TIMEOUT_S = 20.0
_BUFFER = bytearray(1 << 16)
_VIEW = memoryview(_BUFFER)
_QUEUE_BYTES = 1 << 18
"""More than this of one stream waiting for its window, and its socket is no longer read."""
_CANCEL = 8


class TunnelTransport(asyncio.Transport):
    """One stream of a connection, in asyncio's words."""

    def __init__(self, connection: TunnelConnection, stream: int, half: Half) -> None:
        super().__init__()
        self.stream = stream
        self.error = ""
        """Why the stream is gone; empty: both halves came to their end."""
        self._connection = connection
        self._half = half
        self._reading = False
        """Paused from birth: data may come in the same breath as the 200, and nobody is joined yet."""
        self._waiting: deque[bytes] = deque()
        """What came while reading was paused; its window is not given back."""
        self._ended = False
        self._end_told = False
        self._writing = True
        self._closing = False
        half.connection_made(self)

    # --- what asyncio's protocols call -----------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._connection.tell(LocalData(self.stream, bytes(data)))
            self.check_writing()

    def write_eof(self) -> None:
        self._connection.tell(LocalEnded(self.stream))

    def get_write_buffer_size(self) -> int:
        """0: an end that is written now keeps its place behind what flow control holds back."""
        return 0

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        while self._waiting and (self._reading or self._closing):
            self._hand_on(self._waiting.popleft())
        self._tell_end()

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Give up the stream; after both halves have ended there is nothing left to give up."""
        if not self._closing:
            self._connection.tell(LocalLost(self.stream))

    def abort(self) -> None:
        self.close()

    # --- what the connection calls ---------------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        if self._reading:
            self._hand_on(data)
        else:
            self._waiting.append(data)

    def deliver_end(self) -> None:
        self._ended = True
        self._tell_end()

    def gone(self, error: str) -> None:
        """The stream is over, in whatever way; what came before is still delivered, at the latest by the join."""
        self._closing = True
        self.error = error
        if self._half.joined:
            self.resume_reading()
        self._half.connection_lost(None)

    def check_writing(self) -> None:
        """Stop or restart the other side's reading, by what waits here."""
        free = self._connection.writable and self._connection.framing.queued_bytes(self.stream) <= _QUEUE_BYTES
        if free != self._writing:
            self._writing = free
            self._half.resume_writing() if free else self._half.pause_writing()

    def _hand_on(self, data: bytes) -> None:
        self._half.data_received(data)
        self._connection.consumed(self.stream, len(data))

    def _tell_end(self) -> None:
        if self._ended and not self._waiting and not self._end_told and (self._reading or self._closing):
            self._end_told = True
            self._half.eof_received()


class TunnelConnection(asyncio.BufferedProtocol):
    """One connection between two proxies."""

    def __init__(self, rules: HboneClient | HboneServer, framing: Framing) -> None:
        self.rules = rules
        self.framing = framing
        self.transport: asyncio.Transport
        self.connected = False
        """There is a transport: asyncio makes it some turns of its loop after the connection was accepted."""
        self.tls: Tls | None = None
        """``None`` while this end is not ready for a handshake."""
        self.writable = True
        self.state = ConnectionState.HANDSHAKING
        self.error = ""
        self._streams: dict[int, TunnelTransport] = {}
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._unanswered = 0
        """PINGs of ours that the peer has not answered."""

    @property
    def idle(self) -> bool:
        """No stream is open, and nothing that was written to one waits for its window."""
        return not self.rules.live and not self.framing.holds_back

    @property
    def lost(self) -> bool:
        return self.state is ConnectionState.LOST

    def enter(self, state: ConnectionState) -> bool:
        """Go on to a state; return whether it may follow the one that is left."""
        if state not in MAY_FOLLOW[self.state]:
            return False
        self.state = state
        return True

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.connected = True
        self.transport.set_write_buffer_limits(high=_QUEUE_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        assert self.tls is not None  # nothing is read before
        try:
            plaintext = self.tls.receive(bytes(_VIEW[:nbytes]))
            self.check_established()
            if plaintext:
                for event in self.framing.receive(plaintext):
                    self.on_wire(event)
        except ProtocolError as error:
            self.close(str(error))
        else:
            self.flush_soon()
            if self.tls.ended:
                self.close("the peer closed the connection")

    def eof_received(self) -> None:
        self.close("the peer closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(str(exc) if exc else "the peer closed the connection")

    def pause_writing(self) -> None:
        self._set_writable(False)

    def resume_writing(self) -> None:
        self._set_writable(True)

    def _set_writable(self, writable: bool) -> None:
        self.writable = writable
        for stream in list(self._streams.values()):
            stream.check_writing()

    # --- the two ends' side ----------------------------------------------------------------------------------------

    @abstractmethod
    def established(self) -> None:
        """The handshake is over and the peer is accepted."""

    @abstractmethod
    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        """Do what only this end can."""

    @abstractmethod
    def going_away(self) -> None:
        """The peer wants no new streams here."""

    def left_out(self, last_stream: int) -> None:
        """The peer does nothing with streams of ours after this one."""

    def answered(self) -> None:
        """The peer has answered every PING: whatever it had sent before it read the last one is here."""

    def stream_closed(self, stream: int) -> None:
        """A stream has come to its end, or the last bytes of one that had ended have left."""

    def ended(self, error: str, before: ConnectionState) -> None:
        """The connection is lost; ``before`` is the state that it had until then."""

    def open_transport(self, stream: int, half: Half) -> TunnelTransport:
        transport = self._streams[stream] = TunnelTransport(self, stream, half)
        return transport

    def tell(self, event: Event) -> None:
        """Let an event have its effects."""
        for effect in self.rules.receive(event):
            self._do(effect)
        self.flush_soon()

    def consumed(self, stream: int, size: int) -> None:
        self.framing.consumed(stream, size)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Send at the end of this turn of the loop: what many streams say in it leaves in one record."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self, error: str = "the connection is closed") -> None:
        """End the connection and every stream on it."""
        if not self.lost:
            self._flush()
            if self.state in ESTABLISHED and self.tls is not None:
                self.tls.close()
                self.transport.write(self.tls.outgoing())
            self.transport.close()
            self._over(error)

    def drop(self, error: str) -> None:
        """End the connection at once, without a word."""
        self.transport.abort()
        self._over(error)

    def _do(self, effect: Effect) -> None:
        match effect:
            case WriteLocal(stream, data):
                self._streams[stream].deliver(data)
            case EndLocal(stream):
                self._streams[stream].deliver_end()
            case CloseLocal(stream, error):
                if (transport := self._streams.pop(stream, None)) is not None:
                    transport.gone(error)
                self.stream_closed(stream)
            case OpenUpstream() | TunnelOpened() | TunnelRefused():
                self.perform(effect)
            case wire:
                self.framing.send(wire)

    def on_wire(self, event: WireEvent) -> None:
        match event:
            case StreamWritable(stream):
                if stream in self._streams:
                    self._streams[stream].check_writing()
                else:
                    self.stream_closed(stream)
            case GoawayReceived(last_stream):
                self.going_away()
                self.left_out(last_stream)
            case PongReceived():
                self._wait_to_ping()
                self._unanswered = max(0, self._unanswered - 1)
                if not self._unanswered:
                    self.answered()
            case DataReceived(stream, data) if self.rules.state(stream) is None:
                self.framing.consumed(stream, len(data))  # it crossed our end of the stream
            case event:
                self.tell(event)

    def check_established(self) -> None:
        if self.tls is not None and self.tls.peer is not None and self.enter(ConnectionState.OPEN):
            self._wait_to_ping()
            self.established()

    def _flush(self) -> None:
        self._flushing = False
        if self.lost or self.tls is None:
            return
        try:
            if self.state in ESTABLISHED:
                self.tls.send(self.framing.take())
        except TlsError as error:
            self.error = str(error)
        if data := self.tls.outgoing():
            self.transport.write(data)

    def _wait_to_ping(self) -> None:
        self._restart_timer(PING_EVERY_S, self.ping)

    def ping(self) -> None:
        """Ask for a sign of life; a peer that gives none in time is dropped."""
        self.framing.ping()
        self._unanswered += 1
        self.flush_soon()
        self._restart_timer(PING_TIMEOUT_S, lambda: self.drop("the peer did not answer a PING"))

    def _restart_timer(self, delay_s: float, then: Callable[[], None]) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, then)

    def _over(self, error: str) -> None:
        before = self.state
        if not self.enter(ConnectionState.LOST):
            return
        self.error = self.error or error
        if self._timer:
            self._timer.cancel()
        for stream in self.rules.live:
            self.tell(StreamReset(stream, _CANCEL))
        self.ended(self.error, before)
