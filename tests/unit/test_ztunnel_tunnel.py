"""Two ends of a tunnel on loopback, with real TLS and real sockets: what an app sees of what happens at the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from ztunnel_world import credentials, policy, state_of, update, who, workload

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.protocols.hbone import PongReceived, Target, WireEvent
from meshlab.protocols.messages import AUTHORIZATION_TYPE
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel.access_log import AccessLog
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.pool import ClientTunnel, Key, Pool, TunnelRefusedError, connect_client
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.splice import Half, join
from meshlab.ztunnel.state import Workload
from meshlab.ztunnel.tls import Tls, in_trust_domain, one_of

LOOPBACK = ip_address("127.0.0.1")
CLIENT, SERVER = who("client"), who("server")
POD = ZdsPod(uid="u", name="server", namespace="shop", service_account="server")


class _Loopback(Inbound):
    """An inbound side without a pod: its app is on loopback, and nobody's address is taken."""

    app_port = 0
    reached = 0

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        self.reached += 1
        _, app = await asyncio.get_running_loop().create_connection(Half, str(target.address), target.port)
        return app

    async def secure(self, own: Workload, source: Target) -> Tls:
        check = in_trust_domain(own.identity.trust_domain)
        return Tls(credentials(own.identity).server_context, server_side=True, check_peer=check)


@dataclass
class World:
    """A client's end, a server's end, and what was logged at the server's."""

    inbound: _Loopback
    port: int
    app_port: int
    log: list[dict[str, Any]]
    identity: SpiffeId = CLIENT
    expected: frozenset[str] = frozenset({str(SERVER)})
    apps: list[socket.socket] = field(default_factory=list)
    tasks: set[asyncio.Future[Any]] = field(default_factory=set)

    async def tunnel(self) -> ClientTunnel:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setblocking(False)
        context = credentials(self.identity).client_context
        return await connect_client(sock, Tls(context, server_side=False, check_peer=one_of(self.expected)), 5)

    async def call(self, tunnel: ClientTunnel, port: int | None = None) -> tuple[Any, Any]:
        """An app's streams to the app behind the tunnel."""
        mine, theirs = socket.socketpair()
        theirs.setblocking(False)
        app = Half()
        await asyncio.get_running_loop().create_connection(lambda: app, sock=theirs)
        upstream = Half()
        try:
            await tunnel.open(f"127.0.0.1:{port or self.app_port}", {}, upstream)
        except ProtocolError:
            app.close()
            mine.close()
            raise
        self.tasks.add(join(app, upstream))
        return await asyncio.open_connection(sock=mine)


@contextlib.asynccontextmanager
async def _world(serve: Callable[[Any, Any], Awaitable[None]], *policies: Any) -> AsyncIterator[World]:
    lines: list[dict[str, Any]] = []
    state = state_of(workload("client", "127.0.0.2"), workload("server", "127.0.0.1"), policies=policies)
    log = AccessLog(lambda line: lines.append(json.loads(line)), log_opened=True)
    inbound = _Loopback(Shared(state=state, certificates=None, log=log), POD, -1)  # type: ignore[arg-type]
    app = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = await asyncio.get_running_loop().create_server(inbound.accept_hbone, "127.0.0.1", 0)
    world = World(inbound, server.sockets[0].getsockname()[1], app.sockets[0].getsockname()[1], lines)
    try:
        async with asyncio.timeout(20):
            yield world
    finally:
        server.close()
        app.close()
        await inbound.close()
        for _ in range(5):  # transports say goodbye in turns of the loop
            await asyncio.sleep(0)


async def _until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; the world has the deadline."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"|end")
    writer.close()


async def _never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("the app was reached")


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read()
    writer.close()


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(5)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_every_byte_arrives_both_ways_and_an_end_in_one_direction_leaves_the_other_open() -> None:
    async def scenario() -> None:
        async with _world(_echo) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            sent = os.urandom(3 << 20)

            async def speak() -> None:
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            got, _ = await asyncio.gather(reader.read(), speak())
            assert got == sent + b"|end"
            writer.close()
            tunnel.close()

    asyncio.run(scenario())


def test_many_streams_share_one_connection() -> None:
    async def scenario() -> None:
        async with _world(_echo) as world:
            tunnel = await world.tunnel()

            async def one(number: int) -> bytes:
                reader, writer = await world.call(tunnel)
                writer.write(b"%d" % number)
                writer.write_eof()
                answer = await reader.read()
                writer.close()
                return bytes(answer)

            answers = await asyncio.gather(*(one(number) for number in range(50)))
            assert answers == [b"%d|end" % number for number in range(50)]
            assert tunnel.rules.live == ()
            tunnel.close()

    asyncio.run(scenario())


def test_a_denied_peer_never_reaches_the_app_and_may_use_the_connection_for_what_is_allowed() -> None:
    async def scenario() -> None:
        async with _world(_never, policy("only", "DENY", destination_ports=[1])) as world:
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="http status: 401 Unauthorized"):
                await world.call(tunnel, port=1)
            assert world.inbound.reached == 0
            with pytest.raises(TunnelRefusedError, match="503"):
                await world.call(tunnel, port=15001)
            assert not tunnel.lost
            tunnel.close()
            assert [line["error"] for line in world.log] == [
                "connection closed due to policy rejection: explicitly denied by: shop/only",
                "recursive call: a port of ztunnel's own",
            ]

    asyncio.run(scenario())


def test_an_app_that_is_not_there_is_a_503() -> None:
    async def scenario() -> None:
        async with _world(_never) as world:
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="503"):
                await world.call(tunnel, port=2)
            tunnel.close()

    asyncio.run(scenario())


