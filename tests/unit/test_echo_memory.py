"""What an echo keeps for its connections is bounded in sum, and is given back when they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshlab.apps.echo import EchoConnection, Listener
from meshlab.apps.http_echo import Memory
from meshlab.apps.received import Received

HALF_CLOSE = b"MESHLAB half-close x\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Echo: body\r\nContent-Length: 600\r\n\r\n"


class _Wire(asyncio.Transport):
    """The client's end: what it was sent, of which it reads nothing until ``drain``."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.1", 40404)})
        self.unread = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unread += data

    def get_write_buffer_size(self) -> int:
        return len(self.unread)

    def abort(self) -> None:
        self.aborted = True
        self.unread.clear()

    def close(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Echo:
    """Connections of one echo."""

    def __init__(self, most: int) -> None:
        self.memory = Memory(most=most)
        self._given: Any = (Listener("shop/a", 80), Received(), set(), self.memory)

    def dial(self) -> tuple[EchoConnection, _Wire]:
        connection, wire = EchoConnection(*self._given), _Wire()
        connection.connection_made(wire)
        return connection, wire


@pytest.mark.parametrize("first", [HALF_CLOSE, POST], ids=["half-close", "body"])
def test_what_is_kept_is_counted_until_the_connection_ends(first: bytes) -> None:
    echo = _Echo(most=10_000)
    connection, _ = echo.dial()
    connection.data_received(first + b"x" * 500)
    assert 500 <= echo.memory.held <= 500 + len(first)
    connection.connection_lost(None)
    assert echo.memory.held == 0


def test_an_answer_counts_until_it_is_read() -> None:
    echo = _Echo(most=10_000)
    connection, wire = echo.dial()
    connection.data_received(POST + b"x" * 600)
    assert echo.memory.held == len(wire.unread) > 600
    wire.unread.clear()
    connection.resume_writing()
    assert echo.memory.held == 0


def test_the_connection_that_would_exceed_the_sum_is_refused_and_the_others_go_on() -> None:
    echo = _Echo(most=1000)
    first, first_wire = echo.dial()
    first.data_received(HALF_CLOSE + b"x" * 1000)
    second, second_wire = echo.dial()
    second.data_received(HALF_CLOSE + b"x")
    third, third_wire = echo.dial()
    third.data_received(POST + b"x")
    assert (first_wire.aborted, second_wire.aborted) == (False, True)
    assert third_wire.unread.startswith(b"HTTP/1.1 503 ")
    first.eof_received()
    assert first_wire.unread.endswith(b"x" * 1000)


def test_a_connection_that_keeps_nothing_is_served_whatever_the_others_keep() -> None:
    echo = _Echo(most=0)
    connection, wire = echo.dial()
    connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 600\r\n\r\n" + b"x" * 600)
    assert wire.unread.startswith(b"HTTP/1.1 200 OK")
