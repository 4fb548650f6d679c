"""The requests that an echo answers, and their answers (see ``kernel.messages``)."""

from __future__ import annotations

from typing import Any, NamedTuple, NotRequired, TypedDict

from meshlab.kernel.messages import Op, by_name


class PortAsked(TypedDict):
    """A port of a pod."""

    pod: str
    port: int
    listener: int
    """Which of the descriptors is its listening socket."""
    mode: NotRequired[str]
    """``echo``, or ``server-first``."""


class Listening(TypedDict):
    listening: int
    """On how many sockets more."""


class Left(TypedDict):
    closed: int
    """How many connections."""


class ReceivedRows(TypedDict):
    received: dict[str, dict[str, int]]
    """Those of the canaries that any listener received -> pod -> on how many connections."""
    connections: list[list[Any]]
    """Rows (``received.Connection``) of those that were open, or got a byte, at ``since_ns`` or later."""
    forgotten_until_ns: int


class Listen(NamedTuple):
    """Serve these ports; their listening sockets come with it."""

    pods: list[PortAsked]
    op: Op[Listening] = Op("listen")


class Leave(NamedTuple):
    """Close the listeners and connections of these pods; what they had received is still remembered."""

    pods: list[str]
    reset: bool = False
    """Close each connection with a reset; else as the kernel does for a program that is killed."""
    op: Op[Left] = Op("leave")


class ReadReceived(NamedTuple):
    canaries: list[str]
    since_ns: int
    op: Op[ReceivedRows] = Op("received")


EchoRequest = Listen | Leave | ReadReceived
REQUESTS: dict[str, type[EchoRequest]] = by_name(EchoRequest)
