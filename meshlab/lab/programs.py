"""The programs of a lab: started with their output in the recorder, asked over their control channels.

Knows how a program is started and whether it still lives; what is asked of it is its caller's business.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from meshlab.errors import LabError, LabLostError
from meshlab.kernel.channel import Channel, ChannelClosedError, pair
from meshlab.kernel.forkserver import ForkServer, Start
from meshlab.kernel.sandbox import Mntns, Netns, Sandbox

_LOOK_S = 0.1
"""An answer that takes longer is waited for with an eye on what it depends on."""
CLEAN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8"}
CLEAN_ENV["TERM"] = "dumb"
WARM = (
    "meshlab.controlplane.main",
    "meshlab.agent.main",
    "meshlab.ztunnel.main",
    "meshlab.apps.echo",
    "meshlab.kernel.recorder",
)
"""What the fork server imports once."""


class Peer:
    """The other end of a program's control channel: numbered requests, answers in any order, events kept."""

    def __init__(self, name: str, channel: Channel, why_gone: Callable[[], str]) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self._channel = channel
        self._why_gone = why_gone
        self._lock = threading.RLock()
        self._number = 0
        self._answers: dict[int, tuple[dict[str, Any], list[int]]] = {}

    def post(self, operation: str, fds: Sequence[int] = (), **fields: Any) -> int:
        """Send a request without waiting; its number is for ``answer``."""
        with self._lock:
            self._number += 1
            try:
                self._channel.send({"id": self._number, "op": operation, **fields}, fds)
            except ChannelClosedError as error:
                raise LabLostError(self._why_gone()) from error
            return self._number

    def answer(
        self, number: int, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, Any], list[int]]:
        """The answer to request ``number``.

        Args:
            meanwhile: looks, while no answer comes, for what would make waiting vain; it may raise.

        Raises:
            LabLostError: the program is gone.
            LabError: it answered with an error, or not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while number not in self._answers:
                left = max(0.0, deadline - time.monotonic())
                if self._took(min(left, _LOOK_S)):
                    continue
                if left <= _LOOK_S:
                    raise self._late(timeout_s)
                meanwhile()
            answer, fds = self._answers.pop(number)
        if "error" in answer:
            raise LabError(f"{self.name}: {answer['error']}")
        return answer, fds

    def ask(
        self, operation: str, fds: Sequence[int] = (), within_s: float = 10.0, **fields: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer, as ``answer`` does."""
        return self.answer(self.post(operation, fds, **fields), within_s)

    def wait_event(self, name: str, timeout_s: float) -> dict[str, Any]:
        """The first event of that name, now or when it comes."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while True:
                for event in self.events:
                    if event["event"] == name:
                        return event
                self._take(max(0.0, deadline - time.monotonic()), timeout_s)

    def drain(self) -> list[dict[str, Any]]:
        """Every event so far."""
        with self._lock:
            try:
                while True:
                    self._take(0.0, 0.0)
            except LabError:
                return list(self.events)

    def close(self) -> None:
        self._channel.close()
        for _, fds in self._answers.values():  # that nobody came for
            for fd in fds:
                os.close(fd)
        self._answers.clear()

    def _take(self, remaining_s: float, timeout_s: float) -> None:
        if not self._took(remaining_s):
            raise self._late(timeout_s)

    def _took(self, remaining_s: float) -> bool:
        """Whether a message came in time."""
        try:
            message, fds = self._channel.receive(remaining_s)
        except ChannelClosedError as error:
            raise LabLostError(self._why_gone()) from error
        except TimeoutError:
            return False
        if "event" in message:
            self.events.append(message)
        else:
            self._answers[message["id"]] = (message, fds)
        return True

    def _late(self, timeout_s: float) -> LabError:
        return LabError(f"{self.name} did not answer within {timeout_s:g} s")


@dataclass(slots=True)
class Program:
    """One program of the lab."""

    name: str
    """``ztunnel@node-1``, ``echo@node-2``, ``shop/server``."""
    pid: int
    """In the lab's pid namespace; 0 until it is started."""
    peer: Peer | None = None
    ended_by_us: bool = False
    """A test stopped it on purpose, so its exit is none of the audit's business."""


