"""HTTP/2 frames of an HBONE connection: bytes to events, effects to bytes. h2 frames; here is what it leaves open.

Data that flow control holds back waits here, in order, and so does the END_STREAM behind it.

The numbers are Istio's ztunnel's. Source: https://www.rfc-editor.org/rfc/rfc9113
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h2.events
import h2.exceptions
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple, NeverIndexedHeaderTuple

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone.events import (
    PROTOCOL_ERROR,
    ConnectReceived,
    DataReceived,
    EndStream,
    GoawayReceived,
    Headers,
    PongReceived,
    ResetStream,
    Respond,
    ResponseReceived,
    SendConnect,
    SendData,
    StreamEnded,
    StreamReset,
    StreamWritable,
    WireEffect,
    WireEvent,
)
from meshlab.protocols.hbone.h2_mended import Connection
from meshlab.protocols.hbone.validation import Kind, malformed

_HeadersEvent = h2.events.RequestReceived | h2.events.ResponseReceived | h2.events.TrailersReceived
STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
MAX_FRAME = 1 << 20
SERVER_MAX_STREAMS = 200
SERVER_MAX_HEADERS = 64 << 10
CLIENT_MAX_HEADERS = 16 << 10
_DEFAULT_WINDOW = 65535
_LAST_STREAM = (1 << 31) - 1
_UNIQUE = frozenset({"forwarded", "traceparent"})
"""Headers with another value in each request: in the table of hpack they would only push out those that come again."""


@dataclass(slots=True)
class _Stream:
    """What may still be sent and received on a stream."""

    queue: deque[bytes] = field(default_factory=deque)
    """Held back by flow control."""
    queued_bytes: int = 0
    ending: bool = False
    """END_STREAM was asked for; it leaves behind the queue."""
    reset_code: int | None = None
    """RST_STREAM was asked for; it leaves behind END_STREAM."""
    sent_end: bool = False
    received_end: bool = False


class Framing:
    """One HTTP/2 connection. After each call of a method there may be bytes to ``take`` and send."""

    def __init__(self, *, client: bool) -> None:
        self._connection = Connection(client=client)
        self._client = client
        self._streams: dict[int, _Stream] = {}
        self._blocked: dict[int, None] = {}
        """Streams with a queue, in the order in which they got one."""
        self._unconsumed: dict[int, int] = {}
        """Bytes of each stream that were received and whose window was not given back."""
        self._start()

    def _start(self) -> None:
        if self._client:
            values = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: CLIENT_MAX_HEADERS}
        else:
            values = {
                SettingCodes.MAX_CONCURRENT_STREAMS: SERVER_MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: SERVER_MAX_HEADERS,
            }
        values |= {SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW, SettingCodes.MAX_FRAME_SIZE: MAX_FRAME}
        connection = self._connection
        connection.local_settings = Settings(client=self._client, initial_values=values)
        connection.max_inbound_frame_size = MAX_FRAME
        connection.decoder.max_header_list_size = values[SettingCodes.MAX_HEADER_LIST_SIZE]
        connection.initiate_connection()
        connection.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)

    # --- from the peer ---------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[WireEvent]:
        """What the peer's bytes say.

        Raises:
            ProtocolError: they break HTTP/2. Send what is to ``take`` (a GOAWAY) and close.
        """
        try:
            events = self._connection.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}", int(error.error_code)) from error
        translated: list[WireEvent] = []
        for event in events:
            translated += self._translate(event)
        return translated

    def _translate(self, event: h2.events.Event) -> Iterable[WireEvent]:
        match event:
            case h2.events.DataReceived(stream_id=stream, data=data):
                self._acknowledge(stream, event.flow_controlled_length - len(data))  # padding is nobody's to consume
                self._unconsumed[stream] = self._unconsumed.get(stream, 0) + len(data)
                return (DataReceived(stream, data),) if data else ()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                return self._unblock()
            case h2.events.StreamEnded(stream_id=stream):
                self._half_over(stream, received=True)
                return (StreamEnded(stream),)
            case h2.events.RequestReceived(stream_id=stream) if not self._malformed(event, "request"):
                self._streams[stream] = _Stream()
                return (_connect_received(stream, event.headers or ()),)
            case h2.events.ResponseReceived(stream_id=stream) if not self._malformed(event, "response"):
                return (_response_received(stream, event.headers or ()),)
            case h2.events.TrailersReceived() if not self._malformed(event, "trailers"):
                return ()
            case h2.events.RequestReceived() | h2.events.ResponseReceived() | h2.events.TrailersReceived():
                return self._refuse(event.stream_id)
            case h2.events.StreamReset(stream_id=stream):
                self._forget(stream)
                self._give_back(stream)
                return (StreamReset(stream, int(event.error_code or 0)),)
            case h2.events.ConnectionTerminated():
                return (GoawayReceived(event.last_stream_id or 0, int(event.error_code or 0)),)
            case h2.events.PingAckReceived():
                return (PongReceived(),)
            case _:
                return ()

    def _malformed(self, event: _HeadersEvent, kind: Kind) -> bool:
        return bool(malformed(event.headers or (), kind))

    def _refuse(self, stream: int) -> Iterable[WireEvent]:
        """End one stream over a malformed list of fields, for the peer and for our own side."""
        self._reset(stream, PROTOCOL_ERROR)
        return (StreamReset(stream, PROTOCOL_ERROR),)

    def consumed(self, stream: int, size: int) -> None:
        """Data of this size was passed on, so that the peer may send as much again."""
        left = self._unconsumed.get(stream, 0)
        if left > size:
            self._unconsumed[stream] = left - size
        else:
            self._unconsumed.pop(stream, None)
        self._acknowledge(stream, min(left, size))

    def _give_back(self, stream: int) -> None:
        """Of a stream that was reset nobody consumes anything; the connection's window must not shrink by it."""
        self._acknowledge(stream, self._unconsumed.pop(stream, 0))

    def _acknowledge(self, stream: int, size: int) -> None:
        if size:
            self._connection.acknowledge_received_data(size, stream)

    # --- to the peer -----------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """The bytes to send now."""
        return self._connection.data_to_send()

    def next_stream(self) -> int:
        """Client: the id for the next ``SendConnect``.

        Raises:
            ProtocolError: there is none left; open another connection.
        """
        try:
            return self._connection.get_next_available_stream_id()
        except h2.exceptions.NoAvailableStreamIDError as error:
            raise ProtocolError("HTTP/2: no stream id is left on this connection") from error

    @property
    def peer_max_streams(self) -> int:
        """How many streams the peer takes at once."""
        return self._connection.remote_settings.max_concurrent_streams

    @property
    def open_streams(self) -> int:
        """How many streams of ours the peer counts: also those whose last bytes wait for their window."""
        return self._connection.open_outbound_streams

    @property
    def holds_back(self) -> bool:
        """Some stream has bytes that wait for their window; the stream itself may have been closed by its app."""
        return bool(self._blocked)

    def queued_bytes(self, stream: int) -> int:
        """How much of this stream flow control holds back; ``StreamWritable`` says when it is 0 again."""
        known = self._streams.get(stream)
        return known.queued_bytes if known else 0

    def send(self, effect: WireEffect) -> None:
        """Put an effect into frames. For a stream that is over on the wire, nothing is sent."""
        if isinstance(effect, SendConnect):
            self._streams[effect.stream] = _Stream()
        stream = self._streams.get(effect.stream)
        if stream is None or (stream.sent_end and not isinstance(effect, ResetStream)):
            return
        match effect:
            case SendData(data=data):
                self._send_data(effect.stream, stream, data)
            case EndStream():
                stream.ending = True
                if not stream.queue:
                    self._end(effect.stream)
            case ResetStream(code=code, after_data=True) if stream.queue:
                stream.reset_code = code
            case ResetStream(code=code):
                self._reset(effect.stream, code)
            case SendConnect(authority=authority, headers=headers):
                self._send_headers(effect.stream, {":method": "CONNECT", ":authority": authority}, headers)
            case Respond(status=status, headers=headers, end=end):
                self._send_headers(effect.stream, {":status": str(status)}, headers, end=end)

    def ping(self) -> None:
        """Ask for a sign of life; ``PongReceived`` is the answer."""
        self._connection.ping(b"meshlab.")

    def drain(self) -> None:
        """Server: GOAWAY that ends no stream; the client opens new ones elsewhere."""
        self._connection.close_connection(last_stream_id=_LAST_STREAM)

    def _send_headers(self, stream: int, pseudo: Headers, headers: Headers, *, end: bool = False) -> None:
        block = [_field(name, value) for name, value in {**pseudo, **headers}.items()]
        self._connection.send_headers(stream, block, end_stream=end)
        if end:
            self._half_over(stream, received=False)

    def _send_data(self, stream_id: int, stream: _Stream, data: bytes) -> None:
        if not stream.queue:
            data = self._send_what_fits(stream_id, data)
        if data:
            stream.queue.append(data)
            stream.queued_bytes += len(data)
            self._blocked[stream_id] = None

    def _send_what_fits(self, stream_id: int, data: bytes) -> bytes:
        """Send as much as flow control allows; the rest of ``data``."""
        connection = self._connection
        while data:
            size = min(len(data), connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if size <= 0:
                break
            connection.send_data(stream_id, data[:size])
            data = data[size:]
        return data

    def _unblock(self) -> list[WireEvent]:
        """A window grew: send what waited."""
        free: list[WireEvent] = []
        for stream_id in list(self._blocked):
            stream = self._streams[stream_id]
            while stream.queue:
                rest = self._send_what_fits(stream_id, stream.queue[0])
                stream.queued_bytes -= len(stream.queue[0]) - len(rest)
                if rest:
                    stream.queue[0] = rest
                    break
                stream.queue.popleft()
            if not stream.queue:
                del self._blocked[stream_id]
                free.append(StreamWritable(stream_id))
                if stream.ending:
                    self._end(stream_id)
                if stream.reset_code is not None and stream_id in self._streams:
                    self._reset(stream_id, stream.reset_code)
        return free

    def _end(self, stream: int) -> None:
        self._connection.end_stream(stream)
        self._half_over(stream, received=False)

    def _reset(self, stream: int, code: int) -> None:
        self._connection.reset_stream(stream, code)
        self._forget(stream)
        self._give_back(stream)

    def _half_over(self, stream_id: int, *, received: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if received:
            stream.received_end = True
        else:
            stream.sent_end = True
        if stream.received_end and stream.sent_end:
            self._forget(stream_id)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._blocked.pop(stream, None)


def _field(name: str, value: str) -> HeaderTuple:
    kind = NeverIndexedHeaderTuple if name in _UNIQUE else HeaderTuple
    return kind(name.encode(), value.encode("latin-1", "replace"))


def _split(block: Iterable[Any]) -> tuple[Mapping[str, str], Headers]:
    """Pseudo-headers and headers; bytes beyond ASCII stay as they are (latin-1)."""
    texts = {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in block}
    return texts, {name: value for name, value in texts.items() if not name.startswith(":")}


def _connect_received(stream: int, block: Iterable[Any]) -> ConnectReceived:
    pseudo, headers = _split(block)
    return ConnectReceived(stream, pseudo.get(":authority", ""), headers, pseudo.get(":method", ""))


def _response_received(stream: int, block: Iterable[Any]) -> ResponseReceived:
    pseudo, headers = _split(block)
    return ResponseReceived(stream, int(pseudo[":status"]), headers)
