"""15001: what the apps of one pod send out.

    accept --> original destination --> own workload (waits 5 s for xDS) --> route --> tunnel or plain socket --> splice

An app's connection is accepted before any of this is known, so a refusal can only be told by closing it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.pool import TRIES, ClientTunnel, Key, Pool, UntouchedError, connect_client
from meshlab.proxykit.sockets import CONNECT_TIMEOUT_S
from meshlab.proxykit.splice import Half, join
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import Tls, one_of
from meshlab.ztunnel import headers
from meshlab.ztunnel.access_log import Record, str_of
from meshlab.ztunnel.flags import response_flag
from meshlab.ztunnel.routing import Route, route
from meshlab.ztunnel.shared import ILLEGAL_PORTS, Shared
from meshlab.ztunnel.state import Workload


class Outbound:
    """The outbound side of one pod."""

    tls_class: ClassVar[type[Tls]] = Tls
    pool_class: ClassVar[type[Pool]] = Pool
    half_class: ClassVar[type[Half]] = Half

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        self.shared = shared
        self.pod = pod
        self.netns = netns
        self.pool = self.pool_class(self.connect_peer)
        self._tasks = Tasks()
        self._closed = False

    def accept(self) -> Half:
        """A protocol for the next connection of an app."""
        return self.half_class(self._accepted)

    def _accepted(self, app: Half) -> None:
        """asyncio may accept one more behind our back when the listeners are closed: ``netns`` is then closed, too."""
        if self._closed:
            app.transport.abort()
        else:
            self._tasks.spawn(self._serve(app))

    async def finished(self) -> None:
        """When no connection is open."""
        await self._tasks.finished()

    async def close(self) -> None:
        self._closed = True
        await self._tasks.cancel()
        self.pool.close()

    async def _serve(self, app: Half) -> None:
        sock = app.transport.get_extra_info("socket")
        upstream: Half | None = None
        record: Record | None = None
        error = ""
        try:
            source = sockets.target_of(sock.getpeername())
            dialled = sockets.original_destination(sock)
            record = Record(direction="outbound", source=source, destination=dialled)
            own = await self._own_workload(record)
            way = self._way(own, dialled, record)
            upstream = await self.connect(way, own, record)
            self.shared.log.opened(record)
            error = await self.carry(app, upstream, way)
        except (OSError, TimeoutError, ProtocolError) as failure:
            error = str(failure) or type(failure).__name__
            if record is not None:
                record.flag = response_flag(failure, tunnelled=bool(record.hbone_target))
            self.refuse(app)
        finally:
            app.close()
            if upstream is not None:
                upstream.close()
            if record is not None:
                got = upstream.received_bytes if upstream is not None else 0
                self.shared.log.complete(record, sent=app.received_bytes, received=got, error=error)

    def refuse(self, app: Half) -> None:
        """Tell an app that there is no way: the kernel makes it a RST where the app has said something, else a FIN."""
        app.close()

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        """Pass bytes until both sides are gone; why, where it was not in order."""
        await join(app, upstream)
        return getattr(upstream.transport, "error", "")

    async def _own_workload(self, record: Record) -> Workload:
        own = await self.shared.state.local_workload(self.pod)
        if own is None:
            raise ProtocolError("failed to fetch local workload")
        record.source_workload = own
        return own

    def _way(self, own: Workload, dialled: Target, record: Record) -> Route:
        if dialled.port in ILLEGAL_PORTS and (dialled.address.is_loopback or dialled.address in own.addresses):
            raise ProtocolError("self call: a connection to a port of ztunnel's own")
        way = route(self.shared.state, own, dialled, self.choose)
        if way.service is not None:
            record.service, record.service_name = way.service.hostname, way.service.short_name
            record.service_namespace = way.service.namespace
        record.destination_workload = way.workload
        record.destination = way.tunnel or way.target
        return way

    def choose(self, endpoints: Sequence[Workload]) -> Workload:
        return self.shared.rng.choices(endpoints, [endpoint.capacity for endpoint in endpoints])[0]

    async def connect(self, way: Route, own: Workload, record: Record) -> Half:
        """Open what a route says.

        Raises:
            OSError: nobody is there.
            ProtocolError: the peer is not whom it must be, or refuses.
        """
        if way.tunnel is None:
            return await self.connect_plain(way.target)
        return await self.connect_tunnel(way, way.tunnel, own, record)

    async def connect_plain(self, target: Target) -> Half:
        sock = await sockets.connect_beside_apps(self.netns, target, self.shared.rng)
        _, upstream = await asyncio.get_running_loop().create_connection(self.half_class, sock=sock)
        return upstream

    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        record.source_identity = own.identity
        record.hbone_target = str_of(way.target)
        key = Key(own.identity, record.source.address, way.identities, peer)
        said = headers.connect_headers(own, str_of(record.source), record.service, self.shared.rng)
        for tries_left in reversed(range(TRIES)):
            upstream = self.half_class()
            tunnel = await self.pool.get(key)
            record.destination_identity = tunnel.tls.peer
            try:
                await tunnel.open(record.hbone_target, said, upstream)
                break
            except UntouchedError:  # the peer is being replaced, and the next connection is its successor's
                if not tries_left:
                    raise
        return upstream

    async def connect_peer(self, key: Key) -> ClientTunnel:
        """A new HBONE connection for the pool."""
        tls = await self.secure(key)
        sock = await sockets.connect_from(self.netns, key.destination)
        tunnel = await connect_client(sock, tls, CONNECT_TIMEOUT_S)
        tunnel.max_streams, tunnel.idle_s = self.shared.limits.max_streams, self.shared.limits.idle_s
        return tunnel

    async def secure(self, key: Key) -> Tls:
        """TLS towards a peer that must be one of ``key.peers``."""
        credentials = await self.shared.certificates.get(key.identity)
        return self.tls_class(credentials.client_context, server_side=False, check_peer=one_of(key.peers))
