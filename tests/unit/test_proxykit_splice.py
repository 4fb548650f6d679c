"""Two sockets joined: every byte, each end for itself, and no side that is left behind."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Any

import pytest

from meshlab.proxykit.splice import Half, join


class Ends:
    """The far ends of two joined connections, as blocking-free sockets."""

    def __init__(self, one: socket.socket, other: socket.socket, joined: asyncio.Future[None]) -> None:
        self.one, self.other, self.joined = one, other, joined

    async def say(self, speaker: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(speaker, data)

    async def hear(self, listener: socket.socket) -> bytes:
        return await asyncio.get_running_loop().sock_recv(listener, 1 << 16)

    def close(self) -> None:
        self.one.close()
        self.other.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    far.setblocking(False)
    near.setblocking(False)
    return far, near


async def _joined() -> Ends:
    loop = asyncio.get_running_loop()
    (one, near_one), (other, near_other) = _tcp_pair(), _tcp_pair()
    _, half = await loop.create_connection(Half, sock=near_one)
    _, peer = await loop.create_connection(Half, sock=near_other)
    return Ends(one, other, join(half, peer))


def _run(scenario: Any) -> list[dict[str, Any]]:
    """What the loop complained of."""
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(run())
    return complaints


def test_nothing_is_read_before_the_two_are_joined() -> None:
    """What a refused app had sent is still in its socket: that is why the kernel resets it."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        far, near = _tcp_pair()
        await loop.sock_sendall(far, b"early")
        transport, half = await loop.create_connection(Half, sock=near)
        for _ in range(3):
            await asyncio.sleep(0)  # a turn of the loop, which looks at its sockets
        assert half.received_bytes == 0
        assert near.recv(16, socket.MSG_PEEK) == b"early"
        transport.close()
        far.close()

    assert _run(scenario) == []


def test_each_direction_ends_for_itself_and_both_together_end_the_splice() -> None:
    async def scenario() -> None:
        ends = await _joined()
        await ends.say(ends.one, b"question")
        ends.one.shutdown(socket.SHUT_WR)
        assert await ends.hear(ends.other) == b"question"
        assert await ends.hear(ends.other) == b""
        await ends.say(ends.other, b"answer")
        assert await ends.hear(ends.one) == b"answer"
        assert not ends.joined.done()
        ends.other.shutdown(socket.SHUT_WR)
        assert await ends.hear(ends.one) == b""
        await ends.joined
        ends.close()

    assert _run(scenario) == []


def test_an_end_comes_behind_all_that_was_said_before_it() -> None:
    async def scenario() -> None:
        ends = await _joined()
        size = 30 << 20

        async def speak() -> None:
            await ends.say(ends.one, bytes(size))
            ends.one.shutdown(socket.SHUT_WR)

        async def listen() -> int:
            got = 0
            while data := await ends.hear(ends.other):
                got += len(data)
            return got

        got, _ = await asyncio.gather(listen(), speak())
        assert got == size
        ends.other.close()
        await ends.joined
        ends.close()

    assert _run(scenario) == []


def test_a_reset_of_one_side_is_a_fin_for_the_other() -> None:
    async def scenario() -> None:
        ends = await _joined()
        ends.one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.one.close()
        assert await ends.hear(ends.other) == b""
        await ends.joined
        ends.close()

    assert _run(scenario) == []


class Resetting(asyncio.Transport):
    """A socket whose peer resets it at the very moment at which its FIN would leave."""

    def __init__(self, waiting: int) -> None:
        super().__init__()
        self.waiting = waiting
        self.tried = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    def write_eof(self) -> None:
        assert self.waiting == 0
        self.tried += 1
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


@pytest.mark.parametrize("waiting", [0, 1000])
def test_a_reset_that_crosses_the_fin_is_no_failure(waiting: int) -> None:
    transport = Resetting(waiting)

    async def scenario() -> None:
        half = Half()
        half.connection_made(transport)
        half.end()
        assert transport.tried == 0  # perhaps asyncio is writing at this moment
        if waiting:
            transport.waiting = 0
            half.resume_writing()
        await asyncio.sleep(0)
        assert transport.tried == 1

    assert _run(scenario) == []


def test_what_is_not_joined_is_not_read() -> None:
    async def scenario() -> None:
        far, near = _tcp_pair()
        far.sendall(b"early")
        _, half = await asyncio.get_running_loop().create_connection(Half, sock=near)
        for _ in range(5):
            await asyncio.sleep(0)
        assert half.received_bytes == 0
        half.close()
        with pytest.raises(ConnectionResetError):  # the kernel's word for bytes that nobody read
            await asyncio.get_running_loop().sock_recv(far, 10)
        far.close()

    assert _run(scenario) == []
