"""What a lab has in the kernel, found from outside, and what of it is still there later. It asks the lab nothing.

    with Belongings.of(owner) as theirs:
        ...
        assert theirs.left(5) == []

Processes are known by pidfd and namespaces by inode, each pinned by a descriptor of ours, so that neither a pid nor an
inode can become another's meanwhile. Needs the
owner's own uid, no more: whoever made a user namespace may look into it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_KINDS = ("net", "mnt", "pid", "pid_for_children", "ipc", "uts", "user")
_LOOK_AGAIN_MS = 20


class Belongings:
    """The processes and namespaces of labs. What this very process holds of them does not count."""

    def __init__(self) -> None:
        self._pidfds: dict[int, int] = {}
        self._pins: dict[str, int] = {}
        """``net:[4026532000]`` -> a descriptor of it."""

    @classmethod
    def of(cls, owner: int, *, with_owner: bool = True) -> Self:
        """Of the labs of a process: what it started, what lives in its pid namespaces, and what all these hold.

        Without the owner it is only what does not stand in our own netns: its labs, not its fork server.
        """
        found = cls()
        descendants = _descendants(owner)
        found.add(pid for pid in descendants if with_owner or _link(f"/proc/{pid}/ns/net") not in _OURS)
        found.pin(_held_by(descendants))
        for link in found.links("pid"):
            found.add(inhabitants([link]))
        return found

    @classmethod
    def inside(cls, pid_namespace: str) -> Self:
        """Of one lab, without its owner."""
        found = cls()
        found.add(inhabitants([pid_namespace]))
        return found

    @property
    def pids(self) -> set[int]:
        return set(self._pidfds)

    def links(self, kind: str = "") -> set[str]:
        """The namespaces of one kind, or all, as ``/proc`` shows them."""
        return {link for link in self._pins if link.startswith(kind)}

    def add(self, pids: Iterable[int]) -> None:
        """These processes, and each namespace they stand in or hold that is not one of our own."""
        new = set(pids) - self.pids
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[pid] = os.pidfd_open(pid)
        self.pin(_held_by(new))

    def pin(self, held: Iterable[tuple[str, str]]) -> None:
        for path, link in held:
            if link not in self._pins and link not in _OURS:
                with contextlib.suppress(OSError):
                    self._pins[link] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def left(self, within_s: float) -> list[str]:
        """What is still there after ``within_s``, in sentences; returns as soon as nothing is."""
        deadline = time.monotonic() + within_s
        poll = select.poll()
        for pidfd in self._pidfds.values():
            poll.register(pidfd, select.POLLIN)
        running = {pidfd: pid for pid, pidfd in self._pidfds.items()}
        while True:
            for pidfd, _ in poll.poll(_LOOK_AGAIN_MS):  # an end is an event
                poll.unregister(pidfd)
                del running[pidfd]
            found = sorted(self._still_there(running.values()))
            if not found or time.monotonic() > deadline:
                return found

    def _still_there(self, running: Iterable[int]) -> Iterator[str]:
        for pid in running:
            yield f"process {pid} runs: {command(pid)}"
        for pid in inhabitants(self.links("pid")):
            yield f"process {pid} lives in the lab's pid namespace: {command(pid)}"
        for path, link in _held_by(_alive() - {os.getpid()}):
            if link in self._pins:
                yield f"{link} is held by {path}"

    def close(self) -> None:
        for fd in (*self._pidfds.values(), *self._pins.values()):
            os.close(fd)
        self._pidfds.clear()
        self._pins.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def inhabitants(pid_namespaces: Iterable[str]) -> list[int]:
    """The processes, by their pid on the host, that live in one of these pid namespaces (a zombie does not)."""
    wanted = set(pid_namespaces)
    return [pid for pid in _alive() if _link(f"/proc/{pid}/ns/pid") in wanted]


def pid_inside(pid: int) -> int:
    """What a process' own pid namespace calls it."""
    return int(_status(pid, "NSpid").split()[-1])


def children(pid: int) -> list[int]:
    """What a process has started, also what has ended and was not looked at."""
    return [child for child in _pids() if _status(child, "PPid") == str(pid)]


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    return "?"


def capabilities(pid: int) -> dict[str, int]:
    """Its effective, permitted and bounding sets, as bits."""
    return {name: int(_status(pid, name), 16) for name in ("CapEff", "CapPrm", "CapBnd")}


def state(pid: int) -> str:
    """``R``, ``S``, ``T`` (stopped), ``Z``, ...; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def host() -> dict[str, object]:
    """What a lab must not touch, as the host has it: mounts, links, and what lies about in shared folders."""
    folders = [folder for folder in ("/dev/shm", "/run/netns") if os.path.isdir(folder)]  # noqa: S108 - only listed
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "links": sorted(os.listdir("/sys/class/net")),
        "name": os.uname().nodename,
        **{folder: sorted(os.listdir(folder)) for folder in folders},
    }


def bound_sockets(pids: Iterable[int]) -> list[str]:
    """Ports and names that the sockets of these processes have taken in our own netns."""
    inodes = {link[len("socket:[") : -1] for link in _descriptors(pids) if link.startswith("socket:[")}
    taken = []
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        rows = [line.split() for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]]
        taken += [f"{protocol} {row[1]}" for row in rows if row[9] in inodes]
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return taken + [f"unix {row[7]}" for row in rows if len(row) > 7 and row[6] in inodes]


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _alive() -> set[int]:
    """Without those that have ended and only wait for their parent to look: they hold nothing any more."""
    return {pid for pid in _pids() if state(pid) not in ("Z", "X", "")}


def _descendants(pid: int) -> set[int]:
    found, new = {pid}, [pid]
    while new:
        new = [child for parent in new for child in children(parent)]
        found.update(new)
    return found


def _held_by(pids: Iterable[int]) -> Iterator[tuple[str, str]]:
    """Every namespace that these processes stand in or have a descriptor of: its place in /proc, and what it is."""
    for pid in pids:
        for path in _places(pid):
            link = _link(path)
            if link.partition(":[")[0] in _KINDS:
                yield path, link


def _places(pid: int) -> Iterator[str]:
    yield from (f"/proc/{pid}/ns/{kind}" for kind in _KINDS)
    for task in _names(f"/proc/{pid}/task"):
        yield f"/proc/{pid}/task/{task}/ns/net"
    for fd in _names(f"/proc/{pid}/fd"):
        yield f"/proc/{pid}/fd/{fd}"


def _descriptors(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        yield from (_link(f"/proc/{pid}/fd/{fd}") for fd in _names(f"/proc/{pid}/fd"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # it is gone, or not ours


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _status(pid: int, field: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.partition(":")[2].strip()
    return ""


_OURS = frozenset(_link(f"/proc/self/ns/{kind}") for kind in _KINDS)
