"""netd: PID 1 of a lab. It makes namespaces, opens sockets and starts programs in them, and hands descriptors back.

    owner --a request of netd_requests, JSON + descriptors--> netd
          <--its answer-------------------------------------- or an error: ``errno``, and the text of it
          <--event started {pid}----------------------------- before the answer to ``Spawn``
          <--event exits [[pid, status] ...]----------------- of every process of the lab
          <--event failed {why}------------------------------ its last words

Single-threaded, standard library only (it is started ``python -I -S``), and it obeys: nothing is decided here. It never
waits but for everything at once: it reaps, whether the owner reads or not, and it polls the pidfd of its owner, since
the end of file alone is defeated by a leaked descriptor. When netd goes, the kernel ends its pid namespace, and with it
every process, netns and mount of the lab. Nothing else has to clean up: to close a lab is to kill its netd.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from meshlab.kernel import namespaces as ns
from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, close_all
from meshlab.kernel.furniture import build_base, furnish, mount_sysfs, rewrite
from meshlab.kernel.messages import Done, read
from meshlab.kernel.netd_requests import (
    REQUESTS,
    EndIn,
    Forget,
    Hello,
    Kill,
    MakeMntns,
    MakeNetns,
    NetdRequest,
    Number,
    Numbers,
    OpenSockets,
    Reap,
    RunningIn,
    Spawn,
    WriteFiles,
    WriteSysctls,
)

_ROUNDS = 64
"""How often processes that were born meanwhile are looked for: some answer a signal with another child."""


class Netd:
    """The state of one lab's PID 1: descriptors of its namespaces, and its channel to the owner."""

    def __init__(self, channel: Channel, owner: int, sysctls: int) -> None:
        self._channel = channel
        self._owner = owner
        self._sysctls = sysctls
        """``/proc/sys`` as only netd has it: writable."""
        self._ended: dict[int, int] = {}
        """Exit status by pid, of what the owner has not been told yet; no larger than there are pids."""
        self._numbers = itertools.count()
        """The next number of a namespace. No number is used twice, so using a forgotten one is an error."""
        self._netns: dict[int, int] = {}
        self._mntns: dict[int, tuple[int, int]] = {}
        self._home_net = _open_ns("net")
        self._home_mnt = _open_ns("mnt")
        self._home_uts = _open_ns("uts")

    def serve(self) -> None:
        """Answer requests until the owner is gone or asks for the end.

        Raises:
            ChannelClosedError: the owner has closed its end.
        """
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            for fd in (self._owner, wake_read):
                selector.register(fd, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ)
            while True:
                self._channel.watch(selector)
                for key, events in selector.select():
                    if key.fd == self._owner:
                        return
                    if key.fd == wake_read:
                        os.read(wake_read, 4096)
                    elif events & selectors.EVENT_WRITE:
                        self._channel.flush()
                    elif (message := self._channel.take()) is not None:
                        self._answer(*message)
                self._reap()
                if not self._channel.unsent:  # an owner that does not read must not make us keep more and more
                    self._tell_exits()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._ended[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def _tell_exits(self) -> None:
        if self._ended:
            self._channel.send({"event": "exits", "exits": list(self._ended.items())})
            self._ended.clear()

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        """What has ended before is told first. A request that makes no sense gets an error, as one that fails."""
        given: list[int] = []
        started = 0
        try:
            request = read(REQUESTS, message)
            result, given = self._do(request, fds)
            kept = isinstance(request, MakeNetns | MakeMntns)  # the owner keeps its descriptors until the lab ends
            answer: dict[str, Any] = {**result, "keep": kept}
            started = answer["result"] if isinstance(request, Spawn) else 0
        except OSError as error:
            answer = {"errno": error.errno or 0, "error": error.strerror or str(error)}
        except Exception as error:
            answer = {"errno": errno.EINVAL, "error": f"netd does not understand it: {type(error).__name__}: {error}"}
        try:
            self._tell_exits()
            if started:
                self._channel.send({"event": "started", "pid": started})
            self._channel.send({"id": message.get("id"), **answer}, given)
        finally:
            close_all((*fds, *given))  # a socket that stays open here would never be closed for its peer

    def _do(self, request: NetdRequest, fds: list[int]) -> tuple[Number | Numbers | Done, list[int]]:
        """The answer, and its descriptors."""
        match request:
            case MakeNetns():
                return self._make_netns(request)
            case MakeMntns():
                return self._make_mntns(request)
            case OpenSockets():
                return self._open_sockets(request)
            case WriteSysctls():
                self._write_sysctls(request)
            case Spawn():
                return self._spawn(request, fds)
            case Kill():
                os.kill(request.pid, request.signal)
            case WriteFiles():
                self._write_files(request)
            case EndIn():
                return self._end_in(request), []
            case RunningIn():
                return self._running_in(request)
            case Forget():
                self._forget(request)
            case Reap():
                self._reap()
        return Done(), []

    def _make_netns(self, request: MakeNetns) -> tuple[Numbers, list[int]]:
        """Each once for the owner, and once for us."""
        made: list[int] = []
        ours: list[int] = []
        try:
            for _ in range(min(request.wanted, MAX_FDS)):
                ns.unshare(ns.CLONE_NEWNET)
                made.append(_open_ns("net"))
                ours.append(os.dup(made[-1]))
        except BaseException:
            close_all((*made, *ours))
            raise
        finally:
            ns.setns(self._home_net, ns.CLONE_NEWNET)
        numbers = [next(self._numbers) for _ in ours]
        self._netns.update(zip(numbers, ours, strict=True))
        return {"result": numbers}, made

    def _make_mntns(self, request: MakeMntns) -> tuple[Number, list[int]]:
        ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWUTS)
        made: list[int] = []
        try:
            if request.netns is not None:
                self._mount_sysfs_of(request.netns)
            furnish(request)
            made += [_open_ns("mnt"), _open_ns("uts")]
            made += [os.dup(fd) for fd in made]
        except BaseException:
            close_all(made)
            raise
        finally:
            ns.setns(self._home_mnt, ns.CLONE_NEWNS)
            ns.setns(self._home_uts, ns.CLONE_NEWUTS)
        number = next(self._numbers)
        self._mntns[number] = (made[2], made[3])
        return {"result": number}, made[:2]

    def _forget(self, request: Forget) -> None:
        """Close our descriptors of namespaces: those that nobody else holds end. All of them, or none and an error."""
        netns, mntns = set(request.netns), set(request.mntns)
        fds = [self._netns[number] for number in netns]
        fds += [fd for number in mntns for fd in self._mntns[number]]
        for number in netns:
            del self._netns[number]
        for number in mntns:
            del self._mntns[number]
        close_all(fds)

    def _mount_sysfs_of(self, netns: int) -> None:
        """A sysfs shows the links of the netns that it was mounted in."""
        ns.setns(self._netns[netns], ns.CLONE_NEWNET)
        try:
            mount_sysfs()
        finally:
            ns.setns(self._home_net, ns.CLONE_NEWNET)

    def _open_sockets(self, request: OpenSockets) -> tuple[Done, list[int]]:
        opened: list[socket.socket] = []
        current = None
        try:
            for netns, family, kind, protocol in request.sockets:
                if netns != current:
                    ns.setns(self._netns[netns], ns.CLONE_NEWNET)
                    current = netns
                opened.append(socket.socket(family, kind, protocol))
            return {}, [sock.detach() for sock in opened]
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        finally:
            ns.setns(self._home_net, ns.CLONE_NEWNET)

    def _write_sysctls(self, request: WriteSysctls) -> None:
        current = None
        try:
            for netns, name, value in request.values:
                if netns != current:
                    ns.setns(self._netns[netns], ns.CLONE_NEWNET)
                    current = netns
                with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._sysctls), "w") as file:
                    file.write(value)
        finally:
            ns.setns(self._home_net, ns.CLONE_NEWNET)

    def _spawn(self, request: Spawn, fds: list[int]) -> tuple[Number, list[int]]:
        """``fds`` become 0, 1 and 2 of the program; a failure up to ``execve`` comes back as the error."""
        netns, mntns = self._netns[request.netns], self._mntns[request.mntns]
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                _become(request, fds, netns, mntns)
            except BaseException as error:
                os.write(error_write, f"{getattr(error, 'errno', 0) or 0} {error}".encode()[:4000])
            os._exit(127)
        os.close(error_write)
        with open(error_read, "rb") as pipe:
            failure = pipe.read().decode()
        if failure:
            errno, _, text = failure.partition(" ")
            raise OSError(int(errno), text)
        return {"result": pid}, [os.pidfd_open(pid)]

    def _write_files(self, request: WriteFiles) -> None:
        """Write files that are there already in place, so that a bind mount goes on showing them.

        None is ever empty meanwhile: first comes the text, then the end is cut off.
        """
        ns.setns(self._mntns[request.mntns][0], ns.CLONE_NEWNS)
        try:
            for path, text in request.files.items():
                rewrite(path, text.encode())
        finally:
            ns.setns(self._home_mnt, ns.CLONE_NEWNS)

    def _end_in(self, request: EndIn) -> Numbers:
        """Signal every process of a mount namespace, also those that are born meanwhile."""
        signalled: set[int] = set()
        number = signal.Signals(request.signal)
        for _round in range(_ROUNDS):
            found = set(self._inhabitants(request.mntns)) - signalled
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= found
            if not found:
                break
        return {"result": sorted(signalled)}

    def _running_in(self, request: RunningIn) -> tuple[Numbers, list[int]]:
        pids: list[int] = []
        pidfds: list[int] = []
        for pid in itertools.islice(self._inhabitants(request.mntns), MAX_FDS):
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
                pids.append(pid)
        return {"result": pids}, pidfds

    def _inhabitants(self, mntns: int) -> Iterator[int]:
        """Pids of the processes that have this mount namespace, or its uts namespace: a program may leave one of them.

        Linux gives pids in turn, so one that was just read still means the same process.
        """
        wanted = {(status.st_dev, status.st_ino) for status in map(os.fstat, self._mntns[mntns])}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) != os.getpid() and not wanted.isdisjoint(_namespaces_of(entry)):
                yield int(entry)


