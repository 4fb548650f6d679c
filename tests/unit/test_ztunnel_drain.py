"""What a drain keeps: both ends of a tunnel on loopback, while one of them takes leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tunnel_world import CLIENT, LOOPBACK, POD, SERVER, World, until, world_of
from ztunnel_world import named

from meshlab.protocols.hbone import Target
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.pool import ClientTunnel, Key, Limits, TunnelRefusedError, UntouchedError
from meshlab.proxykit.splice import Half
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route

KEY = Key(CLIENT, LOOPBACK, frozenset({str(SERVER)}), Target(LOOPBACK, 15008))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.write(b"|end")
    writer.close()


async def _answered(world: World, tunnel: ClientTunnel, word: bytes = b"hello") -> bytes:
    reader, writer = await world.call(tunnel)
    return await _said(reader, writer, word)


async def _said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def test_a_goaway_lets_calls_finish_takes_no_more_and_the_connection_ends_with_the_last() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            world.inbound.drain()
            over = asyncio.ensure_future(world.inbound.finished())
            await until(lambda: not tunnel.has_room)
            assert await _said(reader, writer, b"late") == b"late|end"
            await until(lambda: tunnel.lost)
            await over

    asyncio.run(scenario())


def test_a_connect_that_crosses_the_goaway_is_served() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            tunnel = await world.tunnel()
            (server,) = world.inbound._tunnels
            await until(lambda: server.state is ConnectionState.OPEN)
            opening = asyncio.ensure_future(tunnel.open(f"127.0.0.1:{world.app_port}", {}, Half()))
            await asyncio.sleep(0)  # the CONNECT is on its way
            world.inbound.drain()
            await opening
            assert tunnel.state is ConnectionState.DRAINING
            tunnel.close()
            await world.inbound.finished()

    asyncio.run(scenario())


def test_an_idle_connection_is_over_when_its_client_has_read_the_goaway_and_not_before() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            tunnel = await world.tunnel()
            (server,) = world.inbound._tunnels
            await until(lambda: server.state is ConnectionState.OPEN)
            tunnel.transport.pause_reading()
            world.inbound.drain()
            over = asyncio.ensure_future(world.inbound.finished())
            for _ in range(50):
                await asyncio.sleep(0)
            assert not over.done()
            tunnel.transport.resume_reading()
            await over

    asyncio.run(scenario())


def test_a_connection_whose_handshake_ends_during_the_drain_carries_the_call_for_which_it_was_opened() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            world.inbound.drain()
            tunnel = await world.tunnel()
            assert await _answered(world, tunnel) == b"hello|end"
            assert not tunnel.has_room
            await world.inbound.finished()

    asyncio.run(scenario())


def test_a_refused_call_is_the_last_one_of_such_a_connection_too() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            world.inbound.drain()
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="503"):
                await world.call(tunnel, port=15001)
            await world.inbound.finished()

    asyncio.run(scenario())


def test_the_last_bytes_of_an_app_that_has_left_arrive_although_the_connection_drains() -> None:
    async def scenario() -> None:
        got = bytearray()
        may_read, ended = asyncio.Event(), asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_read.wait()
            while data := await reader.read(1 << 16):
                got.extend(data)
            ended.set()
            writer.close()

        async with world_of(slow) as world:
            tunnel = await world.tunnel()
            _, writer = await world.call(tunnel)
            writer.write(bytes(64 << 20))  # more than a window
            await until(lambda: tunnel.framing.holds_back)
            world.inbound.drain()
            await until(lambda: tunnel.state is ConnectionState.DRAINING)
            may_read.set()
            await writer.drain()
            writer.close()
            await ended.wait()
            assert len(got) == 64 << 20
            await until(lambda: tunnel.lost)

    asyncio.run(scenario())


# --- the client's side -----------------------------------------------------------------------------------------------


class _Loopback(Outbound):
    """An outbound side whose peer is a world's."""

    def __init__(self, world: World) -> None:
        super().__init__(world.inbound.shared, POD, -1)
        self.world = world
        self.opened: list[ClientTunnel] = []

    async def connect_peer(self, key: Key) -> ClientTunnel:
        self.opened.append(await self.world.tunnel())
        return self.opened[-1]

    async def call(self) -> Any:
        way = Route(target=Target(LOOPBACK, self.world.app_port), tunnel=KEY.destination, identities=KEY.peers)
        record = Record(direction="outbound", source=Target(LOOPBACK, 1), destination=way.target)
        own = named(self.shared.state, "client")
        return await self.connect_tunnel(way, KEY.destination, own, record)


def test_a_call_that_the_peer_has_not_touched_is_made_on_another_connection() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            outbound = _Loopback(world)
            world.inbound.may_dial.clear()
            calling = asyncio.ensure_future(outbound.call())
            await world.inbound.dials.wait()
            (server,) = world.inbound._tunnels
            server.framing._connection.close_connection(last_stream_id=0)
            server.flush_soon()
            await until(lambda: len(outbound.opened) == 2)
            world.inbound.may_dial.set()
            await calling
            assert [tunnel.given_up for tunnel in outbound.opened] == [True, False]
            await outbound.close()

    asyncio.run(scenario())


def test_a_call_that_no_connection_takes_fails_in_the_end() -> None:
    class Never(_Loopback):
        async def connect_peer(self, key: Key) -> ClientTunnel:
            tunnel = await super().connect_peer(key)

            async def open_(*_: object) -> None:
                raise UntouchedError("no")

            tunnel.open = open_  # type: ignore[method-assign,assignment]
            tunnel.max_streams = 0 if len(self.opened) > 1 else 1
            return tunnel

    async def scenario() -> None:
        async with world_of(_echo) as world:
            outbound = Never(world)
            with pytest.raises(UntouchedError):
                await outbound.call()
            await outbound.close()

    asyncio.run(scenario())


def test_the_limits_of_the_environment_hold_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            tunnel = await world.tunnel()

            async def connected(*_: object) -> ClientTunnel:
                return tunnel

            async def nothing(*_: object) -> None:
                return None

            monkeypatch.setattr("meshlab.ztunnel.outbound.connect_client", connected)
            monkeypatch.setattr("meshlab.proxykit.sockets.connect_from", nothing)
            shared = world.inbound.shared
            limited = type(shared)(
                state=shared.state,
                certificates=shared.certificates,
                log=shared.log,
                limits=Limits(max_streams=7, idle_s=9),
            )
            outbound = Outbound(limited, POD, -1)
            monkeypatch.setattr(outbound, "secure", nothing)
            assert await outbound.connect_peer(KEY) is tunnel
            assert (tunnel.max_streams, tunnel.idle_s) == (7, 9)
            tunnel.close()

    asyncio.run(scenario())
