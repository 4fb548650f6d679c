"""The requests that netd answers, and their answers (see ``messages``). A namespace has the number that netd gave it.

Annotations are no strings here: a NamedTuple would compile each of them, which costs every lab half a millisecond.
"""

from typing import NamedTuple, TypedDict

from meshlab.kernel.messages import Done, Op, by_name


class Number(TypedDict):
    """One number: of a namespace that was made, or the pid of a process that was started."""

    result: int


class Numbers(TypedDict):
    """Several numbers: of namespaces that were made, or pids of processes."""

    result: list[int]


class MakeNetns(NamedTuple):
    """New network namespaces, at most as many as descriptors fit in the answer, which has one of each."""

    wanted: int
    op: Op[Numbers] = Op("netns")


class MakeMntns(NamedTuple):
    """A new mount namespace with a host name; descriptors of both are in the answer. The rest is ``Furniture``."""

    netns: int | None
    """Its /sys shows the links of this one."""
    hostname: str
    files: dict[str, str]
    folders: list[str]
    empty_dirs: list[str]
    binds: list[str]
    op: Op[Number] = Op("mntns")


class OpenSockets(NamedTuple):
    """Their descriptors are in the answer."""

    sockets: list[tuple[int, int, int, int]]
    """Netns, family, type and protocol of each."""
    op: Op[Done] = Op("sockets")


class WriteSysctls(NamedTuple):
    values: list[tuple[int, str, str]]
    """Netns, path below /proc/sys and text of each."""
    op: Op[Done] = Op("sysctl")


class Spawn(NamedTuple):
    """Start a program with the three descriptors as its 0, 1 and 2; its pid, and a pidfd, are in the answer."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    netns: int
    mntns: int
    capabilities: list[str]
    op: Op[Number] = Op("spawn")


class Kill(NamedTuple):
    pid: int
    signal: int
    op: Op[Done] = Op("kill")


class WriteFiles(NamedTuple):
    mntns: int
    files: dict[str, str]
    """Path -> text."""
    op: Op[Done] = Op("write_files")


class EndIn(NamedTuple):
    """Signal every process of a mount namespace; their pids are in the answer."""

    mntns: int
    signal: int
    op: Op[Numbers] = Op("end_in")


class RunningIn(NamedTuple):
    """Pids of the processes of a mount namespace, and pidfds, as many as fit."""

    mntns: int
    op: Op[Numbers] = Op("running_in")


class Forget(NamedTuple):
    """Let go of namespaces: all of them, or none and an error."""

    netns: list[int]
    mntns: list[int]
    op: Op[Done] = Op("forget")


class Reap(NamedTuple):
    """Every exit until now is reported before the answer."""

    op: Op[Done] = Op("reap")


NetdRequest = (
    MakeNetns | MakeMntns | OpenSockets | WriteSysctls | Spawn | Kill | WriteFiles | EndIn | RunningIn | Forget | Reap
)
REQUESTS: dict[str, type[NetdRequest]] = by_name(NetdRequest)


class Hello(NamedTuple):
    """What netd is started with."""

    rootless: bool
    binds: list[str]
    steps: bool
    """Whether its owner wants to hear of each named step of the start, and netd waits for a word after each."""
