"""Two ends of a tunnel on loopback, with real TLS and real sockets, for tests of what passes between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from ztunnel_world import credentials, state_of, who, workload

from meshlab.model import SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.pool import ClientTunnel, connect_client
from meshlab.proxykit.splice import Half, join
from meshlab.proxykit.tls import Tls, in_trust_domain, one_of
from meshlab.ztunnel.access_log import AccessLog
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.state import Workload

LOOPBACK = ip_address("127.0.0.1")
CLIENT, SERVER = who("client"), who("server")
POD = ZdsPod(uid="u", name="server", namespace="shop", service_account="server")


class Loopback(Inbound):
    """An inbound side without a pod: its app is on loopback, and nobody's address is taken."""

    reached = 0

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self.dials = asyncio.Event()
        """Set when an app is about to be dialled."""
        self.may_dial = asyncio.Event()
        self.may_dial.set()

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        self.dials.set()
        await self.may_dial.wait()
        self.reached += 1
        _, app = await asyncio.get_running_loop().create_connection(Half, str(target.address), target.port)
        return app

    async def secure(self, own: Workload, source: Target) -> Tls:
        check = in_trust_domain(own.identity.trust_domain)
        return Tls(credentials(own.identity).server_context, server_side=True, check_peer=check)


@dataclass
class World:
    """A client's end, a server's end, and what was logged at the server's."""

    inbound: Loopback
    port: int
    plain_port: int
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
        except BaseException:
            app.close()
            mine.close()
            raise
        self.tasks.add(join(app, upstream))
        return await asyncio.open_connection(sock=mine)


@contextlib.asynccontextmanager
async def world_of(
    serve: Callable[[Any, Any], Awaitable[None]], *policies: Any, made_of: type[Loopback] = Loopback
) -> AsyncIterator[World]:
    lines: list[dict[str, Any]] = []
    state = state_of(workload("client", "127.0.0.2"), workload("server", "127.0.0.1"), policies=policies)
    log = AccessLog(lambda line: lines.append(json.loads(line)), log_opened=True)
    inbound = made_of(Shared(state=state, certificates=None, log=log), POD, -1)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    app = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = await loop.create_server(inbound.accept_hbone, "127.0.0.1", 0)
    plain = await loop.create_server(inbound.accept_plain, "127.0.0.1", 0)
    port, plain_port, app_port = (listening.sockets[0].getsockname()[1] for listening in (server, plain, app))
    world = World(inbound, port, plain_port, app_port, lines)
    try:
        async with asyncio.timeout(20):
            yield world
    finally:
        for listening in (server, plain, app):
            listening.close()
        await inbound.close()
        for _ in range(5):  # transports say goodbye in turns of the loop
            await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; the world has the deadline."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)
