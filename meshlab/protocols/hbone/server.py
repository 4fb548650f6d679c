"""Server side of HBONE: HTTP/2 CONNECT over mTLS, without the sockets.

    idle --ConnectReceived--> dialing --UpstreamOpened--> open --> ... --> closed     (open: see ``streams``)
      `-- not a CONNECT, ----------. `---- UpstreamFailed or StreamReset ----^
          or refused by ``judge``  '---------------------------------------'

200 is said only when the app has accepted. What the peer sends before that waits (flow control bounds it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from meshlab.protocols.hbone.events import (
    NO_ERROR,
    PROTOCOL_ERROR,
    CloseLocal,
    ConnectReceived,
    DataReceived,
    Effect,
    Event,
    OpenUpstream,
    Refusal,
    ResetStream,
    Respond,
    Revoked,
    StreamEnded,
    StreamReset,
    Target,
    UpstreamFailed,
    UpstreamOpened,
)
from meshlab.protocols.hbone.streams import OPEN_MOVES, Moves, State, Streams, close_local, revoke

Judge = Callable[[ConnectReceived], Target | Refusal]
"""Decides where a CONNECT leads, or why not."""


def refuse(stream: int, status: int) -> list[Effect]:
    """The answer, its end, and word that nothing is read any more.

    Source: https://www.rfc-editor.org/rfc/rfc9113#section-8.1 (a response may be complete before its request is)
    """
    return [Respond(stream, status, end=True), ResetStream(stream, NO_ERROR)]


def _accept(event: UpstreamOpened) -> list[Effect]:
    return [Respond(event.stream, 200, event.headers)]


def _unreachable(event: UpstreamFailed) -> list[Effect]:
    return refuse(event.stream, 503)


def _wait(_: Event) -> list[Effect]:
    return []


class HboneServer(Streams):
    """The streams of one connection that a client opened to us."""

    moves: ClassVar[Moves] = {
        **OPEN_MOVES,
        (State.DIALING, DataReceived): (State.DIALING, _wait),
        (State.DIALING, StreamEnded): (State.DIALING, _wait),
        (State.DIALING, UpstreamOpened): (State.OPEN, _accept),
        (State.DIALING, UpstreamFailed): (State.CLOSED, _unreachable),
        (State.DIALING, StreamReset): (State.CLOSED, close_local),
        (State.DIALING, Revoked): (State.CLOSED, revoke),
    }

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge
        self._early: dict[int, list[Event]] = {}

    def receive(self, event: Event) -> list[Effect]:
        dialing = self.state(event.stream) is State.DIALING
        effects = super().receive(event)
        if not dialing:
            return effects
        if self.state(event.stream) is State.DIALING:
            self._early.setdefault(event.stream, []).append(event)
            return effects
        waited = self._early.pop(event.stream, [])
        return effects + [effect for early in waited for effect in super(HboneServer, self).receive(early)]

    def receive_new(self, event: Event) -> list[Effect]:
        match event:
            case ConnectReceived():
                return self._connect(event)
            case UpstreamOpened():  # its stream was closed meanwhile
                return [CloseLocal(event.stream)]
            case _:
                return []

    def _connect(self, event: ConnectReceived) -> list[Effect]:
        if event.method != "CONNECT":
            return refuse(event.stream, 400)
        if not event.authority:
            return [ResetStream(event.stream, PROTOCOL_ERROR)]
        match self._judge(event):
            case Refusal(status=status):
                return refuse(event.stream, status)
            case target:
                self._enter(event.stream, State.DIALING)
                return [OpenUpstream(event.stream, target)]
