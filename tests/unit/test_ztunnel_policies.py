"""Policies that come while a connection is open or its app is dialled, over real tunnels on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
from tunnel_world import CLIENT, LOOPBACK, World, world_of
from ztunnel_world import policy, update

from meshlab.protocols.hbone import Target
from meshlab.protocols.messages import AUTHORIZATION_TYPE
from meshlab.proxykit.pool import TunnelRefusedError

DENY_ALL = policy("late", "DENY", source_ips=[{"address": LOOPBACK.packed, "length": 32}])


async def _never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("the app was reached")


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read()
    writer.close()


def test_a_policy_that_comes_later_cuts_what_is_open_and_both_apps_see_an_end() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            assert await reader.read() == b""
            ended.set()
            writer.close()

        async with world_of(app) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            deny = policy("late", "DENY", principals=[{"exact": CLIENT.principal}])
            world.inbound.shared.state.apply(update(AUTHORIZATION_TYPE, deny))
            world.inbound.guard.judge_again()
            assert await reader.read() == b""
            await ended.wait()
            writer.close()
            assert not tunnel.lost
            tunnel.close()
        assert world.log[-1]["error"] == "connection closed due to policy change"
        assert (world.log[-1]["bytes_sent"], world.log[-1]["src.identity"]) == (5, str(CLIENT))

    asyncio.run(scenario())


def test_a_policy_that_still_allows_cuts_nothing() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            other = policy("other", "DENY", principals=[{"exact": "cluster.local/ns/shop/sa/someone"}])
            world.inbound.shared.state.apply(update(AUTHORIZATION_TYPE, other))
            world.inbound.guard.judge_again()
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            tunnel.close()
        assert world.log[-1].get("error") is None

    asyncio.run(scenario())


@pytest.mark.parametrize("carried", ["in-plaintext", "tunnelled"])
def test_a_policy_that_comes_while_the_app_is_dialled_cuts_the_connection_and_no_app_is_reached(
    carried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            there = Target(LOOPBACK, world.app_port)
            monkeypatch.setattr("meshlab.proxykit.sockets.original_destination", lambda sock: there)
            world.inbound.may_dial.clear()
            calling = asyncio.ensure_future(_refused(world, carried))
            await world.inbound.dials.wait()
            world.inbound.shared.state.apply(update(AUTHORIZATION_TYPE, DENY_ALL))
            world.inbound.guard.judge_again()
            await calling
            world.inbound.may_dial.set()
            await world.inbound.finished()
            assert world.inbound.reached == 0
            assert world.log[-1]["error"] == "connection closed due to policy change"

    asyncio.run(scenario())


async def _refused(world: World, carried: str) -> None:
    """Call, and see that it ends without an answer."""
    if carried == "tunnelled":
        tunnel = await world.tunnel()
        with pytest.raises(TunnelRefusedError):
            await world.call(tunnel)
        tunnel.close()
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", world.plain_port)
    writer.write(b"early")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


def test_a_client_that_gives_up_while_its_app_is_dialled_leaves_no_dial_behind() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            world.inbound.may_dial.clear()
            tunnel = await world.tunnel()
            calling = asyncio.ensure_future(world.call(tunnel))
            await world.inbound.dials.wait()
            calling.cancel()
            await world.inbound.tasks.finished()
            assert world.inbound.reached == 0
            assert world.log[-1]["error"] == "the tunnel was closed before its app was reached"
            tunnel.close()

    asyncio.run(scenario())


def test_a_policy_that_has_not_come_yet_is_skipped_with_a_warning() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
            (own,) = (w for w in world.inbound.shared.state.workloads.values() if w.name == "server")
            listing = dataclasses.replace(own, authorization_policies=("shop/later",))
            connection = world.inbound.connection(listing, LOOPBACK, Target(LOOPBACK, 80))
            world.inbound.admit(listing, connection, lambda: None)
            assert world.log == [
                {
                    **world.log[0],
                    "level": "warn",
                    "message": "skipping unknown policy shop/later, which shop/server lists",
                }
            ]

    asyncio.run(scenario())
