"""Messages between a lab's processes: any size, any number of descriptors, deadlines, and an end that is told."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import signal
import socket
from collections.abc import Iterator

import pytest

from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, pair

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = pair()
    yield left, right
    left.close()
    right.close()


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 59_000, 70_000, 3_000_000])
def test_a_message_of_any_size_arrives_as_it_was_sent(ends: Ends, size: int) -> None:
    left, right = ends
    message = {"op": "set", "text": "\u00e4" * size, "none": None}
    left.send(message)
    assert right.receive(1) == (message, [])


def test_messages_keep_their_order_and_their_bounds(ends: Ends) -> None:
    left, right = ends
    sent = [{"id": number, "text": "x" * (number * 40_000)} for number in range(4)]
    for message in sent:
        left.send(message)
    assert [right.receive(1)[0] for _ in sent] == sent


@pytest.mark.parametrize("count", [1, MAX_FDS, MAX_FDS + 1, 600])
@pytest.mark.parametrize("size", [10, 100_000], ids=["in-a-packet", "in-a-memfd"])
def test_descriptors_arrive_in_order_and_close_on_exec_and_stay_open_here(ends: Ends, count: int, size: int) -> None:
    left, right = ends
    files = [os.memfd_create(f"file-{number}") for number in range(count)]
    try:
        left.send("x" * size, files)
        message, received = right.receive(1)
        try:
            assert message == "x" * size
            assert _inodes(received) == _inodes(files)
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in received)
        finally:
            _close(received)
    finally:
        _close(files)


def test_descriptors_belong_to_the_message_they_came_with(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as first, socket.socket() as second:
        left.send("first", [first.fileno()])
        left.send("none")
        left.send("second", [second.fileno()] * 2)
        counts = []
        for _ in range(3):
            message, received = right.receive(1)
            counts.append((message, len(received)))
            _close(received)
    assert counts == [("first", 1), ("none", 0), ("second", 2)]


def test_a_message_costs_no_descriptor_for_good(ends: Ends) -> None:
    left, right = ends
    before = _open_descriptors()
    for size in (10, 100_000):
        left.send("x" * size)
        right.receive(1)
    assert _open_descriptors() == before


def test_the_end_of_the_other_end_is_told_to_who_receives_and_to_who_sends(ends: Ends) -> None:
    left, right = ends
    right.send("last words")
    right.close()
    assert left.receive(1)[0] == "last words"
    with pytest.raises(ChannelClosedError):
        left.receive(1)
    with pytest.raises(ChannelClosedError):
        left.send("nobody hears")


def test_an_end_that_was_closed_here_says_so(ends: Ends) -> None:
    left, _ = ends
    left.close()
    with pytest.raises(ChannelClosedError):
        left.send("too late")
    with pytest.raises(ChannelClosedError):
        left.receive(1)


def test_a_descriptor_that_is_not_open_is_the_senders_mistake_and_no_closed_end(ends: Ends) -> None:
    left, right = ends
    gone = os.memfd_create("gone")
    os.close(gone)
    with pytest.raises(OSError, match="Bad file descriptor") as refused:
        left.send("with a mistake", [gone])
    assert not isinstance(refused.value, ChannelClosedError)
    left.send("still there")
    assert right.receive(1)[0] == "still there"


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_nothing_within_the_deadline_is_a_timeout_and_the_channel_goes_on(ends: Ends, timeout_s: float) -> None:
    left, right = ends
    with pytest.raises(TimeoutError):
        right.receive(timeout_s)
    left.send("late")
    assert right.receive(1)[0] == "late"


def test_a_full_buffer_is_waited_for_whatever_the_last_receive_left(ends: Ends) -> None:
    left, right = ends
    with pytest.raises(TimeoutError):
        left.receive(0)  # leaves the socket non-blocking
    packets = _fill(left.sock)

    def make_room(*_: object) -> None:
        for _packet in range(packets):
            right.sock.recv(1)

    before = signal.signal(signal.SIGALRM, make_room)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # comes while ``send`` waits
        left.send("at last")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert right.receive(1)[0] == "at last"


def _fill(sock: socket.socket) -> int:
    """Send packets until there is no room; how many it took."""
    for count in itertools.count():
        try:
            sock.send(b"filling")
        except BlockingIOError:
            return count
    raise AssertionError


def test_descriptors_without_room_are_told_and_nothing_of_them_stays(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as file:
        left.send("eight", [file.fileno()] * 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = _open_descriptors()
    lowest = os.open(os.devnull, os.O_RDONLY)  # the first free number
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 3, hard))
    try:
        with pytest.raises(OSError, match="ulimit") as refused:
            right.receive(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused.value.errno == errno.EMFILE
    assert _open_descriptors() == before - 1  # the channel itself is closed: what comes next could not be told apart
