"""Who shares a connection, and for how long: the pool, and the states of a connection."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any, cast

import pytest
from tunnel_world import CLIENT, LOOPBACK, SERVER, until, world_of

from meshlab.protocols.hbone import Target
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.pool import ClientTunnel, Key, Pool, TunnelRefusedError
from meshlab.proxykit.splice import Half


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"|end")
    writer.close()


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read()
    writer.close()


# --- the pool --------------------------------------------------------------------------------------------------------


def _key(**changes: Any) -> Key:
    fields = {"identity": CLIENT, "source": LOOPBACK, "peers": frozenset({"a"}), "destination": Target(LOOPBACK, 15008)}
    return Key(**{**fields, **changes})


def test_calls_share_a_connection_until_it_is_full_and_never_across_keys() -> None:
    class Fake:
        lost = False

        def __init__(self) -> None:
            self.room = 2

        @property
        def has_room(self) -> bool:
            return self.room > 0

    async def scenario() -> None:
        opened: list[Key] = []

        async def connect(key: Key) -> Any:
            opened.append(key)
            await asyncio.sleep(0)
            return Fake()

        pool = Pool(connect)

        async def take(key: Key) -> Any:
            tunnel: Any = await pool.get(key)
            tunnel.room -= 1
            return tunnel

        await asyncio.gather(*(take(_key()) for _ in range(4)))
        assert opened == [_key()] * 2
        differing = [
            _key(identity=SERVER),
            _key(source=ip_address("127.0.0.2")),
            _key(peers=frozenset({"a", "b"})),
            _key(destination=Target(LOOPBACK, 15009)),
        ]
        for key in differing:
            await take(key)
        assert opened[2:] == differing

    asyncio.run(scenario())


def test_a_connection_that_was_lost_is_replaced() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            pool = Pool(lambda key: world.tunnel())
            first = await pool.get(_key())
            assert await pool.get(_key()) is first
            first.close()
            second = await pool.get(_key())
            assert second is not first
            pool.close()
            assert second.lost

    asyncio.run(scenario())


def test_those_who_wait_for_a_connection_that_fails_fail_with_it_and_the_next_one_tries_again() -> None:
    async def scenario() -> None:
        tried: list[Key] = []

        async def connect(key: Key) -> Any:
            tried.append(key)
            await asyncio.sleep(0)
            raise TimeoutError

        pool = Pool(connect)
        failures = await asyncio.gather(*(pool.get(_key()) for _ in range(100)), return_exceptions=True)
        assert len(tried) == 1
        assert {type(failure) for failure in failures} == {TimeoutError, TunnelRefusedError}
        with pytest.raises(TimeoutError):
            await pool.get(_key())
        assert len(tried) == 2

    asyncio.run(scenario())


def test_a_handshake_that_ends_after_its_caller_was_cancelled_is_no_error() -> None:
    """Both may happen in one turn of the loop, as when a pod goes while its proxy connects."""

    async def scenario() -> None:
        tunnel = ClientTunnel(cast("Any", None))
        tunnel.ready.cancel()
        tunnel.established()

    asyncio.run(scenario())


def test_an_unused_connection_is_closed_after_a_while() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            tunnel = await world.tunnel()
            tunnel.idle_s = 0
            reader, writer = await world.call(tunnel)
            writer.write_eof()
            await reader.read()
            await until(lambda: tunnel.lost)
            writer.close()

    asyncio.run(scenario())


def test_a_peer_that_takes_leave_of_a_new_connection_is_asked_for_another() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            opened: list[ClientTunnel] = []

            async def connect(key: Key) -> ClientTunnel:
                opened.append(await world.tunnel())
                if len(opened) == 1:
                    opened[0].going_away()
                return opened[-1]

            assert await Pool(connect).get(_key()) is opened[1]
            opened[1].close()

    asyncio.run(scenario())


def test_a_surplus_connection_is_closed_as_soon_as_its_streams_have_ended_and_the_last_is_kept() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:

            async def connect(key: Key) -> ClientTunnel:
                tunnel = await world.tunnel()
                tunnel.max_streams = 1
                return tunnel

            pool = Pool(connect)
            tunnels = [await pool.get(_key())]
            calls = [await world.call(tunnels[0])]
            tunnels.append(await pool.get(_key()))
            calls.append(await world.call(tunnels[1]))
            for _, writer in calls:  # both become idle in one turn of the loop
                writer.write_eof()
            for reader, writer in calls:
                assert await reader.read() == b"|end"
                writer.close()
            await until(lambda: any(tunnel.lost for tunnel in tunnels))
            for _ in range(20):
                await asyncio.sleep(0)
            (kept,) = [tunnel for tunnel in tunnels if not tunnel.lost]
            assert await pool.get(_key()) is kept
            kept.close()
            assert (pool._tunnels, pool._openings) == ({}, {})

    asyncio.run(scenario())


def test_connections_that_a_pool_retires_take_no_new_stream_and_carry_those_that_are_open() -> None:
    async def scenario() -> None:
        async with world_of(_echo) as world:
            pool = Pool(lambda key: world.tunnel())
            used = await pool.get(_key())
            reader, writer = await world.call(used)
            pool.retire(lambda key: key.destination.address != LOOPBACK)
            assert await pool.get(_key()) is used
            pool.retire(lambda key: key.destination.address == LOOPBACK)
            successor = await pool.get(_key())
            assert successor is not used
            writer.write(b"still here")
            writer.write_eof()
            assert await reader.read() == b"still here|end"
            writer.close()
            await until(lambda: used.lost)
            successor.close()

    asyncio.run(scenario())


# --- the states of a connection --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in ConnectionState if state is not ConnectionState.OPEN])
def test_a_stream_is_refused_at_once_by_a_connection_that_is_not_open(state: ConnectionState) -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
            tunnel = await world.tunnel()
            tunnel.state = state
            with pytest.raises(TunnelRefusedError, match=f"the connection is {state.value}"):
                await tunnel.open(f"127.0.0.1:{world.app_port}", {}, Half())
            assert not tunnel.has_room
            tunnel.state = ConnectionState.OPEN
            tunnel.close()

    asyncio.run(scenario())


def test_states_follow_each_other_in_one_order_and_lost_is_the_last() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
            tunnel = await world.tunnel()
            assert not tunnel.enter(ConnectionState.HANDSHAKING)
            assert tunnel.enter(ConnectionState.DRAINING)
            assert not tunnel.enter(ConnectionState.OPEN)
            tunnel.close()
            assert tunnel.state is ConnectionState.LOST
            assert not any(tunnel.enter(state) for state in ConnectionState)

    asyncio.run(scenario())


def test_a_connection_that_the_peer_closes_as_soon_as_it_is_open_is_not_handed_out() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:

            async def connect(key: Key) -> Any:
                tunnel = await world.tunnel()
                tunnel.close("the peer closed the connection")
                return tunnel

            with pytest.raises(TunnelRefusedError, match="takes no stream: the peer closed the connection"):
                await Pool(connect).get(_key())

    asyncio.run(scenario())
