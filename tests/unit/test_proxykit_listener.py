"""Listeners that are closed while others connect: real sockets on loopback."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable

import pytest

from meshlab.proxykit.listener import Listener


def _listen(port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    sock.listen(64)
    sock.setblocking(False)
    return sock


class Greeter(asyncio.Protocol):
    """Says one word to whoever connects, and leaves."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.word)
        transport.close()


def _run(scenario: Callable[[Listener, int], Awaitable[None]]) -> None:
    async def run() -> None:
        sock = _listen()
        port = sock.getsockname()[1]
        listener = Listener(sock, lambda: Greeter(b"old"))
        async with asyncio.timeout(20):
            await scenario(listener, port)
        listener.close()

    asyncio.run(run())


def _connect(port: int, count: int) -> list[socket.socket]:
    """Connections that wait in a queue of the kernel's: no turn of the loop passes."""
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


async def _words(connections: list[socket.socket]) -> set[bytes]:
    words = set()
    for connection in connections:
        reader, writer = await asyncio.open_connection(sock=connection)
        words.add(await reader.read())
        writer.close()
    return words


def test_who_waits_in_the_queue_of_a_listener_that_closes_is_served_and_nobody_after() -> None:
    async def scenario(listener: Listener, port: int) -> None:
        waiting = _connect(port, 20)
        listener.close()
        await listener.settled()
        assert await _words(waiting) == {b"old"}
        with pytest.raises(ConnectionRefusedError):
            _connect(port, 1)

    _run(scenario)


def test_a_listener_that_retires_leaves_new_connections_to_the_newer_one_at_once() -> None:
    async def scenario(old: Listener, port: int) -> None:
        new = Listener(_listen(port), lambda: Greeter(b"new"))
        assert await _words(_connect(port, 64)) == {b"old", b"new"}
        old.retire()
        assert await _words(_connect(port, 64)) == {b"new"}
        await old.settled()
        assert await _words(_connect(port, 64)) == {b"new"}
        new.close()

    _run(scenario)


def test_a_listener_that_retires_alone_serves_who_was_on_the_way_and_is_closed_soon() -> None:
    async def scenario(listener: Listener, port: int) -> None:
        listener.retire()
        waiting = _connect(port, 1)
        await listener.settled()
        assert await _words(waiting) == {b"old"}
        with pytest.raises(ConnectionRefusedError):
            _connect(port, 1)

    _run(scenario)


def test_a_process_that_has_no_descriptor_left_lets_connections_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlab.proxykit.listener._PAUSE_S", 0.01)

    async def scenario(listener: Listener, port: int) -> None:
        waiting = _connect(port, 2)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await _words(waiting) == {b"old"}

    _run(scenario)
