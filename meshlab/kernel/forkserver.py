"""A warm Python that forks the Python programs of all labs of its owner *into* those labs.

Imports are half of a lab's start, so they are paid once. For some programs of one lab it forks twice, and once for each
of them: the first child enters the lab's user and pid namespaces; the second is born in the pid namespace, forks the
programs and ends, so that their parent is the lab's netd, which reaps them (an orphan goes to PID 1 of its *father's*
namespace). Each enters the other namespaces, drops its capabilities and runs ``module:function``.

The server imports and forks; it never opens a grpc object, a thread or a loop, which would not survive the fork.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypedDict

from meshlab.errors import KernelRefusedError, LabLostError
from meshlab.kernel import namespaces as ns
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all, pair
from meshlab.kernel.conversation import Conversation
from meshlab.kernel.messages import Op, read
from meshlab.kernel.sandbox import Mntns, Netns, Sandbox
from meshlab.kernel.uninterrupted import uninterrupted

_ANSWER_S = 60.0
_END_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A program to be started: ``entry`` (``module:function``) is called with ``config`` and ``fds``."""

    entry: str
    config: Mapping[str, Any]
    fds: Mapping[str, int]
    netns: Netns
    mntns: Mntns
    capabilities: Iterable[str]
    stdout: int
    stderr: int

    @property
    def carried(self) -> list[int]:
        return [self.netns.fd, self.mntns.fd, self.mntns.uts_fd, self.stdout, self.stderr, *self.fds.values()]


class _Described(TypedDict):
    """A ``Start``, without what goes as descriptors."""

    entry: str
    config: Mapping[str, Any]
    names: list[str]
    """The names of the descriptors that come with this request, in their order."""
    capabilities: list[str]


class _Pids(TypedDict):
    pids: list[int]


class _StartAll(NamedTuple):
    """All that the server can be asked."""

    rootless: bool
    programs: list[_Described]
    op: Op[_Pids] = Op("start")


_REQUESTS = {"start": _StartAll}


