"""The channel between a lab's processes: JSON of any size, with any number of descriptors, whole and in order."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from meshlab.kernel.channel import MAX_FDS, Channel, ChannelClosedError, pair


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
    left.send("next")
    message, fds = right.receive(timeout_s=5)
    for fd in fds:
        assert os.path.sameopenfile(fd, left.fileno())
        os.close(fd)
    assert (message, len(fds)) == ({"text": "x" * size}, count)
    assert right.receive(timeout_s=5) == ("next", [])


def test_descriptors_are_closed_in_programs_that_are_started_later(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send("take", [left.fileno()])
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
        left.send("anyone?")
