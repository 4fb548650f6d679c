"""The programs of a lab: started with their output in the recorder, asked over their control channels.

Knows how a program is started and whether it still lives; what is asked of it is its caller's business.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from meshlab.errors import LabError, LabLostError
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all, pair
from meshlab.kernel.conversation import Conversation, Number
from meshlab.kernel.forkserver import ForkServer, Start
from meshlab.kernel.messages import Request
from meshlab.kernel.recorder_requests import KeepLog, ReadLogs
from meshlab.kernel.sandbox import Mntns, Netns, Sandbox
from meshlab.model import InstanceId, Role

_A = TypeVar("_A")
_T = TypeVar("_T")
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
    """The other end of a program's control channel: numbered requests, answers in any order, events kept.

    Threads do not wait for each other: each waits for its own answer.
    """

    def __init__(self, name: str, channel: Channel, why_gone: Callable[[], str]) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self._conversation = Conversation(name, channel, self.events.append)
        self._why_gone = why_gone

    def post(self, request: Request[_A], fds: Sequence[int] = ()) -> Number[_A]:
        """Send a request without waiting; its number is for ``answer``."""
        with self._saying_why_gone():
            return self._conversation.post(request, fds)

    def answer(
        self, number: Number[_A], timeout_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[_A, list[int]]:
        """The answer to request ``number``, and its descriptors, which are the caller's.

        Args:
            meanwhile: looks, while no answer comes, for what would make waiting vain; it may raise.

        Raises:
            LabLostError: the program is gone.
            LabError: it answered with an error, or not within ``timeout_s``.
        """
        with self._saying_why_gone():
            answer = self._conversation.answer(number, timeout_s, meanwhile, _LOOK_S)
        if "error" in answer.body:
            raise LabError(f"{self.name}: {answer.body['error']}")
        return answer.given, answer.claim()

    def ask(self, request: Request[_A], fds: Sequence[int] = (), within_s: float = 10.0) -> tuple[_A, list[int]]:
        """Send a request and wait for its answer, as ``answer`` does."""
        return self.answer(self.post(request, fds), within_s)

    def wait_event(self, name: str, timeout_s: float) -> dict[str, Any]:
        """The first event of that name, now or when it comes.

        Raises:
            LabLostError: the program is gone.
            LabError: there was none within ``timeout_s``.
        """
        with self._saying_why_gone():
            found = self._conversation.until(lambda: self._first(name), timeout_s)
        if found is None:
            raise self._conversation.late(timeout_s)
        return found

    def until(self, reached: Callable[[], _T | None], timeout_s: float) -> _T | None:
        """What ``reached`` gives once it gives something, looked at again whenever the program sends anything.

        ``None`` is returned where it has not within ``timeout_s``.

        Raises:
            LabLostError: the program is gone.
        """
        with self._saying_why_gone():
            return self._conversation.until(reached, timeout_s)

    def drain(self) -> list[dict[str, Any]]:
        """Every event so far."""
        self._conversation.take_in()
        return list(self.events)

    def close(self) -> None:
        self._conversation.close()

    def _first(self, name: str) -> dict[str, Any] | None:
        return next((event for event in tuple(self.events) if event["event"] == name), None)

    @contextmanager
    def _saying_why_gone(self) -> Iterator[None]:
        try:
            yield
        except ChannelClosedError as error:
            raise LabLostError(self._why_gone()) from error


@dataclass(slots=True)
class Program:
    """One program of the lab: an instance in one of its generations."""

    id: InstanceId
    pid: int
    """In the lab's pid namespace; 0 until it is started."""
    peer: Peer | None = None
    ended_by_us: bool = False
    """A test stopped it on purpose, so its exit is none of the audit's business."""
    kept_down: bool = False
    """A verb came to end it, or came after it had ended by itself: nothing but a verb starts it again."""
    paused: bool = False
    started_s: float = field(default_factory=time.monotonic)
    backoff_s: float | None = None
    """How long ``restartPolicy`` had it wait before this start; ``None`` where that was no restart by the policy."""

    @property
    def name(self) -> str:
        """``ztunnel@node-1``, ``echo@node-2``, ``shop/server``."""
        return str(self.id)


