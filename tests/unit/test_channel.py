"""Messages between a lab's processes: any size, any number of descriptors, deadlines, and an end that is told."""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import itertools
import os
import resource
import selectors
import socket
import threading
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
        left.send({"said": "x" * size}, files)
        message, received = right.receive(1)
        try:
            assert message == {"said": "x" * size}
            assert _inodes(received) == _inodes(files)
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in received)
        finally:
            _close(received)
    finally:
        _close(files)


def test_descriptors_belong_to_the_message_they_came_with(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as first, socket.socket() as second:
        left.send({"said": "first"}, [first.fileno()])
        left.send({"said": "none"})
        left.send({"said": "second"}, [second.fileno()] * 2)
        counts = []
        for _ in range(3):
            message, received = right.receive(1)
            counts.append((message["said"], len(received)))
            _close(received)
    assert counts == [("first", 1), ("none", 0), ("second", 2)]


def test_a_message_costs_no_descriptor_for_good(ends: Ends) -> None:
    left, right = ends
    before = _open_descriptors()
    for size in (10, 100_000):
        left.send({"said": "x" * size})
        right.receive(1)
    assert _open_descriptors() == before


def test_the_end_of_the_other_end_is_told_to_who_receives_and_to_who_sends(ends: Ends) -> None:
    left, right = ends
    right.send({"said": "last words"})
    right.close()
    assert left.receive(1)[0] == {"said": "last words"}
    with pytest.raises(ChannelClosedError):
        left.receive(1)
    with pytest.raises(ChannelClosedError):
        left.send({"said": "nobody hears"})


def test_an_end_that_was_closed_here_says_so(ends: Ends) -> None:
    left, _ = ends
    left.close()
    with pytest.raises(ChannelClosedError):
        left.send({"said": "too late"})
    with pytest.raises(ChannelClosedError):
        left.receive(1)


def test_a_descriptor_that_is_not_open_is_the_senders_mistake_and_no_closed_end(ends: Ends) -> None:
    left, right = ends
    gone = os.memfd_create("gone")
    os.close(gone)
    with pytest.raises(OSError, match="Bad file descriptor") as refused:
        left.send({"said": "with a mistake"}, [gone])
    assert not isinstance(refused.value, ChannelClosedError)
    left.send({"said": "still there"})
    assert right.receive(1)[0] == {"said": "still there"}


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_nothing_within_the_deadline_is_a_timeout_and_the_channel_goes_on(ends: Ends, timeout_s: float) -> None:
    left, right = ends
    with pytest.raises(TimeoutError):
        right.receive(timeout_s)
    left.send({"said": "late"})
    assert right.receive(1)[0] == {"said": "late"}


def test_what_finds_no_room_is_queued_and_goes_out_in_order_when_the_other_end_reads(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as file:
        sent = _send_until_something_waits(left, file.fileno())
    assert left.unsent
    for number in range(sent):
        message, (fd,) = right.receive(5)
        os.close(fd)
        assert message == {"said": number}
        left.flush()
    assert not left.unsent


def test_who_waits_for_an_answer_writes_meanwhile_what_was_queued(ends: Ends) -> None:
    left, right = ends
    sent = _send_until_something_waits(left)

    def read_all_and_answer() -> None:
        assert [right.receive(5)[0]["said"] for _ in range(sent)] == list(range(sent))
        right.send({"said": "answer"})

    reader = threading.Thread(target=read_all_and_answer)
    reader.start()
    assert left.receive(5)[0] == {"said": "answer"}
    reader.join()


def test_an_end_that_does_not_read_is_lost_at_the_bound_and_costs_nothing_any_more() -> None:
    before = _open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, open(os.devnull) as file:
        channel = Channel(ours, unsent_limit_bytes=1_000_000)
        with pytest.raises(ChannelClosedError, match=r"the other end does not read: 1\d{6} bytes wait for it"):
            _send_for_ever(channel, file.fileno())
        with pytest.raises(ChannelClosedError):
            channel.send({"said": "once more"})
    assert _open_descriptors() == before


def _send_for_ever(channel: Channel, fd: int) -> None:
    while True:
        channel.send({"said": "x" * 10_000}, [fd])


@pytest.mark.parametrize("loop_of", ["selectors", "asyncio"])
def test_a_loop_writes_what_was_queued_once_there_is_room(ends: Ends, loop_of: str) -> None:
    left, right = ends
    sent = _send_until_something_waits(left)
    reader = threading.Thread(target=lambda: [right.receive(5) for _ in range(sent)])
    if loop_of == "asyncio":
        asyncio.run(_written_by_asyncio(left, reader))
    else:
        with selectors.DefaultSelector() as selector:
            selector.register(left, selectors.EVENT_READ)
            reader.start()
            while left.unsent:
                left.watch(selector)
                assert selector.select(5)
                left.flush()
            left.watch(selector)
            assert selector.get_key(left).events == selectors.EVENT_READ
    assert not left.unsent
    reader.join()


async def _written_by_asyncio(left: Channel, reader: threading.Thread) -> None:
    ended = asyncio.Event()
    detach = left.attach(asyncio.get_running_loop(), lambda *_: None, ended.set)
    left.send({"said": "one more, so that the loop knows"})
    reader.start()
    async with asyncio.timeout(5):
        await asyncio.to_thread(reader.join)  # it has read what was sent before there was a loop
    detach()
    assert not ended.is_set()


def _send_until_something_waits(channel: Channel, *fds: int) -> int:
    """Send numbers until some are queued; how many were sent."""
    for count in itertools.count(1):
        channel.send({"said": count - 1}, fds)
        if channel.unsent and count % 10 == 0:
            return count
    raise AssertionError


def test_a_message_that_is_not_whole_yet_is_not_waited_for(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as file:
        whole = _packets_of([file.fileno()] * (MAX_FDS + 1))
        left.sock.sendmsg(*whole[0])
        assert right.take() is None
        left.sock.sendmsg(*whole[1])
        message, fds = right.take() or ({}, [])
    assert (message, len(fds)) == ({"said": "x"}, MAX_FDS + 1)
    _close(fds)


def _packets_of(fds: list[int]) -> list[tuple[list[bytes], list[tuple[int, int, array.array[int]]]]]:
    """What ``send`` writes for a message with more descriptors than one packet takes."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    ahead = ([b"\0\0\0\2"], [(*rights, array.array("i", fds[:MAX_FDS]))])
    return [ahead, ([b"\0\0\0\0", b'{"said":"x"}'], [(*rights, array.array("i", fds[MAX_FDS:]))])]


def test_descriptors_without_room_are_told_and_nothing_of_them_stays(ends: Ends) -> None:
    left, right = ends
    with open(os.devnull) as file:
        left.send({"said": "eight"}, [file.fileno()] * 8)
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
    assert _open_descriptors() == before
    with pytest.raises(ChannelClosedError):
        right.receive(1)  # what comes next could not be told apart
    right.send({"said": "last words"})
    assert left.receive(1)[0] == {"said": "last words"}