def _become(request: Spawn, fds: list[int], netns: int, mntns: tuple[int, int]) -> None:
    signal.set_wakeup_fd(-1)
    os.setsid()
    for fd, kind in ((netns, ns.CLONE_NEWNET), (mntns[0], ns.CLONE_NEWNS), (mntns[1], ns.CLONE_NEWUTS)):
        ns.setns(fd, kind)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
    os.chdir(request.cwd)
    ns.restrict_capabilities(request.capabilities)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # Python, a shell's background and nohup all ignore some
    os.execvpe(request.argv[0], request.argv, request.env)  # noqa: S606 - no shell is the point


def _namespaces_of(pid: str) -> Iterator[tuple[int, int]]:
    """Device and inode of the mount and uts namespaces of a process; nothing where it has ended."""
    for task in ("", *_tasks_of(pid)):
        for kind in ("mnt", "uts"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/{task}ns/{kind}")
                yield status.st_dev, status.st_ino


def _tasks_of(pid: str) -> list[str]:
    """Its threads, where the first of them has ended before the process: only they have namespaces then."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            ended = file.read().rpartition(b") ")[2][:1] == b"Z"
        return [f"task/{thread}/" for thread in os.listdir(f"/proc/{pid}/task")] if ended else []
    return []


def _open_ns(kind: str) -> int:
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def _enter_user_namespace() -> None:
    """The caller's uid and gid map to themselves: files keep their owners and pytest its folders."""
    uid, gid = os.geteuid(), os.getegid()
    ns.unshare(ns.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def start(channel: Channel, owner: int, hello: str) -> None:
    """Become a lab's netd: unshare, fork into the new pid namespace, build the mounts, report, serve.

    An owner that is gone meanwhile is nobody to whom anything could be told.
    """
    for fd in (channel.fileno(), owner):
        os.set_inheritable(fd, False)  # no program of the lab may have them
    with contextlib.suppress(ChannelClosedError):
        if netd := _become_netd(channel, owner, Hello(**json.loads(hello))):
            try:
                netd.serve()
            except ChannelClosedError:
                raise
            except BaseException as error:
                channel.send({"event": "failed", "why": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _become_netd(channel: Channel, owner: int, hello: Hello) -> Netd | None:
    """In the new lab's PID 1: netd, which has said that it is ready. Everywhere else None, after the lab's end."""

    def pause(name: str) -> None:
        """A named step: where a test hands in a hook, it may end somebody just here."""
        if hello.steps:
            channel.send({"step": name})
            channel.receive()

    step = "user namespace"
    try:
        if hello.rootless:
            _enter_user_namespace()
        step = "namespaces"
        ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS)
        pause("after unshare")
        pause("before the first fork")
        if child := os.fork():
            _wait_for(child, channel, owner)
            return None
        step = "mounts"
        netd = Netd(channel, owner, build_base(hello.binds))
        opened = [*(_open_ns(kind) for kind in ("user", "pid", "ipc")), os.pidfd_open(os.getpid())]
    except ChannelClosedError:
        raise
    except OSError as error:
        channel.send({"failed": step, "errno": error.errno or 0, "error": error.strerror or str(error)})
        return None
    channel.send({"ready": True}, opened)
    close_all(opened)
    return netd


def _wait_for(child: int, channel: Channel, owner: int) -> None:
    """PID 1 of the new pid namespace goes on; we only reap it, since not every container has an init that would."""
    channel.close()
    os.close(owner)
    os.waitpid(child, 0)


if __name__ == "__main__":
    start(Channel.from_fd(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
