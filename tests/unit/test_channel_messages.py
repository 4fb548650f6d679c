"""The channel between a lab's processes: JSON of any size, with any number of descriptors, whole and in order."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest

from meshlab.kernel import channel
from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, NoMessageError, pair


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = pair()
    yield left, right
    left.close()
    right.close()


@pytest.mark.parametrize("count", [0, 1, MAX_FDS, MAX_FDS + 1, 2 * MAX_FDS + 1])
@pytest.mark.parametrize("size", [0, 100_000])
def test_every_descriptor_of_a_message_arrives_with_it_and_none_with_the_next(
    ends: tuple[Channel, Channel], count: int, size: int
) -> None:
    left, right = ends
    left.send({"text": "x" * size}, [left.fileno()] * count)
    left.send({"said": "next"})
    message, fds = right.receive(timeout_s=5)
    for fd in fds:
        assert os.path.sameopenfile(fd, left.fileno())
        os.close(fd)
    assert (message, len(fds)) == ({"text": "x" * size}, count)
    assert right.receive(timeout_s=5) == ({"said": "next"}, [])


def test_descriptors_are_closed_in_programs_that_are_started_later(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send({"said": "take"}, [left.fileno()])
    _, (fd,) = right.receive(timeout_s=5)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_waiting_for_a_message_ends_at_its_deadline(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TimeoutError, match="no message within 0 s"):
        ends[0].receive(timeout_s=0)


def test_both_directions_say_when_the_other_end_is_gone(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    right.close()
    with pytest.raises(ChannelClosedError):
        left.receive(timeout_s=5)
    with pytest.raises(ChannelClosedError):
        left.send({"said": "anyone?"})


_INLINE, _IN_MEMFD = b"\0\0\0\0", b"\0\0\0\1"


@pytest.mark.parametrize(
    "packet",
    [
        b"\0",
        _INLINE,
        _INLINE + b"{",
        _INLINE + b"\xff",
        _INLINE + b"[" * 50_000,
        _INLINE + b"9" * 5000,
        _INLINE + b"[]",
        _INLINE + b"null",
        _IN_MEMFD,
        b"\0\0\0\3{}",
    ],
    ids=lambda packet: f"{packet[:8]!r}*{len(packet)}",
)
def test_what_is_no_message_is_the_end_of_who_sent_it(ends: tuple[Channel, Channel], packet: bytes) -> None:
    left, right = ends
    left.sock.send(packet)
    with pytest.raises(NoMessageError):
        right.take()


def _send_file(end: Channel, fd: int) -> None:
    end.sock.sendmsg([_IN_MEMFD], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd, fd]))])


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/status", "/"])
def test_a_message_is_read_from_no_file_that_has_no_size(ends: tuple[Channel, Channel], path: str) -> None:
    left, right = ends
    with pytest.raises(NoMessageError):
        _receive_file(left, right, os.open(path, os.O_RDONLY))


def test_a_message_in_a_pipe_is_not_waited_for(ends: tuple[Channel, Channel]) -> None:
    read, write = os.pipe()
    with pytest.raises(NoMessageError):
        _receive_file(*ends, read)
    os.close(write)


def test_a_memfd_beyond_the_bound_is_not_read(ends: tuple[Channel, Channel]) -> None:
    memfd = os.memfd_create("large")
    os.ftruncate(memfd, 1 << 40)
    with pytest.raises(NoMessageError, match="1099511627776 bytes"):
        _receive_file(*ends, memfd)


def _receive_file(left: Channel, right: Channel, fd: int) -> None:
    """Give ``fd`` as the body of a message; no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    _send_file(left, fd)
    os.close(fd)
    try:
        right.take()
    finally:
        assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_message_beyond_the_bound_is_refused_where_it_is_made(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MESSAGE_LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match="a message of 1010 bytes, more than 1000"):
        ends[0].send({"a": "x" * 1002})
    ends[0].send({"still": "there"})
    assert ends[1].receive(1)[0] == {"still": "there"}
