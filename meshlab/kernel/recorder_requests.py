"""The requests that the recorder answers, and their answers (see ``messages``)."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from meshlab.kernel.messages import Done, Op, by_name


class RingIndex(TypedDict):
    index: int
    """Blocks of this node carry it."""


class Recorded(TypedDict):
    position: int
    """How many bytes were recorded since the beginning."""
    drops: dict[str, int]
    """By node, as ``packets``."""
    packets: dict[str, int]


class LogReport(TypedDict):
    """The output of one program."""

    text: str
    bytes: int
    """How many came in all."""
    lost: int
    """How many of them are left out of ``text``."""
    alarms: list[str]
    """The first lines with a panic or a traceback."""
    more_alarms: int
    """How many more there were."""


class Logs(TypedDict):
    logs: dict[str, LogReport]


class LogSince(TypedDict):
    """What a program has printed from some byte on, in whole lines."""

    text: str
    lost: int
    """Bytes that are not kept any more."""
    next: int
    """The byte to go on from."""


class LogsSince(TypedDict):
    logs: dict[str, LogSince]


class OpenRing(NamedTuple):
    """Record a node's packets; the packet socket comes with it."""

    node: str
    op: Op[RingIndex] = Op("ring")


class OpenCapture(NamedTuple):
    """The memfd of what is recorded is in the answer."""

    op: Op[Done] = Op("capture")


class Position(NamedTuple):
    """Answered when more than ``after`` bytes were recorded, or after ``timeout_s``."""

    after: int = -1
    timeout_s: float = 0.0
    op: Op[Recorded] = Op("position")


class ReleaseBlocks(NamedTuple):
    """Free what was recorded before this position."""

    before: int
    op: Op[Done] = Op("release")


class KeepLog(NamedTuple):
    """Keep the output of a program; the read end of its pipe comes with it."""

    name: str
    op: Op[Done] = Op("log")


class ReadLogs(NamedTuple):
    names: list[str] | None = None
    """None or empty: all of them."""
    op: Op[Logs] = Op("logs")


class ReadLogsSince(NamedTuple):
    places: dict[str, int]
    """Name -> the first byte that is wanted."""
    op: Op[LogsSince] = Op("log_since")


RecorderRequest = OpenRing | OpenCapture | Position | ReleaseBlocks | KeepLog | ReadLogs | ReadLogsSince
REQUESTS: dict[str, type[RecorderRequest]] = by_name(RecorderRequest)