@dataclass(slots=True)
class Programs:
    """Starts programs and knows them: each start of an instance is another generation, with a log of its own."""

    sandbox: Sandbox
    forks: ForkServer
    every: dict[InstanceId, Program] = field(default_factory=dict)
    """Every generation that was started, in that order."""
    recorder: Peer | None = None
    _early_logs: list[tuple[str, int]] = field(default_factory=list)
    _waiting: list[tuple[Program, Start]] = field(default_factory=list)
    """Programs to be started."""
    _gathering: bool = False

    @property
    def by_name(self) -> dict[str, Program]:
        """Every generation by its text form."""
        return {str(instance): program for instance, program in tuple(self.every.items())}

    def next_of(self, role: Role, place: str = "") -> InstanceId:
        """The instance's next generation."""
        first = InstanceId(role, place)
        return replace(first, generation=sum(known.first == first for known in tuple(self.every)))

    def newest(self, first: InstanceId) -> Program | None:
        """The latest generation, running or not; ``None`` where there was none."""
        every = reversed(tuple(self.every.items()))
        return next((program for known, program in every if known.first == first.first), None)

    def running(self, first: InstanceId) -> list[Program]:
        """The generations that run, oldest first: mostly one."""
        self.sandbox.poll()
        return [
            program
            for known, program in tuple(self.every.items())
            if known.first == first.first and program.pid not in self.sandbox.exits
        ]

    def of_role(self, *roles: Role) -> list[Program]:
        """Every generation of these roles."""
        return [program for known, program in tuple(self.every.items()) if known.role in roles]

    def python(
        self,
        instance: InstanceId,
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
        passed, name = dict(fds), str(instance)
        try:
            if control:
                ours, theirs = pair()
                peer = Peer(name, ours, lambda: self.why_gone(name))
                passed["control"] = theirs.sock.detach()
            program = Program(instance, 0, peer if control else None)
            out = self._log_pipe(name)
        except BaseException:
            close_all(passed.values())
            if control and "control" in passed:
                peer.close()
            raise
        start = Start(
            entry=entry,
            config=config,
            fds=passed,
            netns=netns,
            mntns=mntns,
            capabilities=capabilities,
            stdout=out,
            stderr=out,
        )
        self.every[instance] = program
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
            self._let_go()

    def command(
        self,
        instance: InstanceId,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        netns: Netns,
        mntns: Mntns,
        capabilities: Iterable[str],
        cwd: str = "/",
    ) -> Program:
        """Start an executable."""
        out = self._log_pipe(str(instance))
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
        self.every[instance] = Program(instance, pid)
        return self.every[instance]

    def _let_go(self) -> None:
        """Close what programs were to be started with: they have their own copies, or will never need any."""
        while self._waiting:
            _, start = self._waiting.pop()
            close_all((start.stdout, *start.fds.values()))

    def close(self) -> None:
        """Let go of everything that no program was given."""
        self._let_go()
        while self._early_logs:
            os.close(self._early_logs.pop()[1])

    def record_logs_with(self, recorder: Peer) -> None:
        """From now on output goes to ``recorder``; what was started earlier is handed over."""
        self.recorder = recorder
        while self._early_logs:
            name, fd = self._early_logs.pop(0)
            try:
                recorder.post(KeepLog(name), [fd])
            finally:
                os.close(fd)

    def logs(self, name: str) -> str:
        """What ``name`` has printed, head and tail within the recorder's bound."""
        if self.recorder is None:
            return ""
        answer, _ = self.recorder.ask(ReadLogs([name]))
        return answer["logs"][name]["text"]

    def end(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a program on purpose."""
        program = self.by_name[name]
        program.ended_by_us |= number not in (signal.SIGSTOP, signal.SIGCONT)
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

    def _log_pipe(self, name: str) -> int:
        read, write = os.pipe2(os.O_CLOEXEC)
        if self.recorder is None:
            self._early_logs.append((name, read))
            return write
        try:
            self.recorder.post(KeepLog(name), [read])
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        return write


def describe_exit(status: int | None) -> str:
    """``exit status 1``, ``killed by SIGKILL``."""
    if status is None:
        return "it was never seen to start"
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"
