"""HBONE, Istio's tunnel: HTTP/2 CONNECT inside mTLS. Both ends, without sockets, TLS or a clock.

    bytes --> Framing --> events --> HboneServer or HboneClient --> effects --> Framing --> bytes
                                        ^                    |
                              local events              local effects      (the socket of the app beside this end)

``Framing`` is HTTP/2 itself (h2). The two ends are tables of legal moves, one state per stream. Whoever owns the
sockets carries events in and effects out (``meshlab.proxykit.tunnel``, or a test).

Source: https://istio.io/latest/docs/ambient/architecture/hbone/
"""

from meshlab.protocols.hbone.authority import Authority
from meshlab.protocols.hbone.client import HboneClient
from meshlab.protocols.hbone.events import (
    REFUSED_STREAM,
    CloseLocal,
    ConnectReceived,
    ConnectRequested,
    DataReceived,
    Effect,
    EndLocal,
    EndStream,
    Event,
    GoawayReceived,
    LocalData,
    LocalEnded,
    LocalLost,
    OpenUpstream,
    PongReceived,
    Refusal,
    ResetStream,
    Respond,
    ResponseReceived,
    Revoked,
    SendConnect,
    SendData,
    StreamEnded,
    StreamReset,
    StreamWritable,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamFailed,
    UpstreamOpened,
    WireEffect,
    WireEvent,
    WriteLocal,
)
from meshlab.protocols.hbone.framing import Framing
from meshlab.protocols.hbone.server import HboneServer

__all__ = [
    "REFUSED_STREAM",
    "Authority",
    "CloseLocal",
    "ConnectReceived",
    "ConnectRequested",
    "DataReceived",
    "Effect",
    "EndLocal",
    "EndStream",
    "Event",
    "Framing",
    "GoawayReceived",
    "HboneClient",
    "HboneServer",
    "LocalData",
    "LocalEnded",
    "LocalLost",
    "OpenUpstream",
    "PongReceived",
    "Refusal",
    "ResetStream",
    "Respond",
    "ResponseReceived",
    "Revoked",
    "SendConnect",
    "SendData",
    "StreamEnded",
    "StreamReset",
    "StreamWritable",
    "Target",
    "TunnelOpened",
    "TunnelRefused",
    "UpstreamFailed",
    "UpstreamOpened",
    "WireEffect",
    "WireEvent",
    "WriteLocal",
]