@dataclass(slots=True)
class Programs:
    """Starts programs and knows them by name."""

    sandbox: Sandbox
    forks: ForkServer
    by_name: dict[str, Program] = field(default_factory=dict)
    recorder: Peer | None = None
    _early_logs: list[tuple[str, int]] = field(default_factory=list)
    _waiting: list[tuple[Program, Start]] = field(default_factory=list)
    """Programs to be started."""
    _gathering: bool = False

    def python(
        self,
        name: str,
        entry: str,
        config: Mapping[str, Any],
        fds: Mapping[str, int],
        *,
        netns: Netns,
        mntns: Mntns,
        capabilities: Iterable[str] = (),
        control: bool = True,
    ) -> Program:
        """Start ``module:function`` warm, with a control channel unless told otherwise; it takes ``fds`` from us."""
        ours, theirs = pair() if control else (None, None)
        peer = Peer(name, ours, lambda: self.why_gone(name)) if ours else None
        out = self._log_pipe(name)
        start = Start(
            entry=entry,
            config=config,
            fds={**fds, **({"control": theirs.sock.detach()} if theirs else {})},
            netns=netns,
            mntns=mntns,
            capabilities=capabilities,
            stdout=out,
            stderr=out,
        )
        program = self._known(Program(name, 0, peer))
        self._waiting.append((program, start))
        if not self._gathering:
            with self.at_once():
                pass
        return program

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The Python programs of this block are started together at its end: that costs each one fork, not three."""
        self._gathering = True
        try:
            yield
            pids = self.forks.start(self.sandbox, [start for _, start in self._waiting])
            for (program, _), pid in zip(self._waiting, pids, strict=True):
                program.pid = pid
        finally:
            self._gathering = False
            for _, start in self._waiting:
                for fd in (start.stdout, *start.fds.values()):
                    os.close(fd)
            self._waiting.clear()

    def command(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        netns: Netns,
        mntns: Mntns,
        capabilities: Iterable[str],
        cwd: str = "/",
    ) -> Program:
        """Start an executable."""
        out = self._log_pipe(name)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pid, pidfd = self.sandbox.spawn(
                argv,
                netns=netns,
                mntns=mntns,
                capabilities=capabilities,
                stdio=(null, out, out),
                env={**CLEAN_ENV, **env},
                cwd=cwd,
            )
            os.close(pidfd)
        finally:
            os.close(out)
            os.close(null)
        return self._known(Program(name, pid))

    def record_logs_with(self, recorder: Peer) -> None:
        """From now on output goes to ``recorder``; what was started earlier is handed over."""
        self.recorder = recorder
        for name, fd in self._early_logs:
            recorder.post("log", [fd], name=name)
            os.close(fd)
        self._early_logs.clear()

    def logs(self, name: str) -> str:
        """What ``name`` has printed, head and tail within the recorder's bound."""
        if self.recorder is None:
            return ""
        answer, _ = self.recorder.ask("logs", names=[name])
        return str(answer["logs"][name]["text"])

    def end(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a program on purpose."""
        program = self.by_name[name]
        program.ended_by_us = True
        self.sandbox.kill(program.pid, number)

    def has_ended(self, name: str) -> bool:
        """Whether ``name`` was started and is gone."""
        self.sandbox.poll()
        program = self.by_name.get(name)
        return program is not None and program.pid in self.sandbox.exits

    def how_ended(self, name: str) -> str:
        """``exit status 1``, ``killed by SIGKILL``."""
        return describe_exit(self.sandbox.exits.get(self.by_name[name].pid))

    def why_gone(self, name: str) -> str:
        """One sentence on a program that does not answer any more, with the last lines it printed."""
        program = self.by_name.get(name)
        status = None
        if program is not None:
            try:
                status = self.sandbox.wait_exit(program.pid, 1.0)
            except TimeoutError:
                return f"{name} (pid {program.pid}) closed its control channel but still runs"
            except LabLostError as error:
                return f"{name} is gone: {error}"
        last = ""
        if self.recorder is not None and name != self.recorder.name:
            last = "\n".join(self.logs(name).splitlines()[-15:])
        return f"{name} is gone: {describe_exit(status)}" + (f"; its last lines:\n{last}" if last else "")

    def _known(self, program: Program) -> Program:
        self.by_name[program.name] = program
        return program

    def _log_pipe(self, name: str) -> int:
        read, write = os.pipe2(os.O_CLOEXEC)
        if self.recorder is None:
            self._early_logs.append((name, read))
        else:
            self.recorder.post("log", [read], name=name)
            os.close(read)
        return write


def describe_exit(status: int | None) -> str:
    """``exit status 1``, ``killed by SIGKILL``."""
    if status is None:
        return "it was never seen to start"
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"