def test_a_call_for_another_pods_address_is_a_400() -> None:
    async def scenario() -> None:
        async with _world(_never) as world:
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="400"):
                await tunnel.open("127.0.0.9:80", {}, Half())
            tunnel.close()

    asyncio.run(scenario())


def test_a_policy_that_comes_later_cuts_what_is_open_and_both_apps_see_an_end() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            assert await reader.read() == b""
            ended.set()
            writer.close()

        async with _world(app) as world:
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
        async with _world(_hold) as world:
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


def test_an_app_that_resets_is_an_end_for_the_one_that_called_and_costs_the_connection_nothing() -> None:
    async def scenario() -> None:
        async with _world(_reset) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            writer.write(b"hello")
            assert await reader.read() == b""
            writer.close()
            assert not tunnel.lost
            tunnel.close()

    asyncio.run(scenario())


def test_a_server_that_is_someone_else_gets_no_connect() -> None:
    async def scenario() -> None:
        async with _world(_never) as world:
            world.expected = frozenset({str(who("other"))})
            with pytest.raises(TunnelRefusedError, match=r"expected .*/sa/other"):
                await world.tunnel()
            assert not [line for line in world.log if "dst.hbone_addr" in line]

    asyncio.run(scenario())


def test_a_client_of_another_trust_domain_opens_nothing() -> None:
    async def scenario() -> None:
        async with _world(_never) as world:
            world.identity = who("client", "elsewhere")
            with pytest.raises(ProtocolError):
                await world.call(await world.tunnel())
            assert "another trust domain" in world.log[-1]["error"]

    asyncio.run(scenario())


def test_what_is_no_tls_is_dropped_and_logged() -> None:
    async def scenario() -> None:
        async with _world(_never) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            assert (world.log[-1]["message"], "TLS" in world.log[-1]["error"]) == ("connection failed", True)

    asyncio.run(scenario())


def test_when_the_pod_goes_every_app_sees_an_end() -> None:
    async def scenario() -> None:
        async with _world(_hold) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            await world.inbound.close()
            assert await reader.read() == b""
            writer.close()
            assert tunnel.lost

    asyncio.run(scenario())


def test_a_reader_that_stops_stops_the_writer_and_loses_nothing() -> None:
    async def scenario() -> None:
        read_on = asyncio.Event()
        got = bytearray()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_on.wait()
            while data := await reader.read(1 << 16):
                got.extend(data)
            writer.close()

        async with _world(slow) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            size = 64 << 20
            writer.write(bytes(size))
            drained = asyncio.ensure_future(writer.drain())
            before = -1
            while before != (left := writer.transport.get_write_buffer_size()):
                before = left
                await asyncio.sleep(0.1)
            assert left > 0
            assert size - left < 40 << 20  # windows, queues and socket buffers; not the whole
            read_on.set()
            await drained
            writer.write_eof()
            assert await reader.read() == b""
            assert len(got) == size
            writer.close()
            tunnel.close()

    asyncio.run(scenario())


def test_a_peer_that_answers_no_ping_is_dropped_and_one_that_does_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlab.ztunnel.tunnel.PING_EVERY_S", 0.01)
    monkeypatch.setattr("meshlab.ztunnel.tunnel.PING_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with _world(_hold) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            answered: list[PongReceived] = []
            heard = tunnel.on_wire

            def hear(event: WireEvent) -> None:
                answered.extend([event] if isinstance(event, PongReceived) else [])
                heard(event)

            monkeypatch.setattr(tunnel, "on_wire", hear)
            await _until(lambda: len(answered) >= 3)
            assert not tunnel.lost
            (server,) = world.inbound._tunnels
            server.transport.pause_reading()
            assert server._timer
            server._timer.cancel()  # or it would miss the client's answers, and be the first to go
            assert await reader.read() == b""
            assert tunnel.error == "the peer did not answer a PING"
            writer.close()

    asyncio.run(scenario())


def test_a_call_that_is_given_up_while_it_waits_leaves_nothing_open() -> None:
    async def scenario() -> None:
        async with _world(_hold) as world:
            tunnel = await world.tunnel()
            waiting = asyncio.ensure_future(tunnel.open(f"127.0.0.1:{world.app_port}", {}, Half()))
            await asyncio.sleep(0)
            assert len(tunnel.rules.live) == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert len(tunnel.rules.live) == 0
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            tunnel.close()

    asyncio.run(scenario())


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
        async with _world(_echo) as world:
            pool = Pool(lambda key: world.tunnel())
            first = await pool.get(_key())
            assert await pool.get(_key()) is first
            first.close()
            second = await pool.get(_key())
            assert second is not first
            pool.close()
            assert second.lost

    asyncio.run(scenario())


def test_an_unused_connection_is_closed_after_a_while() -> None:
    async def scenario() -> None:
        async with _world(_echo) as world:
            tunnel = await world.tunnel()
            tunnel.idle_s = 0
            reader, writer = await world.call(tunnel)
            writer.write_eof()
            await reader.read()
            await _until(lambda: tunnel.lost)
            writer.close()

    asyncio.run(scenario())


def test_a_goaway_lets_calls_finish_and_takes_no_more() -> None:
    async def scenario() -> None:
        async with _world(_echo) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            world.inbound.drain()
            await _until(lambda: not tunnel.has_room)
            writer.write(b"late")
            writer.write_eof()
            assert await reader.read() == b"late|end"
            writer.close()
            await _until(lambda: tunnel.lost)

    asyncio.run(scenario())
