"""The built-in echo: every pod of a node that runs nothing else, in one process.

It answers HTTP/1.1 (``http_echo.py``) and raw TCP on the same port (``language.py``) and remembers what it received
(``received.py``), so that a proof can ask whether a byte of a denied call ever arrived. What its connections keep is
bounded, each and in sum. It binds nothing itself: its sockets come listening, by descriptor, already inside their pods.

    config   {"pods": [{"pod": "shop/server", "port": 8080, "listener": 0, "mode": "echo" | "server-first"}]}
    fds      control, listener-0, listener-1, ...
    asked    {"id", "op": "received", "canaries": [...], "since_ns"} ->
                 {"id", "received": [...], "connections": [[...], ...], "forgotten_until_ns"}
             ``received`` are those of the canaries that any listener received, and ``connections`` the rows
             (``received.Connection``) of those that were open, or got a byte, at ``since_ns`` or later.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from meshlab.apps import language
from meshlab.apps.http_echo import KEPT_BYTES, HttpEcho, Memory
from meshlab.apps.received import CanaryScanner, Received
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all
from meshlab.model import Address, Peer

_BACKLOG = 512
_ROUNDS = 4
"""Rounds of the loop after which all that a socket held when somebody asked has been read: accept, connect, read."""


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
        self._scanner = CanaryScanner(record)
        self._buffer = bytearray()
        self._take = self._sniff

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
        self._living.discard(self)
        self._memory.held -= self._counted

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._record.took(self._connection, len(data))
        self._scanner.feed(data)
        self._take(data)
        self._account()

    def eof_received(self) -> None:
        """The client closed its side. What is buffered goes out, then the transport closes ours."""
        if self._take == self._keep:
            self._greet()
        if self._take in (self._keep, self._sniff):
            self._transport.write(bytes(self._buffer))
            self._buffer.clear()
            self._account()

    def pause_writing(self) -> None:
        """The client does not read: then neither do we."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._account()
        self._transport.resume_reading()

    def _sniff(self, data: bytes) -> None:
        self._buffer += data
        kind = language.sniff(bytes(self._buffer[: language.LINE_BYTES]))
        if kind is None:
            return
        first = bytes(self._buffer)
        self._buffer.clear()
        if kind == "echo":
            self._greet()
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
        """Answer each request that is whole."""
        assert self._requests is not None
        if answers := self._requests.receive(data):
            self._transport.write(answers)
        if self._requests.closing:
            self._transport.close()

    def _account(self) -> None:
        """Tell the echo how much this connection holds: what it keeps, and what its client has not read yet."""
        kept = len(self._buffer) + (self._requests.held if self._requests else 0)
        holds = kept + self._transport.get_write_buffer_size()
        self._memory.held += holds - self._counted
        self._counted = holds


class Echo:
    """All echo pods of a node."""

    connection = EchoConnection

    def __init__(self, config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        self.record = Received()
        self._config = config
        self._fds = fds
        self._channel = Channel.from_fd(fds["control"])
        self._done = asyncio.Event()
        self._living: set[EchoConnection] = set()
        self._memory = Memory()

    async def run(self) -> None:
        """Serve until the control channel closes or ``stop``."""
        loop = asyncio.get_running_loop()
        detach = self._channel.attach(loop, self._on_message, self.stop)
        servers = [await self._serve(loop, entry) for entry in self._config["pods"]]
        try:
            await self._done.wait()
        finally:
            detach()
            for server in servers:
                server.close()
            for connection in self._living:
                connection.abort()
            await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next round
            self._channel.close()

    def stop(self) -> None:
        self._done.set()

    async def _serve(self, loop: asyncio.AbstractEventLoop, entry: Mapping[str, Any]) -> asyncio.Server:
        listener = Listener(entry["pod"], entry["port"], entry.get("mode", "echo") == "server-first")
        sock = socket.socket(fileno=self._fds[f"listener-{entry['listener']}"])
        sock.setblocking(False)
        return await loop.create_server(
            lambda: self.connection(listener, self.record, self._living, self._memory), sock=sock, backlog=_BACKLOG
        )

    def _on_message(self, request: dict[str, Any], fds: list[int]) -> None:
        close_all(fds)
        self._answer(request, _ROUNDS)

    def _answer(self, request: Mapping[str, Any], rounds: int) -> None:
        """Answer when what has already arrived is counted."""
        if rounds:
            asyncio.get_running_loop().call_soon(self._answer, request, rounds - 1)
            return
        with contextlib.suppress(ChannelClosedError):  # the end of the channel ends the program by itself
            self._channel.send({"id": request.get("id"), **self._reply_to(request)})

    def _reply_to(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._reply(request)
        except Exception as error:  # nobody would be told of it otherwise
            return {"error": f"{type(error).__name__}: {error}"}

    def _reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "received":
                return {
                    "received": self.record.among(request["canaries"]),
                    "connections": [connection.row() for connection in self.record.since(request["since_ns"])],
                    "forgotten_until_ns": self.record.forgotten_until_ns,
                }
            case unknown:
                return {"error": f"the echo has no operation {unknown!r}: received"}


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until the control channel closes or SIGTERM."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # with none left, asyncio accepts nobody for a second
    asyncio.run(_serve_until_told(config, fds))


async def _serve_until_told(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    echo = Echo(config, fds)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, echo.stop)
    await echo.run()


def _unmapped(host: str) -> Address:
    """The IPv4 address that a dual-stack socket shows as ``::ffff:10.0.0.1``."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
