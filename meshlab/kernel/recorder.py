"""The recorder of a lab: one process that empties the rings of all its nodes and the output of all its programs.

It never looks into a packet: a block goes as it is from the ring to a memfd, which the lab reads by a descriptor of its
own. One thread; whatever it waits for is an event.

    lab --{"op": "ring", "node"} + packet socket--> {"index"}            blocks of this node carry the index
        --{"op": "capture"}-----------------------> {} + the memfd
        --{"op": "position", "after", "timeout_s"}-> {"position", "drops", "packets"} (by node)
        --{"op": "release", "before"}-------------> {}
        --{"op": "log", "name"} + a pipe's read end> {}
        --{"op": "logs", "names"?}----------------> {"logs": {name: {"text", "bytes", "lost", "alarms", "more_alarms"}}}
        --{"op": "log_since", "places": {name: n}}> {"logs": {name: {"text", "lost", "next"}}}
        <-{"event": "backlog", "position"}--------- half of the bound is in use: follow, then release
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meshlab.kernel.channel import Channel, ChannelClosedError, wait_s
from meshlab.kernel.recording import Log, Recording
from meshlab.kernel.ring import Ring

DEFAULT_LIMIT_BYTES = 256 << 20


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
        self._waiting: list[_Waiting] = []
        self._told_backlog = False
        self._selector = selectors.DefaultSelector()
        self._ops: Mapping[str, Callable[[dict[str, Any], list[int]], None]] = {
            "ring": self._op_ring,
            "capture": self._op_capture,
            "position": self._op_position,
            "release": self._op_release,
            "log": self._op_log,
            "logs": self._op_logs,
            "log_since": self._op_log_since,
        }

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
        request, fds = message
        try:
            op = self._ops.get(request["op"])
            if op is None:
                raise ValueError(f"no such op: {request['op']!r} (there are {', '.join(self._ops)})")
            op(request, fds)
        except ChannelClosedError:
            raise
        except Exception as error:  # as netd: a request that makes no sense is answered as one that fails
            self.channel.send({"id": request.get("id"), "error": f"{type(error).__name__}: {error}"})

    def _op_ring(self, request: dict[str, Any], fds: list[int]) -> None:
        index, ring = len(self.rings), Ring(fds[0])
        self.rings[request["node"]] = ring
        self._selector.register(ring, selectors.EVENT_READ, lambda: self._empty(index, ring))
        self.channel.send({"id": request["id"], "index": index})

    def _op_capture(self, request: dict[str, Any], _: list[int]) -> None:
        self.channel.send({"id": request["id"]}, [self.recording.fd])

    def _op_position(self, request: dict[str, Any], _: list[int]) -> None:
        deadline = time.monotonic() + wait_s(request, 0)
        self._waiting.append(_Waiting(request["id"], int(request.get("after", -1)), deadline))

    def _op_release(self, request: dict[str, Any], _: list[int]) -> None:
        self.recording.release(request["before"])
        self._told_backlog = False
        self.channel.send({"id": request["id"]})

    def _op_log(self, request: dict[str, Any], fds: list[int]) -> None:
        log = self.logs[request["name"]] = Log(fds[0])
        self._selector.register(log.fd, selectors.EVENT_READ, lambda: self._listen(log))
        self.channel.send({"id": request["id"]})

    def _op_logs(self, request: dict[str, Any], _: list[int]) -> None:
        names = request.get("names") or list(self.logs)
        for name in names:
            self.logs[name].drain()
        self.channel.send({"id": request["id"], "logs": {name: self.logs[name].report() for name in names}})

    def _op_log_since(self, request: dict[str, Any], _: list[int]) -> None:
        read = {}
        for name, place in request["places"].items():
            self.logs[name].drain()
            read[name] = self.logs[name].since(place)
        self.channel.send({"id": request["id"], "logs": read})

    def _listen(self, log: Log) -> None:
        if not log.read():
            self._selector.unregister(log.fd)
            log.close()

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
            self.channel.send(
                {
                    "id": one.id,
                    "position": self.recording.position,
                    "drops": {node: ring.drops for node, ring in self.rings.items()},
                    "packets": {node: ring.packets for node, ring in self.rings.items()},
                }
            )


def stop_at_sigterm() -> None:
    """SIGTERM ends the process with status 0, wherever it is."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """The program: ``meshlab.kernel.recorder:main``."""
    stop_at_sigterm()
    Recorder(config, fds).run()
