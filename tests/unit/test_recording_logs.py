"""The output of a program: a report of its head and tail, and all of it for who reads it as it grows."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator

import pytest

from meshlab.kernel.recording import Log


@pytest.fixture
def pipe() -> Iterator[tuple[Log, int]]:
    read, write = os.pipe()
    log = Log(read)
    yield log, write
    os.close(write)
    log.close()


def say(log: Log, write: int, text: bytes) -> None:
    for at in range(0, len(text), 4096):
        os.write(write, text[at : at + 4096])
        log.read()


def test_whole_lines_are_given_once_and_the_rest_of_a_line_with_its_end(pipe: tuple[Log, int]) -> None:
    log, write = pipe
    say(log, write, b"one\ntwo\nthr")
    first = log.since(0)
    assert first == {"text": "one\ntwo\n", "lost": 0, "next": 8}
    say(log, write, b"ee\n")
    assert log.since(8) == {"text": "three\n", "lost": 0, "next": 14}


def test_a_place_behind_the_end_is_the_end(pipe: tuple[Log, int]) -> None:
    log, write = pipe
    say(log, write, b"one\n")
    assert log.since(1 << 62) == {"text": "", "lost": 0, "next": 4}


def test_what_is_not_kept_any_more_is_counted(pipe: tuple[Log, int]) -> None:
    log, write = pipe
    say(log, write, b"%0127d\n" % 1 * (5 << 20 >> 7))
    read = log.since(0)
    assert int(str(read["lost"])) + len(str(read["text"])) == 5 << 20
    assert 4 << 20 <= len(str(read["text"])) < 5 << 20


def test_a_report_has_the_head_the_tail_and_how_much_is_between(pipe: tuple[Log, int]) -> None:
    log, write = pipe
    say(log, write, b"head\n" + b"x" * (1 << 20) + b"\ntail\n")
    report = log.report()
    text = str(report["text"])
    assert text.startswith("head\n")
    assert text.endswith("\ntail\n")
    assert f"\n... {report['lost']} bytes left out ...\n" in text
    assert len(text) < 300_000


def test_what_is_kept_costs_no_more_where_it_comes_in_many_pieces(pipe: tuple[Log, int]) -> None:
    log, write = pipe
    tracemalloc.start()
    for _ in range(20_000):
        os.write(write, b"ab")
        log.read()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000
