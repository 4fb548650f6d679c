"""What a splice relies on, asked of a socket and of a tunnel alike: a ``Half`` cannot tell which of them it drives.

far end <--> near (a socket, or a stream of a tunnel) | other (a socket) <--> its far end
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from tunnel_world import until, world_of

from meshlab.proxykit.splice import Half, join

MORE_THAN_ANY_BUFFER = 32 << 20
EARLY = b"said before the join"


@dataclass
class Far:
    """The far end of one side, driven by the test."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, size: int) -> int:
        """How much of ``size`` bytes arrives before the end."""
        got = 0
        while got < size and (data := await self.reader.read(min(size - got, 1 << 20))):
            got += len(data)
        return got

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def resets(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Side:
    half: Half
    far: Far
    vanish: Callable[[], Awaitable[None]]
    """End this side, once what it has said is with us."""


@contextlib.asynccontextmanager
async def _socket() -> AsyncIterator[Side]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    for sock in (theirs, ours):
        sock.setblocking(False)
    half = Half()
    await loop.create_connection(lambda: half, sock=ours)
    far = Far(*await asyncio.open_connection(sock=theirs))

    async def vanish() -> None:
        far.writer.close()

    try:
        yield Side(half, far, vanish)
    finally:
        far.writer.transport.abort()
        half.transport.abort()
        await _turns()


@contextlib.asynccontextmanager
async def _tunnel() -> AsyncIterator[Side]:
    accepted: asyncio.Future[Far] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(Far(reader, writer))
        await over.wait()
        writer.transport.abort()

    async with world_of(serve) as world:
        tunnel = await world.tunnel()
        half = Half()
        await tunnel.open(f"127.0.0.1:{world.app_port}", {}, half)

        async def vanish() -> None:
            (stream,) = tunnel._streams.values()
            await until(lambda: bool(stream._waiting))
            await world.inbound.close()
            await until(lambda: tunnel.lost)

        try:
            yield Side(half, await accepted, vanish)
        finally:
            over.set()
            tunnel.close()


SIDES = {"socket": _socket, "tunnel": _tunnel}
Scenario = Callable[[Side, Side], Awaitable[None]]


def _between(kind: str, scenario: Scenario) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), SIDES[kind]() as near, _socket() as other:
            await scenario(near, other)

    asyncio.run(run())


async def _turns() -> None:
    """What is ready on loopback is read within a few turns of the loop, were it read at all."""
    for _ in range(20):
        await asyncio.sleep(0)


both = pytest.mark.parametrize("kind", SIDES)


@both
def test_what_comes_before_the_join_waits_for_it(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        await near.far.says(EARLY)
        await _turns()
        assert near.half.received_bytes == 0
        join(near.half, other.half)
        assert await other.far.reader.readexactly(len(EARLY)) == EARLY

    _between(kind, scenario)


@both
def test_an_end_that_comes_before_the_join_is_passed_on_behind_the_bytes(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        await near.far.says(EARLY)
        near.far.writer.write_eof()
        await _turns()
        join(near.half, other.half)
        assert await other.far.reader.read() == EARLY
        await other.far.says(b"answer")
        assert await near.far.reader.readexactly(6) == b"answer"

    _between(kind, scenario)


@both
def test_a_side_that_vanishes_before_the_join_has_what_it_said_passed_on(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        await near.far.says(EARLY)
        await near.vanish()
        joined = join(near.half, other.half)
        assert await other.far.reader.read() == EARLY
        assert near.half.received_bytes == len(EARLY)
        other.far.writer.close()
        await joined

    _between(kind, scenario)


@both
def test_a_side_that_is_full_before_the_join_stops_the_other_until_there_is_room(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        near.half.transport.write(bytes(MORE_THAN_ANY_BUFFER))
        assert not near.half.writable
        await other.far.says(b"late")
        join(near.half, other.half)
        await _turns()
        assert other.half.received_bytes == 0
        assert await near.far.hears(MORE_THAN_ANY_BUFFER) == MORE_THAN_ANY_BUFFER
        assert await near.far.reader.readexactly(4) == b"late"

    _between(kind, scenario)


@both
def test_a_far_end_that_does_not_read_stops_the_other_and_loses_nothing(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        join(near.half, other.half)
        saying = asyncio.ensure_future(other.far.says(bytes(MORE_THAN_ANY_BUFFER)))
        await until(lambda: not other.half.transport.is_reading())
        assert other.half.received_bytes < MORE_THAN_ANY_BUFFER
        assert await near.far.hears(MORE_THAN_ANY_BUFFER) == MORE_THAN_ANY_BUFFER
        await saying

    _between(kind, scenario)


@both
def test_each_direction_ends_for_itself_and_both_together_end_the_splice(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        joined = join(near.half, other.half)
        other.far.writer.write_eof()
        assert await near.far.reader.read() == b""
        await near.far.says(b"answer")
        near.far.writer.write_eof()
        assert await other.far.reader.read() == b"answer"
        await joined

    _between(kind, scenario)


@both
def test_a_far_end_that_resets_is_an_end_for_the_other(kind: str) -> None:
    async def scenario(near: Side, other: Side) -> None:
        joined = join(near.half, other.half)
        near.far.resets()
        assert await other.far.reader.read() == b""
        other.far.writer.close()
        await joined

    _between(kind, scenario)
