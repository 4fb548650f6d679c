"""Run one command in a pod and wait for it, as ``kubectl exec`` does: input, output, exit status, a deadline."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO

from meshlab.errors import KernelRefusedError
from meshlab.kernel.sandbox import Mntns, Netns, Sandbox

_OUTPUT_LIMIT_BYTES = 16 * 2**20
_PIPE_BYTES = 1 << 20
"""More than a pipe holds, so that one read empties it."""
_EXIT_S = 5.0
"""How long netd may take to tell of an exit that was seen."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    status: int
    """Exit status; negative: the signal that ended it."""
    stdout: bytes
    """At most 16 MiB; more is read and thrown away."""
    stderr: bytes


def run(
    sandbox: Sandbox,
    argv: Sequence[str],
    *,
    netns: Netns,
    mntns: Mntns,
    capabilities: Iterable[str],
    env: Mapping[str, str],
    stdin: bytes = b"",
    cwd: str = "/",
    timeout_s: float = 30.0,
) -> Completed:
    """Run ``argv`` to its end.

    Raises:
        KernelRefusedError: it could not be started.
        TimeoutError: it still ran at the deadline and was killed.
    """
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    theirs = (ends[0][0], ends[1][1], ends[2][1])
    ours = (FileIO(ends[0][1], "wb"), FileIO(ends[1][0], "rb"), FileIO(ends[2][0], "rb"))
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        for file in ours:
            stack.enter_context(file)
        try:
            pid, ended = sandbox.spawn(
                argv, netns=netns, mntns=mntns, capabilities=capabilities, stdio=theirs, env=env, cwd=cwd
            )
        finally:
            for fd in theirs:
                os.close(fd)
        stack.callback(os.close, ended)
        try:
            stdout, stderr = _communicate(ours, stdin, ended, deadline)
        except TimeoutError as error:
            with contextlib.suppress(KernelRefusedError):
                sandbox.kill(-pid)  # the command's process group: itself and its children
            raise TimeoutError(f"{' '.join(argv)} still ran after {timeout_s:g} s and was killed") from error
        return Completed(sandbox.wait_exit(pid, _EXIT_S), stdout, stderr)


def _communicate(ours: tuple[FileIO, FileIO, FileIO], stdin: bytes, ended: int, deadline: float) -> tuple[bytes, bytes]:
    """Feed and read until the command has ended: what it left in the background may hold the pipes open."""
    into, *reads = ours
    kept = {file.fileno(): bytearray() for file in reads}
    for file in ours:
        os.set_blocking(file.fileno(), False)
    rest = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for fd in (*kept, ended):
            selector.register(fd, selectors.EVENT_READ)
        selector.register(into, selectors.EVENT_WRITE)
        ready: set[int] = set()
        while ended not in ready:
            ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
            if not ready:
                raise TimeoutError
            for fd in ready & kept.keys():
                if not _read(fd, kept[fd]):
                    selector.unregister(fd)
            if not into.closed and into.fileno() in ready:
                rest = _feed(into.fileno(), rest)
                if not rest:
                    selector.unregister(into)
                    into.close()
    for fd, data in kept.items():
        with contextlib.suppress(BlockingIOError):
            _read(fd, data)  # all that the command still had in the pipe
    stdout, stderr = kept.values()
    return bytes(stdout), bytes(stderr)


def _read(fd: int, kept: bytearray) -> bool:
    """Take what is there; ``False`` at the end of file."""
    data = os.read(fd, _PIPE_BYTES)
    kept += data[: max(0, _OUTPUT_LIMIT_BYTES - len(kept))]
    return bool(data)


def _feed(fd: int, rest: memoryview) -> memoryview:
    """Give what is taken; what remains."""
    try:
        return rest[os.write(fd, rest[:65536]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]
