"""The owner's side of netd: starts it, asks it for namespaces, sockets and programs, and knows who has exited.

A ``Sandbox`` is one lab's share of the kernel. Its methods block for one round trip (30 us for a socket) and are
thread-safe: nobody waits for another's answer. When netd is gone every method raises ``LabLostError``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from meshlab.errors import HostNotReadyError, KernelRefusedError, LabError, LabLostError, StillRunsError
from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, close_all, pair
from meshlab.kernel.conversation import Answer, Conversation
from meshlab.kernel.messages import Request
from meshlab.kernel.namespaces import effective_capabilities
from meshlab.kernel.netd_requests import (
    EndIn,
    Forget,
    Hello,
    Kill,
    MakeMntns,
    MakeNetns,
    OpenSockets,
    Reap,
    RunningIn,
    Spawn,
    WriteFiles,
    WriteSysctls,
)
from meshlab.kernel.uninterrupted import uninterrupted

_A = TypeVar("_A")
_T = TypeVar("_T")
_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from meshlab.kernel import netd; from meshlab.kernel.channel import "
)
_BOOT += "Channel; netd.start(Channel.from_fd(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])"

_ROOT_NEEDS = frozenset({"NET_ADMIN", "NET_RAW", "SETPCAP", "SYS_ADMIN", "SYS_CHROOT"})
"""Without one of these uid 0 builds no lab: mostly a container's root, which a user namespace serves as anyone else."""
_CLOSED = "the lab was closed"
_DESCRIPTORS = 1 << 16
"""Enough for labs of thousands of pods."""
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
MIN_DESCRIPTORS = 1024
MORE_DESCRIPTORS = f"`ulimit -Hn {MIN_DESCRIPTORS}` as root, or a line in /etc/security/limits.conf"
_START_S = 30.0
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Netns:
    """One network namespace of a lab, pinned by a descriptor."""

    number: int
    """What netd calls it."""
    fd: int
    name: str
    """For messages: ``node-1``, ``pod:shop/client``."""


@dataclass(frozen=True, slots=True)
class Mntns:
    """One mount namespace with its host name."""

    number: int
    fd: int
    uts_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Furniture:
    """What a mount namespace has that the base has not."""

    hostname: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path -> text, bound over the host's (``/etc/hosts``, ...)."""
    folders: tuple[str, ...] = ()
    """Made in the scratch folders."""
    empty_dirs: tuple[str, ...] = ()
    """Mount points for a tmpfs each."""
    binds: tuple[str, ...] = ()
    """Host folders kept visible, read-only, although they lie in a scratch folder."""


