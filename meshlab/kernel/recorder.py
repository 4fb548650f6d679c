"""The recorder of a lab: one process that empties the rings of all its nodes and the output of all its programs.

It never looks into a packet: a block goes as it is from the ring to a memfd, which the lab reads by a descriptor of its
own. One thread; whatever it waits for is an event. Its requests are those of ``recorder_requests``.

    lab --OpenRing + packet socket------------> RingIndex      also OpenCapture, Position, ReleaseBlocks: the packets
        --KeepLog + a pipe's read end---------> Done           also ReadLogs, ReadLogsSince: the output of programs
        <-event backlog {position}-------------                half of the bound is in use: follow, then release
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshlab.kernel.channel import Channel, ChannelClosedError, wait_s
from meshlab.kernel.messages import Done, read
from meshlab.kernel.recorder_requests import (
    REQUESTS,
    KeepLog,
    Logs,
    LogsSince,
    OpenCapture,
    OpenRing,
    Position,
    ReadLogs,
    ReadLogsSince,
    Recorded,
    RecorderRequest,
    ReleaseBlocks,
    RingIndex,
)
from meshlab.kernel.recording import EndedLogs, Log, Recording
from meshlab.kernel.ring import Ring

DEFAULT_LIMIT_BYTES = 256 << 20
_ENDED_LOGS_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that is answered when more than ``after`` bytes were recorded, or at the deadline."""

    id: int
    after: int
    deadline: float


class Recorder:
    """See the module. ``config``: ``limit_bytes``. ``fds``: ``control``."""

    def __init__(self, config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        self.channel = Channel.from_fd(fds["control"])
        self.recording = Recording(config.get("limit_bytes", DEFAULT_LIMIT_BYTES))
        self.rings: dict[str, Ring] = {}
        self.logs: dict[str, Log] = {}
        self._ended = EndedLogs(_ENDED_LOGS_BYTES)
        self._waiting: list[_Waiting] = []
        self._told_backlog = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Record until the lab's end of the channel is closed."""
        self._selector.register(self.channel, selectors.EVENT_READ, self._requested)
        try:
            while True:
                self.channel.watch(self._selector)
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                self._answer_waiting()
        except ChannelClosedError:
            return

    def kept(self, block: memoryview) -> bytes | memoryview:
        """What of a block is recorded: all of it."""
        return block

    def _empty(self, index: int, ring: Ring) -> None:
        for block in ring.ready():
            self.recording.append(index, self.kept(block))
        if self.recording.kept > self.recording.limit_bytes // 2 and not self._told_backlog:
            self._told_backlog = True
            self.channel.send({"event": "backlog", "position": self.recording.position})

    def _requested(self) -> None:
        self.channel.flush()
        if (message := self.channel.take()) is None:
            return
        asked, fds = message
        try:
            self._do(asked["id"], read(REQUESTS, asked), fds)
        except ChannelClosedError:
            raise
        except Exception as error:  # as netd: a request that makes no sense is answered as one that fails
            self.channel.send({"id": asked.get("id"), "error": f"{type(error).__name__}: {error}"})

    def _do(self, number: int, request: RecorderRequest, fds: list[int]) -> None:
        match request:
            case OpenRing(node):
                self._reply(number, self._open_ring(node, fds[0]))
            case OpenCapture():
                self.channel.send({"id": number}, [self.recording.fd])
            case Position(after, timeout_s):
                self._waiting.append(_Waiting(number, int(after), time.monotonic() + wait_s(timeout_s)))
            case ReleaseBlocks(before):
                self.recording.release(before)
                self._told_backlog = False
                self._reply(number, Done())
            case KeepLog(name):
                self._keep_log(name, fds[0])
                self._reply(number, Done())
            case ReadLogs(names):
                self._reply(number, self._read_logs(names or list(self.logs)))
            case ReadLogsSince(places):
                self._reply(number, self._read_logs_since(places))

    def _reply(self, number: int, answer: Mapping[str, object]) -> None:
        self.channel.send({"id": number, **answer})

    def _open_ring(self, node: str, fd: int) -> RingIndex:
        index, ring = len(self.rings), Ring(fd)
        self.rings[node] = ring
        self._selector.register(ring, selectors.EVENT_READ, lambda: self._empty(index, ring))
        return RingIndex(index=index)

    def _keep_log(self, name: str, fd: int) -> None:
        log = self.logs[name] = Log(fd)
        self._selector.register(log.fd, selectors.EVENT_READ, lambda: self._listen(log))

    def _read_logs(self, names: Sequence[str]) -> Logs:
        for name in names:
            self.logs[name].drain()
        return Logs(logs={name: self.logs[name].report() for name in names})

    def _read_logs_since(self, places: Mapping[str, int]) -> LogsSince:
        found = {}
        for name, place in places.items():
            self.logs[name].drain()
            found[name] = self.logs[name].since(place)
        return LogsSince(logs=found)

    def _listen(self, log: Log) -> None:
        if not log.read():
            self._selector.unregister(log.fd)
            log.close()
            self._ended.add(log)

    def _patience_s(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, min(waiting.deadline for waiting in self._waiting) - time.monotonic())

    def _answer_waiting(self) -> None:
        now = time.monotonic()
        due = [one for one in self._waiting if one.after < self.recording.position or one.deadline <= now]
        if not due:
            return
        self._waiting = [one for one in self._waiting if one not in due]
        for ring in self.rings.values():
            ring.statistics()
        for one in due:
            answer = Recorded(
                position=self.recording.position,
                drops={node: ring.drops for node, ring in self.rings.items()},
                packets={node: ring.packets for node, ring in self.rings.items()},
            )
            self._reply(one.id, answer)


def stop_at_sigterm() -> None:
    """SIGTERM ends the process with status 0, wherever it is."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """The program: ``meshlab.kernel.recorder:main``."""
    stop_at_sigterm()
    Recorder(config, fds).run()
