"""Two ends of a tunnel on loopback, with real TLS and real sockets: what an app sees of what happens at the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from typing import Any

import pytest
from tunnel_world import CLIENT, LOOPBACK, POD, Loopback, until, world_of
from ztunnel_world import credentials, policy, who

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import PongReceived, Target, WireEvent
from meshlab.proxykit.pool import Key, TunnelRefusedError
from meshlab.proxykit.splice import Half, join
from meshlab.proxykit.tls import Tls, one_of
from meshlab.proxykit.tunnel import PING_EVERY_S, PING_TIMEOUT_S
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.proxy import PodProxy
from meshlab.ztunnel.state import Workload

DENY_ALL = policy("late", "DENY", source_ips=[{"address": LOOPBACK.packed, "length": 32}])


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
        async with world_of(_echo) as world:
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
        async with world_of(_echo) as world:
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
        async with world_of(_never, policy("only", "DENY", destination_ports=[1])) as world:
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
        async with world_of(_never) as world:
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="503"):
                await world.call(tunnel, port=2)
            tunnel.close()

    asyncio.run(scenario())


def test_a_call_for_another_pods_address_is_a_400() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            tunnel = await world.tunnel()
            with pytest.raises(TunnelRefusedError, match="400"):
                await tunnel.open("127.0.0.9:80", {}, Half())
            tunnel.close()

    asyncio.run(scenario())


def test_an_app_that_resets_is_an_end_for_the_one_that_called_and_costs_the_connection_nothing() -> None:
    async def scenario() -> None:
        async with world_of(_reset) as world:
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
        async with world_of(_never) as world:
            world.expected = frozenset({str(who("other"))})
            with pytest.raises(TunnelRefusedError, match=r"expected .*/sa/other"):
                await world.tunnel()
            assert not [line for line in world.log if "dst.hbone_addr" in line]

    asyncio.run(scenario())


def test_a_client_of_another_trust_domain_opens_nothing() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            world.identity = who("client", "elsewhere")
            with pytest.raises(ProtocolError):
                await world.call(await world.tunnel())
            assert "another trust domain" in world.log[-1]["error"]

    asyncio.run(scenario())


def test_what_is_no_tls_is_dropped_and_logged() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            assert (world.log[-1]["message"], "TLS" in world.log[-1]["error"]) == ("connection failed", True)

    asyncio.run(scenario())


def test_when_the_pod_goes_every_app_sees_an_end() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
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

        async with world_of(slow) as world:
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
    monkeypatch.setattr("meshlab.proxykit.tunnel.PING_EVERY_S", 0.01)
    monkeypatch.setattr("meshlab.proxykit.tunnel.PING_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with world_of(_hold) as world:
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            assert await reader.readexactly(5) == b"hello"
            answered: list[PongReceived] = []
            heard = tunnel.on_wire

            def hear(event: WireEvent) -> None:
                answered.extend([event] if isinstance(event, PongReceived) else [])
                heard(event)

            monkeypatch.setattr(tunnel, "on_wire", hear)
            await until(lambda: len(answered) >= 3)
            assert not tunnel.lost
            (server,) = world.inbound._tunnels
            server.transport.pause_reading()
            assert server._timer
            server._timer.cancel()  # or it would miss the client's answers, and be the first to go
            assert await reader.read() == b""
            assert tunnel.error == "the peer did not answer a PING"
            writer.close()

    asyncio.run(scenario())


def test_a_client_that_answers_no_ping_is_dropped_and_the_app_behind_sees_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshlab.proxykit.tunnel.PING_EVERY_S", 0.01)
    monkeypatch.setattr("meshlab.proxykit.tunnel.PING_TIMEOUT_S", 0.1)

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
            (server,) = world.inbound._tunnels
            tunnel.transport.pause_reading()
            assert tunnel._timer
            tunnel._timer.cancel()
            await ended.wait()
            assert server.error == "the peer did not answer a PING"
            writer.close()
            tunnel.close()

    asyncio.run(scenario())


def test_a_mute_peer_is_asked_after_10_s_and_dropped_at_30() -> None:
    assert (PING_EVERY_S, PING_EVERY_S + PING_TIMEOUT_S) == (10, 30)


def test_a_call_that_is_given_up_while_it_waits_leaves_nothing_open() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
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


def _key(**changes: Any) -> Key:
    fields = {"identity": CLIENT, "source": LOOPBACK, "peers": frozenset({"a"}), "destination": Target(LOOPBACK, 15008)}
    return Key(**{**fields, **changes})


def test_a_descriptor_is_closed_by_the_connection_that_has_it_and_by_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A number that is closed under a transport may be another socket's by the time at which the loop lets go of it."""

    async def scenario() -> None:
        async with world_of(_never) as world:
            with socket.create_server(("127.0.0.1", 0)) as mute:
                sock = socket.create_connection(mute.getsockname())
                sock.setblocking(False)

                async def connected(*_: object) -> socket.socket:
                    return sock

                monkeypatch.setattr("meshlab.proxykit.sockets.connect_from", connected)
                monkeypatch.setattr("meshlab.ztunnel.outbound.CONNECT_TIMEOUT_S", 0.01)
                outbound = _Certified(world.inbound.shared, POD, -1)
                with pytest.raises(TimeoutError):
                    await outbound.connect_peer(_key())
                assert sock.fileno() != -1, "the transport still has it"
                await until(lambda: sock.fileno() == -1)

    asyncio.run(scenario())


