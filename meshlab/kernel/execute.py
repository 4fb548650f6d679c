"""Run one command in a pod and wait for it, as ``kubectl exec`` does: input, output, exit status, a deadline."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO

from meshlab.errors import KernelRefusedError
from meshlab.kernel.sandbox import Mntns, Netns, Sandbox

_OUTPUT_LIMIT_BYTES = 16 * 2**20


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
    try:
        try:
            pid = sandbox.spawn(
                argv, netns=netns, mntns=mntns, capabilities=capabilities, stdio=theirs, env=env, cwd=cwd
            )
        finally:
            for fd in theirs:
                os.close(fd)
        try:
            stdout, stderr = _communicate(ours, stdin, deadline)
            return Completed(sandbox.wait_exit(pid, max(0.0, deadline - time.monotonic())), stdout, stderr)
        except TimeoutError as error:
            with contextlib.suppress(KernelRefusedError):
                sandbox.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"{' '.join(argv)} still ran after {timeout_s:g} s and was killed") from error
    finally:
        for file in ours:
            file.close()


def _communicate(ours: tuple[FileIO, FileIO, FileIO], stdin: bytes, deadline: float) -> tuple[bytes, bytes]:
    into, *reads = ours
    kept: dict[int, bytearray] = {file.fileno(): bytearray() for file in reads}
    rest = memoryview(stdin)
    write = into.fileno()
    os.set_blocking(write, False)
    with selectors.DefaultSelector() as selector:
        for fd in kept:
            selector.register(fd, selectors.EVENT_READ)
        selector.register(write, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fd == write:
                    rest = _feed(write, rest)
                    done = not rest
                else:
                    data = os.read(key.fd, 65536)
                    kept[key.fd] += data[: max(0, _OUTPUT_LIMIT_BYTES - len(kept[key.fd]))]
                    done = not data
                if done:
                    selector.unregister(key.fd)
                    if key.fd == write:
                        into.close()
    stdout, stderr = kept.values()
    return bytes(stdout), bytes(stderr)


def _feed(fd: int, rest: memoryview) -> memoryview:
    if not rest:
        return rest
    try:
        return rest[os.write(fd, rest[:65536]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]
