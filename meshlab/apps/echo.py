"""The built-in echo: every pod of a node that runs nothing else, in one process.

It answers HTTP/1.1 (``http_echo.py``) and raw TCP on the same port (``language.py``) and remembers what it received
(``received.py``), so that a proof can ask whether a byte of a denied call ever arrived. What its connections keep is
bounded, each and in sum. It binds nothing itself: its sockets come listening, by descriptor, already inside their pods.

    fds      control; it starts with no pod
    asked    the requests of ``echo_requests``
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from meshlab.apps import language
from meshlab.apps.echo_requests import (
    REQUESTS,
    EchoRequest,
    Leave,
    Left,
    Listen,
    Listening,
    PortAsked,
    ReadReceived,
    ReceivedRows,
)
from meshlab.apps.http_echo import KEPT_BYTES, HttpEcho, Memory
from meshlab.apps.received import CanaryScanner, Received
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all
from meshlab.kernel.messages import read
from meshlab.model import Address, Peer

_BACKLOG = 512
_ROUNDS = 4
"""Rounds of the loop after which all that a socket held when somebody asked has been read: accept, connect, read."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: close is a reset (man 7 socket)."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One port of one pod."""

    pod: str
    port: int
    server_first: bool = False


class EchoConnection(asyncio.Protocol):
    """One connection; what it does with bytes is the bound method ``_take``, chosen by the first of them."""

    def __init__(self, listener: Listener, record: Received, living: set[EchoConnection], memory: Memory) -> None:
        self._listener = listener
        self._living = living
        self._record = record
        self._memory = memory
        self._counted = 0
        self._requests: HttpEcho | None = None
        self._scanner = CanaryScanner(record, listener.pod)
        self._buffer = bytearray()
        self._take = self._sniff
        self._is_held = False
        """Whether this side stays open when the client has closed its own."""
        self._late: asyncio.TimerHandle | None = None
        """Sends the answer that waits; nothing is read meanwhile."""
        self._waiting_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, port = transport.get_extra_info("peername")[:2]
        self._client, self._client_port = _unmapped(host), port
        self._connection = self._record.opened(self._listener.pod, self._listener.port, str(self._client), port)
        self._living.add(self)
        if self._listener.server_first:
            self._greet()
            self._take = self._echo

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._living.discard(self)
        self._memory.held -= self._counted

    @property
    def pod(self) -> str:
        return self._listener.pod

    def abort(self, *, reset: bool = False) -> None:
        """Close at once, as the kernel does for a program that is killed; with a reset where that is wanted."""
        if reset:
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._record.took(self._connection, len(data))
        self._scanner.feed(data)
        self._take(data)
        self._account()

    def eof_received(self) -> bool:
        """The client closed its side. What is buffered goes out, then the transport closes ours, unless it is held."""
        if self._take == self._keep:
            self._greet()
        if self._take in (self._keep, self._sniff):
            self._transport.write(bytes(self._buffer))
            self._buffer.clear()
            self._account()
        return self._is_held

    def pause_writing(self) -> None:
        """The client does not read: then neither do we."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._account()
        if self._late is None:
            self._transport.resume_reading()

    def _sniff(self, data: bytes) -> None:
        self._buffer += data
        kind = language.sniff(bytes(self._buffer[: language.LINE_BYTES]))
        if kind is None:
            return
        first = bytes(self._buffer)
        self._buffer.clear()
        if kind in ("echo", "hold"):
            self._greet()
        self._is_held = kind == "hold"
        if kind == "http":
            client = Peer(
                pod=self._listener.pod,
                server_port=self._listener.port,
                address=self._client,
                port=self._client_port,
            )
            self._requests = HttpEcho(client, self._memory)
        self._take = {"http": self._http, "half-close": self._keep}.get(kind, self._echo)
        self._take(first)

    def _echo(self, data: bytes) -> None:
        self._transport.write(data)

    def _keep(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > KEPT_BYTES or self._memory.is_full:
            self._buffer.clear()
            self._transport.abort()

    def _greet(self) -> None:
        self._transport.write(self._greeting())

    def _greeting(self) -> bytes:
        return language.greeting(self._listener.pod, self._listener.port, self._client, self._client_port)

    def _http(self, data: bytes) -> None:
        """Answer each request that is whole, after the delay that it asks for."""
        assert self._requests is not None
        answers = self._requests.receive(data)
        if self._requests.delay_s:
            self._transport.pause_reading()
            self._waiting_bytes = len(answers)
            self._late = asyncio.get_running_loop().call_later(self._requests.delay_s, self._answer_late, answers)
        else:
            self._send(answers)

    def _answer_late(self, answers: bytes) -> None:
        self._late, self._waiting_bytes = None, 0
        self._transport.resume_reading()
        self._send(answers)
        self._account()

    def _send(self, answers: bytes) -> None:
        assert self._requests is not None
        if answers:
            self._transport.write(answers)
        if self._requests.closing:
            self._transport.close()

    def _account(self) -> None:
        """Tell the echo how much this connection holds: what it keeps, and what its client has not read yet."""
        kept = len(self._buffer) + self._waiting_bytes + (self._requests.held if self._requests else 0)
        holds = kept + self._transport.get_write_buffer_size()
        self._memory.held += holds - self._counted
        self._counted = holds


class Echo:
    """All echo pods of a node."""

    connection = EchoConnection

    def __init__(self, channel: Channel) -> None:
        self.record = Received()
        self._channel = channel
        self._done = asyncio.Event()
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        """By pod and port."""
        self._living: set[EchoConnection] = set()
        self._memory = Memory()

    async def run(self) -> None:
        """Serve until the control channel closes or ``stop``."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:

            def asked(request: dict[str, Any], fds: list[int]) -> None:
                tasks.create_task(self._answer(request, fds))

            detach = self._channel.attach(loop, asked, self.stop)
            try:
                await self._done.wait()
            finally:
                detach()
                for server in self._servers.values():
                    server.close()
                for connection in self._living:
                    connection.abort()
                await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next round
        self._channel.close()

    def stop(self) -> None:
        self._done.set()

    async def _answer(self, message: Mapping[str, Any], fds: list[int]) -> None:
        answer: Mapping[str, object]
        try:
            answer = await self._reply(read(REQUESTS, message), fds)
        except Exception as error:  # nobody would be told of it otherwise
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            close_all(fds)
        with contextlib.suppress(ChannelClosedError):  # the end of the channel ends the program by itself
            self._channel.send({"id": message.get("id"), **answer})

    async def _reply(self, request: EchoRequest, fds: list[int]) -> Listening | Left | ReceivedRows:
        match request:
            case Listen(pods):
                return await self._listen(pods, fds)
            case Leave(pods):
                return await self._leave(frozenset(pods), reset=request.reset)
            case ReadReceived(canaries, since_ns):
                await _rounds()
                return ReceivedRows(
                    received=self.record.among(canaries),
                    connections=[connection.row() for connection in self.record.since(since_ns)],
                    forgotten_until_ns=self.record.forgotten_until_ns,
                )

    async def _listen(self, pods: Sequence[PortAsked], fds: list[int]) -> Listening:
        """Serve on all of these sockets, or on none of them."""
        listeners = [(_listener(entry), fds[entry["listener"]]) for entry in pods]
        places = Counter([*self._servers, *((listener.pod, listener.port) for listener, _ in listeners)])
        if twice := [f"{pod} port {port}" for (pod, port), times in places.items() if times > 1]:
            raise ValueError(f"the echo would listen twice at {', '.join(twice)}")
        made: dict[tuple[str, int], asyncio.Server] = {}
        try:
            for listener, fd in listeners:
                made[listener.pod, listener.port] = await self._serve(listener, socket.socket(fileno=os.dup(fd)))
        except BaseException:
            for server in made.values():
                server.close()
            raise
        self._servers.update(made)
        return Listening(listening=len(made))

    async def _serve(self, listener: Listener, sock: socket.socket) -> asyncio.Server:
        try:
            sock.setblocking(False)
            return await asyncio.get_running_loop().create_server(
                lambda: self.connection(listener, self.record, self._living, self._memory), sock=sock, backlog=_BACKLOG
            )
        except BaseException:
            sock.close()
            raise

    async def _leave(self, pods: frozenset[str], *, reset: bool) -> Left:
        if unknown := pods - {pod for pod, _ in self._servers}:
            raise ValueError(f"the echo does not listen in {', '.join(sorted(unknown))}")
        for place in [place for place in self._servers if place[0] in pods]:
            self._servers.pop(place).close()
        await _rounds()  # those that were just accepted become connections
        leaving = [connection for connection in self._living if connection.pod in pods]
        for connection in leaving:
            connection.abort(reset=reset)
        await _rounds()
        return Left(closed=len(leaving))


async def _rounds() -> None:
    """Return when what has already arrived is counted, and what was closed is."""
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


def _listener(entry: PortAsked) -> Listener:
    return Listener(entry["pod"], entry["port"], entry.get("mode", "echo") == "server-first")


def main(_config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until the control channel closes or SIGTERM."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # with none left, asyncio accepts nobody for a second
    asyncio.run(_serve_until_told(Channel.from_fd(fds["control"])))


async def _serve_until_told(channel: Channel) -> None:
    echo = Echo(channel)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, echo.stop)
    await echo.run()


def _unmapped(host: str) -> Address:
    """The IPv4 address that a dual-stack socket shows as ``::ffff:10.0.0.1``."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