class Sandbox:
    """A running netd. Closing it, or dying, ends everything in it."""

    def __init__(
        self,
        parent: subprocess.Popen[bytes],
        channel: Channel,
        user: int,
        pid: int,
        ipc: int,
        netd: int,
        *,
        rootless: bool,
    ) -> None:
        self._parent = parent
        """Of netd; it ends when netd does."""
        on_event, keep = _weakly(self._on_event), _weakly(self._keep)
        self._netd = Conversation("netd, PID 1 of the lab,", channel, on_event, keep)
        self._owned = [user, pid, ipc, netd]
        self._last_words = ""
        self.user_fd = user
        self.pid_fd = pid
        self.ipc_fd = ipc
        self.netd_fd = netd
        self.rootless = rootless
        self.exits: dict[int, int] = {}
        """Exit status by pid (negative: the signal) of every process of the lab that has ended."""
        self.on_exits: Callable[[Iterable[int]], None] = lambda _: None
        """Called in the reader's thread with the pids of processes that have ended: it must not wait for anything."""
        self.lost = ""
        """Why nothing works any more, once that is so."""

    @classmethod
    def start(
        cls,
        binds: Iterable[str] = (),
        rootless: bool | None = None,
        step: Callable[[str], None] | None = None,
    ) -> Sandbox:
        """Start a netd.

        Args:
            binds: host folders that stay visible although they lie in a scratch folder.
            rootless: in a user namespace; where the caller is not a root with the capabilities of one, if not given.
            step: called at each named step of the start.

        Raises:
            HostNotReadyError: a namespace or a mount was refused; the message says what mends it.
        """
        rootless = not _is_able_root() if rootless is None else rootless
        _raise_descriptor_limit()
        hello = Hello(rootless=rootless, binds=sorted(set(binds)), steps=step is not None)
        ours, theirs = pair()
        process: subprocess.Popen[bytes] | None = None
        try:
            process = uninterrupted(lambda: _launch(theirs, hello), undo=_abandon)
            theirs.close()
            return cls(process, ours, *_greet(ours, step), rootless=rootless)
        except BaseException:
            theirs.close()
            ours.close()  # netd ends at this, wherever it is
            if process is not None:
                uninterrupted(process.wait)
            raise

    def netns(self, names: Sequence[str]) -> list[Netns]:
        """New network namespaces, in the order of their names."""
        made: list[Netns] = []
        while len(made) < len(names):
            answer = self._ask(MakeNetns(wanted=len(names) - len(made)))
            numbered = zip(answer.given["result"], answer.kept, names[len(made) :], strict=False)
            made += [Netns(number, fd, name) for number, fd, name in numbered]
        return made

    def mntns(self, furniture: Furniture, netns: Netns | None = None) -> Mntns:
        """A mount namespace and a host name of its own, furnished; its /sys shows the links of ``netns``."""
        request = MakeMntns(
            netns=None if netns is None else netns.number,
            hostname=furniture.hostname,
            files=dict(furniture.files),
            folders=list(furniture.folders),
            empty_dirs=list(furniture.empty_dirs),
            binds=list(furniture.binds),
        )
        answer = self._ask(request)
        return Mntns(answer.given["result"], *answer.kept)

    def forget(self, netns: Iterable[Netns] = (), mntns: Iterable[Mntns] = ()) -> None:
        """Let go of namespaces, which end as soon as no process, socket or other descriptor holds them."""
        nets, mounts = tuple(netns), tuple(mntns)
        self._ask(Forget(netns=[one.number for one in nets], mntns=[one.number for one in mounts]))
        for fd in (*(one.fd for one in nets), *(fd for one in mounts for fd in (one.fd, one.uts_fd))):
            with contextlib.suppress(ValueError):  # another thread has closed the lab, and this with it
                self._owned.remove(fd)
                os.close(fd)

    def write_files(self, mntns: Mntns, files: Mapping[str, str]) -> None:
        """Replace what files that are there (``Furniture.files``) say; a reader never finds one empty."""
        self._ask(WriteFiles(mntns=mntns.number, files=dict(files)), what=f"write {', '.join(files)}")

    def sockets(self, wanted: Sequence[tuple[Netns, int, int, int]]) -> list[socket.socket]:
        """Sockets ``(netns, family, type, protocol)``, in order; any number. The caller closes them."""
        opened: list[socket.socket] = []
        try:
            for start in range(0, len(wanted), MAX_FDS):
                part = wanted[start : start + MAX_FDS]
                numbered = [(netns.number, family, kind, protocol) for netns, family, kind, protocol in part]
                answer = self._ask(OpenSockets(numbered))
                opened += [socket.socket(fileno=fd) for fd in answer.claim()]
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        return opened

    def sysctl(self, values: Sequence[tuple[Netns, str, str]]) -> None:
        """Write ``/proc/sys/NAME`` as each netns has it."""
        self._ask(WriteSysctls([(netns.number, name, value) for netns, name, value in values]))

    def spawn(
        self,
        argv: Sequence[str],
        *,
        netns: Netns,
        mntns: Mntns,
        capabilities: Iterable[str],
        stdio: tuple[int, int, int],
        env: Mapping[str, str],
        cwd: str = "/",
    ) -> tuple[int, int]:
        """Start a program; its pid, as the lab's pid namespace has it, and a pidfd, which the caller closes."""
        request = Spawn(
            argv=list(argv),
            env=dict(env),
            cwd=cwd,
            netns=netns.number,
            mntns=mntns.number,
            capabilities=sorted(capabilities),
        )
        answer = self._ask(request, stdio, what=f"start {argv[0]}", where=netns.name)
        return answer.given["result"], answer.claim()[0]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self._ask(Kill(pid=pid, signal=int(number)))

    def end_in(self, mntns: Mntns, number: int = signal.SIGKILL) -> list[int]:
        """Signal every process of a mount namespace, also those that are born meanwhile; their pids."""
        answer = self._ask(EndIn(mntns=mntns.number, signal=int(number)), what="signal the processes of a pod")
        return answer.given["result"]

    def wait_ended_in(self, mntns: Mntns, timeout_s: float) -> None:
        """Return when no process has this mount namespace any more.

        Raises:
            StillRunsError: one still runs after ``timeout_s``; also a ``TimeoutError``.
        """
        deadline = time.monotonic() + timeout_s
        while pids := self._wait_for_those_in(mntns, deadline):
            if time.monotonic() >= deadline:
                still = f"still run after {timeout_s:g} s"
                raise StillRunsError(f"processes {', '.join(map(str, pids))} of the lab {still}")

    def _wait_for_those_in(self, mntns: Mntns, deadline: float) -> list[int]:
        """Wait for the end of those that run now, at most until ``deadline``; their pids."""
        answer = self._ask(RunningIn(mntns=mntns.number))
        poll = select.poll()
        for pidfd in answer.fds:
            poll.register(pidfd, select.POLLIN)
        left = len(answer.fds)
        while left and (ended := poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
            for pidfd, _ in ended:
                poll.unregister(pidfd)
            left -= len(ended)
        return answer.given["result"]

    def poll(self) -> None:
        """Take in every exit until now.

        Raises:
            LabLostError: netd is gone.
        """
        self._ask(Reap())

    def wait_exit(self, pid: int, timeout_s: float) -> int:
        """The exit status of ``pid``.

        Raises:
            StillRunsError: it still runs; also a ``TimeoutError``.
            LabLostError: netd is gone.
        """
        try:
            status = self._netd.until(lambda: self.exits.get(pid), timeout_s)
        except ChannelClosedError as error:
            raise self._gone() from error
        if status is None:
            raise StillRunsError(f"process {pid} of the lab still runs after {timeout_s:g} s")
        return status

    def close(self) -> None:
        """End netd, and with it every process of the lab; nothing is left when this returns or raises."""
        uninterrupted(self._close)

    def __del__(self) -> None:
        """Ctrl-C may come between the end of ``start`` and the moment when somebody has what it returns."""
        with contextlib.suppress(Exception):
            self._close()

    def _close(self) -> None:
        if self.lost == _CLOSED:
            return
        self.lost = _CLOSED
        _end(self.netd_fd)
        self._parent.wait()
        self._netd.close()
        close_all(self._owned)
        self._owned.clear()

    def _ask(
        self, request: Request[_A], fds: Sequence[int] = (), *, what: str = "", where: str = "the lab's own"
    ) -> Answer[_A]:
        if self.lost:
            raise LabLostError(self.lost)
        try:
            answer = self._netd.ask(request, fds, _ANSWER_S)
        except ChannelClosedError as error:
            raise self._gone() from error
        if "error" in answer.body:
            if answer.body["errno"] in NO_DESCRIPTORS:
                raise too_few_descriptors()
            raise KernelRefusedError(what or request.op, where, answer.body["errno"], answer.body["error"])
        return answer

    def _gone(self) -> LabLostError:
        why = self._last_words or self._netd.fault
        how = f": {why}" if why else " (was it killed?)"
        self.lost = self.lost or f"netd, PID 1 of the lab, is gone, and everything in the lab with it{how}"
        return LabLostError(self.lost)

    # --- in the reader's thread ---

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "exits":
                self.exits.update(event["exits"])
                self.on_exits([pid for pid, _ in event["exits"]])
            case "started":
                self.exits.pop(event["pid"], None)  # of an earlier process with this pid: they come round again
            case "failed":
                self._last_words = event["why"]
            case _:
                pass

    def _keep(self, answer: Answer[Any]) -> None:
        """Namespaces are ours from the moment they arrive, so that ``close`` lets go of each."""
        if answer.body.get("keep"):
            answer.kept = answer.claim()
            self._owned += answer.kept


def _weakly(method: Callable[[_T], None]) -> Callable[[_T], None]:
    """The same without keeping its object: the reader must not keep a lab that nobody has any more."""
    weak = weakref.WeakMethod(method)

    def call(argument: _T) -> None:
        if (alive := weak()) is not None:
            alive(argument)

    return call


def too_few_descriptors() -> HostNotReadyError:
    """For an operation that found no room for another descriptor: how many there may be, and what mends it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HostNotReadyError(f"a lab needs more than the {hard} open files that are allowed here: {MORE_DESCRIPTORS}")


def _launch(theirs: Channel, hello: Hello) -> subprocess.Popen[bytes]:
    owner = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), str(owner), json.dumps(hello._asdict())],
            pass_fds=(theirs.fileno(), owner),
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "")},
            start_new_session=True,  # a terminal's Ctrl-C is for the owner, who ends labs in order
        )
    finally:
        os.close(owner)


def _abandon(started: subprocess.Popen[bytes]) -> None:
    started.kill()
    started.wait()


def _is_able_root() -> bool:
    return os.geteuid() == 0 and effective_capabilities() >= _ROOT_NEEDS


def _raise_descriptor_limit() -> None:
    """A pod costs its owner three descriptors; the usual soft limit, 1024, is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _greet(channel: Channel, step: Callable[[str], None] | None) -> list[int]:
    """Wait until a new netd is ready; descriptors of its namespaces, and of itself."""
    try:
        answer, fds = channel.receive(_START_S)
        while step is not None and "step" in answer:
            step(answer["step"])
            channel.send({"go": True})
            answer, fds = channel.receive(_START_S)
    except ChannelClosedError as error:
        raise LabLostError("netd ended before it had made the lab's namespaces (was it killed?)") from error
    except TimeoutError as error:
        raise LabError(f"netd was not ready within {_START_S:g} s: is the machine overloaded?") from error
    if "failed" in answer:
        raise HostNotReadyError(explain_refusal(answer["failed"], answer["errno"], answer["error"]))
    return fds


def _end(netd: int) -> None:
    """Kill PID 1 of a lab and wait: it is gone when Linux has ended every other process of its pid namespace."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(netd, signal.SIGKILL)
    poll = select.poll()
    poll.register(netd, select.POLLIN)
    poll.poll()


def explain_refusal(step: str, number: int, text: str) -> str:
    """What to do where a lab cannot be: the fix first."""
    if number in NO_DESCRIPTORS:
        return str(too_few_descriptors())
    name = {1: "EPERM", 13: "EACCES", 22: "EINVAL", 28: "ENOSPC"}.get(number, str(number))
    as_root = "in a container with `--privileged`" if os.geteuid() == 0 else "as root"
    if step == "user namespace":
        return (
            f"user namespaces are off here ({text}, {name}): "
            "`sudo sysctl user.max_user_namespaces=10000`, on Ubuntu also "
            f"`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run {as_root}, or `vagrant up`"
        )
    if step == "mounts" and "/proc" in text:
        return (
            f"a container that masks entries of its /proc allows no fresh one ({text}, {name}): start it with "
            "`--security-opt systempaths=unconfined`, or privileged"
        )
    elsewhere = "" if os.geteuid() == 0 else "run as root, or "
    return f"{elsewhere}run in a container with `--privileged`: Linux refused a lab's {step} ({text}, {name})"
