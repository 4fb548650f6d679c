"""What both ends of HBONE do alike: an open tunnel, from its first byte to its last.

    open --StreamEnded--> peer ended ---LocalEnded--,
      `--LocalEnded--> local ended ----StreamEnded--+--> closed
    any of these --StreamReset, LocalLost or Revoked-'

END_STREAM and a socket's FIN mean each other, in each direction for itself: half-close works end to end. Everything
abrupt becomes an end in order on the other side: a RST is never passed on, as in Istio's ztunnel.

A move that is not in a table is the peer's fault and ends that stream alone, with PROTOCOL_ERROR. A stream that has
closed is forgotten, and what still comes for it crossed the close on its way: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

from meshlab.protocols.hbone.events import (
    CANCEL,
    PROTOCOL_ERROR,
    CloseLocal,
    DataReceived,
    Effect,
    EndLocal,
    EndStream,
    Event,
    LocalData,
    LocalEnded,
    LocalLost,
    ResetStream,
    Revoked,
    SendData,
    StreamEnded,
    StreamReset,
    WriteLocal,
)


class State(Enum):
    DIALING = "dialing"
    """Server: the upstream is being opened."""
    AWAITING = "awaiting"
    """Client: CONNECT is sent, the answer not here."""
    OPEN = "open"
    PEER_ENDED = "peer ended"
    LOCAL_ENDED = "local ended"
    CLOSED = "closed"


React = Callable[[Any], list[Effect]]
Moves = Mapping[tuple[State, type[Event]], tuple[State, React]]


def write_local(event: DataReceived) -> list[Effect]:
    return [WriteLocal(event.stream, event.data)]


def send_data(event: LocalData) -> list[Effect]:
    return [SendData(event.stream, event.data)]


def end_local(event: StreamEnded) -> list[Effect]:
    return [EndLocal(event.stream)]


def end_stream(event: LocalEnded) -> list[Effect]:
    return [EndStream(event.stream)]


def end_local_last(event: StreamEnded) -> list[Effect]:
    return [EndLocal(event.stream), CloseLocal(event.stream)]


def end_stream_last(event: LocalEnded) -> list[Effect]:
    return [EndStream(event.stream), CloseLocal(event.stream)]


def close_local(event: StreamReset) -> list[Effect]:
    return [CloseLocal(event.stream, f"stream reset by the peer (code {event.code})")]


def end_and_reset(event: LocalLost) -> list[Effect]:
    """The peer sees all data and their end first, so that its app sees a FIN; the reset is for what it would send."""
    reset = ResetStream(event.stream, CANCEL, after_data=True)
    return [EndStream(event.stream), reset, CloseLocal(event.stream, "local socket lost")]


def revoke(event: Revoked) -> list[Effect]:
    return [ResetStream(event.stream, CANCEL), CloseLocal(event.stream, "connection closed due to policy change")]


LIVE = (State.OPEN, State.PEER_ENDED, State.LOCAL_ENDED)

OPEN_MOVES: Moves = {
    (State.OPEN, DataReceived): (State.OPEN, write_local),
    (State.LOCAL_ENDED, DataReceived): (State.LOCAL_ENDED, write_local),
    (State.OPEN, LocalData): (State.OPEN, send_data),
    (State.PEER_ENDED, LocalData): (State.PEER_ENDED, send_data),
    (State.OPEN, StreamEnded): (State.PEER_ENDED, end_local),
    (State.LOCAL_ENDED, StreamEnded): (State.CLOSED, end_local_last),
    (State.OPEN, LocalEnded): (State.LOCAL_ENDED, end_stream),
    (State.PEER_ENDED, LocalEnded): (State.CLOSED, end_stream_last),
    **{(state, StreamReset): (State.CLOSED, close_local) for state in LIVE},
    **{(state, LocalLost): (State.CLOSED, end_and_reset) for state in LIVE},
    **{(state, Revoked): (State.CLOSED, revoke) for state in LIVE},
}


class Streams:
    """Every stream of one connection, each in its own state."""

    moves: ClassVar[Moves] = OPEN_MOVES

    def __init__(self) -> None:
        self._states: dict[int, State] = {}

    def state(self, stream: int) -> State | None:
        """``None``: closed, or never opened."""
        return self._states.get(stream)

    @property
    def live(self) -> tuple[int, ...]:
        """The streams that are not closed."""
        return tuple(self._states)

    def receive(self, event: Event) -> list[Effect]:
        """Take one event; what is to be done now, in order."""
        state = self._states.get(event.stream)
        if state is None:
            return self.receive_new(event)
        move = self.moves.get((state, type(event)))
        if move is None:
            return self._illegal(event, state)
        following, react = move
        self._enter(event.stream, following)
        return react(event)

    def receive_new(self, event: Event) -> list[Effect]:
        """Take an event of a stream that is not open: only one that opens it does anything."""
        return []

    def _enter(self, stream: int, state: State) -> None:
        if state is State.CLOSED:
            del self._states[stream]
        else:
            self._states[stream] = state

    def _illegal(self, event: Event, state: State) -> list[Effect]:
        self._enter(event.stream, State.CLOSED)
        what = f"{type(event).__name__} while {state.value}"
        return [ResetStream(event.stream, PROTOCOL_ERROR), CloseLocal(event.stream, f"protocol error: {what}")]
