"""The owner's side of netd: starts it, asks it for namespaces, sockets and programs, and knows who has exited.

A ``Sandbox`` is one lab's share of the kernel. Its methods block for one round trip (30 us for a socket) and are
thread-safe. When netd is gone every method raises ``LabLostError``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlab.errors import HostNotReadyError, KernelRefusedError, LabLostError
from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, pair
from meshlab.kernel.namespaces import effective_capabilities

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from meshlab.kernel import netd; from meshlab.kernel.channel import "
)
_BOOT += "Channel; netd.start(Channel.from_fd(int(sys.argv[1])), int(sys.argv[2]))"


_ROOT_NEEDS = frozenset({"NET_ADMIN", "NET_RAW", "SETPCAP", "SYS_ADMIN", "SYS_CHROOT"})
"""Without one of these uid 0 builds no lab: mostly a container's root, which a user namespace serves as anyone else."""
_CLOSED = "the lab was closed"
_DESCRIPTORS = 1 << 16
"""Enough for labs of thousands of pods."""


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
        self._channel = channel
        self._lock = threading.RLock()
        self._next = 0
        self._owned = [user, pid, ipc, netd]
        self.user_fd = user
        self.pid_fd = pid
        self.ipc_fd = ipc
        self.netd_fd = netd
        self.rootless = rootless
        self.exits: dict[int, int] = {}
        """Exit status by pid (negative: the signal) of every process of the lab that has ended."""
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
        ours, theirs = pair()
        owner = os.pidfd_open(os.getpid())
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), str(owner)]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own file
                argv,
                pass_fds=(theirs.fileno(), owner),
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", "")},
                start_new_session=True,  # a terminal's Ctrl-C is for the owner, who ends labs in order
            )
        finally:
            theirs.close()
            os.close(owner)
        try:
            hello = {"rootless": rootless, "binds": sorted(set(binds)), "steps": step is not None}
            return cls(process, ours, *_greet(ours, hello, step), rootless=rootless)
        except BaseException:
            ours.close()  # netd ends at this, wherever it is
            process.wait()
            raise

    def netns(self, names: Sequence[str]) -> list[Netns]:
        """New network namespaces, in the order of their names."""
        made: list[Netns] = []
        while len(made) < len(names):
            first, fds = self._ask("netns", count=len(names) - len(made))
            made += [Netns(first + place, fd, names[len(made) + place]) for place, fd in enumerate(fds)]
        self._owned += [netns.fd for netns in made]
        return made

    def mntns(self, furniture: Furniture, netns: Netns | None = None) -> Mntns:
        """A mount namespace and a host name of its own, furnished; its /sys shows the links of ``netns``."""
        number, fds = self._ask(
            "mntns",
            netns=None if netns is None else netns.number,
            hostname=furniture.hostname,
            files=dict(furniture.files),
            folders=list(furniture.folders),
            empty_dirs=list(furniture.empty_dirs),
            binds=list(furniture.binds),
        )
        self._owned += fds
        return Mntns(number, fds[0], fds[1])

    def sockets(self, wanted: Sequence[tuple[Netns, int, int, int]]) -> list[int]:
        """Descriptors of sockets ``(netns, family, type, protocol)``, in order; any number."""
        opened: list[int] = []
        for start in range(0, len(wanted), MAX_FDS):
            part = wanted[start : start + MAX_FDS]
            _, fds = self._ask("sockets", sockets=[[netns.number, *rest] for netns, *rest in part])
            opened += fds
        return opened

    def sysctl(self, values: Sequence[tuple[Netns, str, str]]) -> None:
        """Write ``/proc/sys/NAME`` as each netns has it."""
        self._ask("sysctl", values=[[netns.number, name, value] for netns, name, value in values])

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
        with self._lock:
            pid, (pidfd,) = self._ask(
                "spawn",
                fds=stdio,
                argv=list(argv),
                env=dict(env),
                cwd=cwd,
                netns=netns.number,
                mntns=mntns.number,
                capabilities=sorted(capabilities),
                what=f"start {argv[0]}",
                where=netns.name,
            )
            self.exits.pop(pid, None)  # of an earlier process with this pid: they come round again
        return int(pid), pidfd

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self._ask("kill", pid=pid, signal=int(number))

    def poll(self) -> None:
        """Take in every exit until now.

        Raises:
            LabLostError: netd is gone.
        """
        self._ask("reap")

    def wait_exit(self, pid: int, timeout_s: float) -> int:
        """The exit status of ``pid``.

        Raises:
            TimeoutError: it still runs.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while pid not in self.exits:
                self._take(*self._receive(max(0.0, deadline - time.monotonic())))
            return self.exits[pid]

    def close(self) -> None:
        """End netd, and with it every process of the lab; nothing is left when this returns."""
        with self._lock:
            if self.lost == _CLOSED:
                return
            self.lost = _CLOSED
            _end(self.netd_fd)
            self._parent.wait()
            self._channel.close()
            for fd in self._owned:
                os.close(fd)
            self._owned.clear()

    def _ask(self, operation: str, fds: Sequence[int] = (), **fields: Any) -> tuple[Any, list[int]]:
        what, where = fields.pop("what", operation), fields.pop("where", "the lab's own")
        with self._lock:
            if self.lost:
                raise LabLostError(self.lost)
            self._next += 1
            try:
                self._channel.send({"id": self._next, "op": operation, **fields}, fds)
            except ChannelClosedError as error:
                raise self._gone() from error
            while True:
                message, received = self._receive(30)
                if message.get("id") == self._next:
                    break
                self._take(message, received)
        if "error" in message:
            raise KernelRefusedError(what, where, message["errno"], message["error"])
        return message["result"], received

    def _receive(self, timeout_s: float) -> tuple[Any, list[int]]:
        if self.lost:
            raise LabLostError(self.lost)
        try:
            return self._channel.receive(timeout_s)
        except ChannelClosedError as error:
            raise self._gone() from error

    def _gone(self) -> LabLostError:
        self.lost = "netd, PID 1 of the lab, is gone, and everything in the lab with it (was it killed?)"
        return LabLostError(self.lost)

    def _take(self, message: Any, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if message.get("event") == "exit":
            self.exits[message["pid"]] = message["status"]


def _is_able_root() -> bool:
    return os.geteuid() == 0 and effective_capabilities() >= _ROOT_NEEDS


def _raise_descriptor_limit() -> None:
    """A pod costs its owner three descriptors; the usual soft limit, 1024, is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _greet(channel: Channel, hello: dict[str, Any], step: Callable[[str], None] | None) -> list[int]:
    """Tell a new netd what it is to be, and wait until it is; descriptors of its namespaces, and of itself."""
    try:
        channel.send(hello)
        answer, fds = channel.receive(timeout_s=30)
        while step is not None and "step" in answer:
            step(answer["step"])
            channel.send({"go": True})
            answer, fds = channel.receive(timeout_s=30)
    except ChannelClosedError as error:
        raise LabLostError("netd ended before it had made the lab's namespaces (was it killed?)") from error
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


def explain_refusal(step: str, errno: int, text: str) -> str:
    """What to do where a lab cannot be: the fix first."""
    name = {1: "EPERM", 13: "EACCES", 22: "EINVAL", 28: "ENOSPC"}.get(errno, str(errno))
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
