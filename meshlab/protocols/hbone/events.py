"""What an HBONE connection is told (events, in the past) and what it wants done (effects, imperative).

*Wire* is the HTTP/2 connection to the peer; *local* is the plain socket beside this end: the calling app's at the
client, the upstream's (the called app's) at the server. ``stream`` is the HTTP/2 stream id everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Headers = Mapping[str, str]
"""Without the pseudo-headers; names in lower case."""

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
REFUSED_STREAM = 0x7
CANCEL = 0x8
"""HTTP/2 error codes that HBONE uses. Source: https://www.rfc-editor.org/rfc/rfc9113#section-7"""


# --- from the wire -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConnectReceived:
    """A request: a CONNECT, or whatever else the peer sent instead."""

    stream: int
    authority: str
    headers: Headers = field(default_factory=dict)
    method: str = "CONNECT"


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    stream: int
    status: int
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataReceived:
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """END_STREAM: the peer's half is over."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class StreamWritable:
    """What flow control had held back of this stream has left."""

    stream: int


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    """No new streams on this connection; those up to ``last_stream`` go on."""

    last_stream: int
    code: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The peer answered a PING."""


# --- from beside ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConnectRequested:
    """Client: a tunnel is wanted."""

    stream: int
    authority: str
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpstreamOpened:
    """Server: the app has accepted."""

    stream: int
    headers: Headers = field(default_factory=dict)
    """For the 200."""


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """Server: the app could not be reached."""

    stream: int


@dataclass(frozen=True, slots=True)
class LocalData:
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LocalEnded:
    """The local socket's FIN: its half is over."""

    stream: int


@dataclass(frozen=True, slots=True)
class LocalLost:
    """The local socket is gone, e.g. by a RST."""

    stream: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """Policy no longer allows this tunnel."""

    stream: int


# --- to the wire ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendConnect:
    stream: int
    authority: str
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Respond:
    stream: int
    status: int
    headers: Headers = field(default_factory=dict)
    end: bool = False
    """With END_STREAM: nothing follows."""


@dataclass(frozen=True, slots=True)
class SendData:
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EndStream:
    """END_STREAM, after all data."""

    stream: int


@dataclass(frozen=True, slots=True)
class ResetStream:
    """RST_STREAM."""

    stream: int
    code: int
    after_data: bool = False
    """Behind the data and the end that flow control still holds back; else at once, and those are dropped."""


# --- to beside -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Where an accepted tunnel leads: an app's socket address."""

    address: IPv4Address | IPv6Address
    port: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a CONNECT is refused."""

    status: int
    reason: str
    """For this end's log; the peer sees the status only."""


@dataclass(frozen=True, slots=True)
class OpenUpstream:
    """Server: connect to the app; answer ``UpstreamOpened`` or ``UpstreamFailed``."""

    stream: int
    target: Target


@dataclass(frozen=True, slots=True)
class TunnelOpened:
    """Client: the peer said 200, bytes may flow."""

    stream: int
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TunnelRefused:
    """Client: there will be no tunnel."""

    stream: int
    status: int | None
    """``None``: the stream ended or was reset before any answer."""
    untouched: bool = False
    """The server has done nothing with it, so that it may be asked for on another connection (RFC 9113, 8.7)."""


@dataclass(frozen=True, slots=True)
class WriteLocal:
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EndLocal:
    """Shut down the local socket for writing (FIN), after all data."""

    stream: int


@dataclass(frozen=True, slots=True)
class CloseLocal:
    """Nothing more is to be written to the local socket, or read from it."""

    stream: int
    error: str = ""
    """Empty: both halves came to their end."""


WireEvent = (
    ConnectReceived
    | ResponseReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | StreamWritable
    | GoawayReceived
    | PongReceived
)
StreamWireEvent = ConnectReceived | ResponseReceived | DataReceived | StreamEnded | StreamReset
LocalEvent = ConnectRequested | UpstreamOpened | UpstreamFailed | LocalData | LocalEnded | LocalLost | Revoked
Event = StreamWireEvent | LocalEvent
WireEffect = SendConnect | Respond | SendData | EndStream | ResetStream
LocalEffect = OpenUpstream | TunnelOpened | TunnelRefused | WriteLocal | EndLocal | CloseLocal
Effect = WireEffect | LocalEffect
