"""Client side of HBONE: HTTP/2 CONNECT over mTLS, without the sockets.

    idle --ConnectRequested--> awaiting --ResponseReceived 200--> open --> ... --> closed    (open: see ``streams``)
                                  `-- another status, StreamEnded, StreamReset or LocalLost ---^

Nothing of the app's is sent before the 200: a refused call has carried no byte.
"""

from __future__ import annotations

from typing import ClassVar

from meshlab.protocols.hbone.events import (
    CANCEL,
    REFUSED_STREAM,
    ConnectRequested,
    Effect,
    Event,
    LocalLost,
    ResetStream,
    ResponseReceived,
    SendConnect,
    StreamEnded,
    StreamReset,
    TunnelOpened,
    TunnelRefused,
)
from meshlab.protocols.hbone.streams import OPEN_MOVES, Moves, State, Streams


def _opened(event: ResponseReceived) -> list[Effect]:
    return [TunnelOpened(event.stream, event.headers)]


def _no_answer(event: StreamEnded) -> list[Effect]:
    return [TunnelRefused(event.stream, None)]


def _reset_before_an_answer(event: StreamReset) -> list[Effect]:
    return [TunnelRefused(event.stream, None, untouched=event.code == REFUSED_STREAM)]


def _give_up(event: LocalLost) -> list[Effect]:
    return [ResetStream(event.stream, CANCEL)]


class HboneClient(Streams):
    """The streams of one connection that we opened to a server."""

    moves: ClassVar[Moves] = {
        **OPEN_MOVES,
        (State.AWAITING, ResponseReceived): (State.OPEN, _opened),
        (State.AWAITING, StreamEnded): (State.CLOSED, _no_answer),
        (State.AWAITING, StreamReset): (State.CLOSED, _reset_before_an_answer),
        (State.AWAITING, LocalLost): (State.CLOSED, _give_up),
    }

    def receive(self, event: Event) -> list[Effect]:
        match event:
            case ResponseReceived(stream, status) if status != 200 and self.state(stream) is State.AWAITING:
                self._enter(stream, State.CLOSED)
                return [TunnelRefused(stream, status), ResetStream(stream, CANCEL)]
            case _:
                return super().receive(event)

    def left_out(self, last_stream: int) -> tuple[int, ...]:
        """Return the streams that a GOAWAY leaves out: the server will do nothing with them."""
        awaiting = [stream for stream in self.live if self.state(stream) is State.AWAITING]
        return tuple(stream for stream in awaiting if stream > last_stream)

    def receive_new(self, event: Event) -> list[Effect]:
        if not isinstance(event, ConnectRequested):
            return []
        self._enter(event.stream, State.AWAITING)
        return [SendConnect(event.stream, event.authority, event.headers)]