class _Certified(Outbound):
    async def secure(self, key: Key) -> Tls:
        return Tls(credentials(CLIENT).client_context, server_side=False, check_peer=one_of(key.peers))


def test_a_pod_of_which_one_listener_cannot_be_bound_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    listeners: list[socket.socket] = []

    def listen(netns: int, port: int) -> socket.socket:
        if len(listeners) == 2:
            raise OSError(98, "Address already in use")
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        listeners[-1].setblocking(False)
        return listeners[-1]

    async def scenario() -> None:
        async with world_of(_never) as world:
            monkeypatch.setattr("meshlab.proxykit.sockets.listen_in", listen)
            proxy = PodProxy(POD, -1, world.inbound, Outbound(world.inbound.shared, POD, -1))
            with pytest.raises(OSError, match="already in use"):
                proxy.start()
            assert [listener.fileno() for listener in listeners] == [-1, -1]

    asyncio.run(scenario())


def test_a_server_that_fails_in_its_own_code_ends_the_connection_and_lets_no_peer_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(Loopback):
        async def secure(self, own: Workload, source: Target) -> Tls:
            raise ssl.SSLError("no such key")

    async def scenario() -> None:
        async with world_of(_never, made_of=Broken) as world:
            with pytest.raises(TunnelRefusedError):
                await world.tunnel()

    asyncio.run(scenario())
    assert "no such key" in capsys.readouterr().err


def test_what_is_accepted_after_the_pod_has_gone_is_closed_and_not_served() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            await world.inbound.close()
            with pytest.raises(TunnelRefusedError):
                await world.tunnel()
            reader, writer = await asyncio.open_connection("127.0.0.1", world.plain_port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert not world.inbound.dials.is_set()

    asyncio.run(scenario())


def test_a_pod_that_goes_between_the_accept_and_the_transport_of_a_connection_drops_it() -> None:
    async def scenario() -> None:
        async with world_of(_never) as world:
            accepted = world.inbound.accept_hbone()
            await world.inbound.close()
            with socket.create_server(("127.0.0.1", 0)) as listening:
                caller = socket.create_connection(listening.getsockname())
                connection, _ = listening.accept()
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: accepted, connection)
            await until(lambda: accepted.lost)
            caller.close()
            await asyncio.wait_for(world.inbound.finished(), 5)

    asyncio.run(scenario())


def test_a_tunnel_that_takes_no_more_before_it_is_joined_stops_the_app_from_being_read() -> None:
    async def scenario() -> None:
        async with world_of(_hold) as world:
            tunnel = await world.tunnel()
            upstream, app = Half(), Half()
            await tunnel.open(f"127.0.0.1:{world.app_port}", {}, upstream)
            mine, theirs = socket.socketpair()
            theirs.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: app, sock=theirs)
            tunnel.pause_writing()
            join(app, upstream)
            assert not app.transport.is_reading()
            tunnel.resume_writing()
            assert app.transport.is_reading()
            mine.close()
            tunnel.close()

    asyncio.run(scenario())
