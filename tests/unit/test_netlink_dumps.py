"""A dump is of one moment, has an end, and takes no answer that belongs to another request."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshlab.errors import KernelRefusedError
from meshlab.kernel.netlink import NLMSG_DONE, NLMSG_ERROR, NetlinkSocket

_NEWLINK, _GETLINK = 16, 18
_DUMP_INTR = 0x10
Packet = Callable[[int], bytes]
"""Sequence number of the request -> what the kernel sends."""


def message(text: bytes, *, kind: int = _NEWLINK, flags: int = 0, late: int = 0) -> Packet:
    return lambda number: struct.pack("=IHHII", 16 + len(text), kind, flags, number - late, 0) + text


DONE = message(bytes(4), kind=NLMSG_DONE)


class ScriptedKernel:
    """Answers each request with the next packets of a script."""

    def __init__(self, *script: list[Packet]) -> None:
        self._script = iter(script)
        self._sock, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests = 0

    def setsockopt(self, *_: object) -> None: ...

    def sendto(self, packet: bytes, _: object) -> None:
        self.requests += 1
        (number,) = struct.unpack_from("=I", packet, 8)
        for answer in next(self._script):
            self._kernel.send(answer(number))

    def recv(self, size: int, flags: int) -> bytes:
        return self._sock.recv(size, flags)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        self._kernel.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[NetlinkSocket, ScriptedKernel]]]:
    kernels = []

    def make(*script: list[Packet]) -> tuple[NetlinkSocket, ScriptedKernel]:
        kernel: Any = ScriptedKernel(*script)
        kernels.append(kernel)
        return NetlinkSocket(kernel, "node"), kernel

    yield make
    for kernel in kernels:
        kernel.close()


Make = Callable[..., tuple[NetlinkSocket, ScriptedKernel]]


def test_a_dump_that_a_change_cut_is_repeated(scripted: Make) -> None:
    half = [message(b"half", flags=_DUMP_INTR), DONE]
    sock, kernel = scripted(half, half, [message(b"whole"), message(b"more"), DONE])
    assert sock.dump(_GETLINK, b"") == [b"whole", b"more"]
    assert kernel.requests == 3


def test_a_table_that_never_rests_is_refused_and_not_given_in_halves(scripted: Make) -> None:
    sock, _ = scripted(*[[message(b"half", flags=_DUMP_INTR), DONE]] * 10)
    with pytest.raises(KernelRefusedError, match="changed during each of 10 dumps") as refused:
        sock.dump(_GETLINK, b"")
    assert refused.value.errno == errno.EINTR


def test_a_dump_that_does_not_end_is_given_up_at_its_deadline_and_the_next_takes_nothing_of_it(scripted: Make) -> None:
    sock, _ = scripted([message(b"first")], [message(b"late", late=1), message(b"own"), DONE])
    with pytest.raises(KernelRefusedError, match="it did not end") as refused:
        sock.dump(_GETLINK, b"", timeout_s=0.01)
    assert refused.value.errno == errno.ETIMEDOUT
    assert sock.dump(_GETLINK, b"") == [b"own"]


@pytest.mark.parametrize("size", [0, 15])
def test_a_message_that_is_smaller_than_its_head_is_refused(scripted: Make, size: int) -> None:
    sock, _ = scripted([lambda number: struct.pack("=IHHII", size, _NEWLINK, 0, number, 0)])
    with pytest.raises(ValueError, match=f"a netlink message of {size} bytes"):
        sock.exchange(bytes(16))


def test_an_error_that_ends_in_its_middle_is_refused(scripted: Make) -> None:
    sock, _ = scripted([message(b"\xea\xff\xff\xff", kind=NLMSG_ERROR, flags=0x200)])
    with pytest.raises(ValueError, match="an answer that cannot be read"):
        sock.exchange(bytes(16))