class ForkServer:
    """The owner's side. One serves every lab of a process; ``shared()`` gives it."""

    _shared: ForkServer | None = None
    _guard = threading.Lock()

    def __init__(self, channel: Channel, process: subprocess.Popen[bytes]) -> None:
        self._server = Conversation("the fork server", channel, lambda _: None)
        self._process = process
        self._dropped = False

    @classmethod
    def shared(cls, modules: Iterable[str]) -> ForkServer:
        """The process' own server, started on first use with ``modules`` imported, and again if it has died."""
        with cls._guard:
            if cls._shared is not None and cls._shared._process.poll() is not None:
                cls._shared.close()
                cls._shared = None
            if cls._shared is None:
                cls._shared = cls._start(list(modules))
            return cls._shared

    @classmethod
    def close_shared(cls) -> None:
        """End the process' own server, where there is one."""
        with cls._guard:
            dropped, cls._shared = cls._shared, None
        if dropped is not None:
            dropped.close()

    @classmethod
    def _start(cls, modules: list[str]) -> ForkServer:
        ours, theirs = pair()
        try:
            return cls(ours, uninterrupted(lambda: _launch(theirs, modules), undo=_abandon))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def start(self, sandbox: Sandbox, starts: Sequence[Start]) -> list[int]:
        """Start programs in a lab, all at once; their pids there.

        Raises:
            LabLostError: the lab or the server ended meanwhile.
            LabError: the server did not answer in time.
            KernelRefusedError: one of them could not be started; others may run.
        """
        shared = [sandbox.ipc_fd, sandbox.pid_fd, *([sandbox.user_fd] if sandbox.rootless else [])]
        carried = [*shared, *(fd for start in starts for fd in start.carried)]
        programs = [_described(start) for start in starts]
        try:
            number = self._server.post(_StartAll(rootless=sandbox.rootless, programs=programs), carried)
            answer = self._server.answer(number, _ANSWER_S)
        except BaseException as error:
            self._drop()  # whatever it is doing now: the next lab gets a server that does nothing else
            if isinstance(error, ChannelClosedError):
                raise LabLostError(f"the fork server is gone: {self._how_ended()}") from error
            raise
        finally:
            if self._dropped and not self._server.asked:
                self.close()
        if "error" in answer.body:
            sandbox.poll()  # says so where the lab has ended meanwhile
            where = ", ".join(start.netns.name for start in starts)
            raise KernelRefusedError(answer.body["what"], where, answer.body["errno"], answer.body["error"])
        return answer.given["pids"]

    def close(self) -> None:
        """End the server; labs that run are not touched."""
        self._server.close()
        uninterrupted(self._wait)

    def _drop(self) -> None:
        """Let the next lab start another server; other threads' labs still get their answers of this one."""
        self._dropped = True
        with ForkServer._guard:
            if ForkServer._shared is self:
                ForkServer._shared = None

    def _how_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"exit status {self._process.wait(1)}"
        return self._server.fault or "it closed its channel"

    def _wait(self) -> None:
        """It ends at the end of its channel, unless it hangs."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _launch(theirs: Channel, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    owner = os.pidfd_open(os.getpid())
    argv = [sys.executable, "-m", "meshlab.kernel.forkserver", str(theirs.fileno()), str(owner), *modules]
    try:
        return subprocess.Popen(  # noqa: S603 - our own module
            argv,
            pass_fds=(theirs.fileno(), owner),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # a terminal's Ctrl-C is for the owner, who ends labs in order
        )
    finally:
        os.close(owner)


def _abandon(started: subprocess.Popen[bytes]) -> None:
    started.kill()
    started.wait()


def _forget_shared() -> None:
    """In a forked child, whose parent the server belongs to."""
    ForkServer._shared, ForkServer._guard = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_shared)


def _described(start: Start) -> _Described:
    return {
        "entry": start.entry,
        "config": dict(start.config),
        "names": list(start.fds),
        "capabilities": sorted(start.capabilities),
    }


def serve(channel: Channel, owner: int, modules: list[str]) -> None:
    """Answer until the owner is gone.

    Raises:
        ChannelClosedError: the owner has closed its end.
    """
    for module in modules:
        if select.select([owner], [], [], 0)[0]:
            return  # imports take a second, and nobody waits for them any more
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(owner, selectors.EVENT_READ)
        while True:
            channel.watch(selector)
            for key, events in selector.select():
                if key.fd == owner:
                    return
                if events & selectors.EVENT_WRITE:
                    channel.flush()
                elif (message := channel.take()) is not None:
                    _answer(channel, *message)


def _answer(channel: Channel, message: dict[str, Any], fds: list[int]) -> None:
    try:
        answer = _fork_into_lab(read(_REQUESTS, message), fds)
    except OSError as error:
        answer = {"what": "fork", "errno": error.errno or 0, "error": str(error)}
    finally:
        close_all(fds)
    channel.send({"id": message["id"], **answer})


def _fork_into_lab(request: _StartAll, fds: list[int]) -> dict[str, Any]:
    """Fork the first child, and read what became of each program."""
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        try:
            os.close(report_read)
            _enter_and_fork(request, fds, report_write)
        except BaseException as error:
            _report(report_write, {"what": "enter the lab", "errno": _errno(error), "error": str(error)})
        os._exit(0)
    os.close(report_write)
    with open(report_read, "rb") as pipe:
        reports = [json.loads(line) for line in pipe]
    os.waitpid(first, 0)
    pids = {report["place"]: report["pid"] for report in reports if "pid" in report}
    if len(pids) == len(request.programs):
        return {"pids": [pids[place] for place in range(len(request.programs))]}
    early = {"what": "start programs", "errno": errno.ESRCH, "error": "one ended before it had begun"}
    return next((report for report in reports if "error" in report), early)


def _enter_and_fork(request: _StartAll, fds: list[int], report: int) -> None:
    """Be the first child, and then the second."""
    ipc, pid, *others = fds
    if request.rootless:
        ns.setns(others.pop(0), ns.CLONE_NEWUSER)
    ns.setns(pid, ns.CLONE_NEWPID)
    second = os.fork()
    if second:
        os.waitpid(second, 0)
        return
    for place, program in enumerate(request.programs):
        count = 5 + len(program["names"])
        own, others = others[:count], others[count:]
        if os.fork() == 0:
            _become(place, program, ipc, own, report)
    os._exit(0)


def _become(place: int, program: _Described, ipc: int, fds: list[int], report: int) -> NoReturn:
    net, mnt, uts, *others = fds
    try:
        for fd, kind in ((ipc, ns.CLONE_NEWIPC), (uts, ns.CLONE_NEWUTS), (net, ns.CLONE_NEWNET), (mnt, ns.CLONE_NEWNS)):
            ns.setns(fd, kind)
        os.chdir("/")
        os.setsid()
        ns.restrict_capabilities(program["capabilities"])
        passed = _tidy_descriptors(others, report, program["names"])
        _report(report, {"place": place, "pid": os.getpid()})
    except BaseException as error:
        _report(report, {"what": f"start {program['entry']}", "errno": _errno(error), "error": str(error)})
        os._exit(1)
    os.close(report)
    os._exit(_run(program["entry"], program["config"], passed))


def _report(pipe: int, report: Mapping[str, Any]) -> None:
    """One line, which Linux writes whole: many processes share the pipe."""
    os.write(pipe, json.dumps(report).encode()[:4000] + b"\n")


def _errno(error: BaseException) -> int:
    return getattr(error, "errno", 0) or 0


def _tidy_descriptors(others: list[int], report: int, names: list[str]) -> dict[str, int]:
    """0, 1, 2 are null, stdout and stderr; what was not passed is closed."""
    stdout, stderr, *passed = others
    null = os.open(os.devnull, os.O_RDONLY)
    for target, fd in enumerate((null, stdout, stderr)):
        os.dup2(fd, target)
    keep = {0, 1, 2, report, *passed}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    return dict(zip(names, passed, strict=True))


def _run(entry: str, config: Mapping[str, Any], fds: Mapping[str, int]) -> int:
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8", "TERM": "dumb"})
    module, _, function = entry.partition(":")
    try:
        getattr(importlib.import_module(module), function)(config, fds)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    with contextlib.suppress(ChannelClosedError):
        serve(Channel.from_fd(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:])
