"""15008 and 15006: what others send to the apps of one pod.

    15008  TLS --> CONNECT --> authority, policy (its identity) --> the app, from the client's address -> 200 -> splice
    15006  plaintext --------> policy (no identity) --------------> the app, from the client's address --------> splice

Every open connection is judged again when xDS changes anything, and cut where policy no longer allows it.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from meshlab.errors import ProtocolError
from meshlab.model import Connection
from meshlab.protocols.hbone import Authority, Refusal, Target
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel import sockets
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.guard import POLICY_CHANGE, Guard
from meshlab.ztunnel.routing import endpoint_port
from meshlab.ztunnel.server import ServerTunnel
from meshlab.ztunnel.shared import ILLEGAL_PORTS, Shared
from meshlab.ztunnel.splice import Half, join
from meshlab.ztunnel.state import Workload
from meshlab.ztunnel.tasks import Tasks
from meshlab.ztunnel.tls import Tls, in_trust_domain


class Inbound:
    """The inbound side of one pod."""

    tls_class: ClassVar[type[Tls]] = Tls
    guard_class: ClassVar[type[Guard]] = Guard

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        self.shared = shared
        self.pod = pod
        self.netns = netns
        self.guard = self.guard_class(shared.state, pod)
        self.tasks = Tasks()
        self._tunnels: set[ServerTunnel] = set()

    def accept_hbone(self) -> ServerTunnel:
        """A protocol for the next connection to 15008."""
        tunnel = ServerTunnel(self)
        self._tunnels.add(tunnel)
        return tunnel

    def accept_plain(self) -> Half:
        """A protocol for the next connection to 15006."""
        return Half(lambda client: self.tasks.spawn(self._serve_plain(client)))

    def drain(self) -> None:
        """Take no new streams on the connections that are open."""
        for tunnel in self._tunnels:
            tunnel.drain()

    async def finished(self) -> None:
        await self.tasks.finished()

    async def close(self) -> None:
        for tunnel in list(self._tunnels):
            tunnel.close("the pod is gone")
        await self.tasks.cancel()

    def connection(self, own: Workload, source: IPv4Address | IPv6Address, target: Target) -> Connection:
        """One in plaintext; a tunnel adds its peer's identity."""
        return Connection(
            source=None,
            source_ip=source,
            destination=f"{own.namespace}/{own.name}",
            destination_ip=target.address,
            port=target.port,
        )

    # --- HBONE -----------------------------------------------------------------------------------------------------

    async def secure(self, own: Workload, source: Target) -> Tls:
        """TLS towards a peer of our own trust domain."""
        credentials = await self.shared.certificates.get(own.identity)
        check = in_trust_domain(own.identity.trust_domain)
        return self.tls_class(credentials.server_context, server_side=True, check_peer=check)

    def target(self, own: Workload, requested: str, address: IPv4Address | IPv6Address) -> Target | Refusal:
        """Where a CONNECT on a connection to ``address`` leads: to this pod, or nowhere."""
        try:
            authority = Authority.parse(requested)
        except ValueError as error:
            return Refusal(400, str(error))
        if isinstance(authority.host, str):
            port = self._service_port(own, authority.host, authority.port)
        elif authority.host == address:
            port = authority.port
        else:
            return Refusal(400, f"ip mismatch: {authority.host} is not {address}")
        if port is None:
            return Refusal(503, f"unknown service: {authority}")
        if port in ILLEGAL_PORTS:
            return Refusal(503, "recursive call: a port of ztunnel's own")
        return Target(address, port)

    def _service_port(self, own: Workload, hostname: str, port: int) -> int | None:
        service = self.shared.state.service_named(hostname, own)
        return endpoint_port(service, own, port) if service is not None else None

    def tunnel_closed(self, tunnel: ServerTunnel) -> None:
        self._tunnels.discard(tunnel)

    # --- the app ---------------------------------------------------------------------------------------------------

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        """Reach the app as ``source``, so that it sees its client's address.

        Raises:
            OSError: it is not there.
        """
        sock = await sockets.connect_from(self.netns, target, source)
        _, app = await asyncio.get_running_loop().create_connection(Half, sock=sock)
        return app

    # --- plaintext -------------------------------------------------------------------------------------------------

    async def _serve_plain(self, client: Half) -> None:
        sock = client.transport.get_extra_info("socket")
        app: Half | None = None
        record: Record | None = None
        error = ""
        try:
            source, target = sockets.target_of(sock.getpeername()), sockets.original_destination(sock)
            record = Record(direction="inbound", source=source, destination=target)
            own = await self._own_workload(record)
            connection = self._judge_plain(own, source, target)
            app = await self.connect_app(target, source.address)
            self.shared.log.opened(record)
            live = self.guard.admit(connection, client.close)
            await join(client, app)
            error = "" if self.guard.release(live) else POLICY_CHANGE
        except (OSError, TimeoutError, ProtocolError) as failure:
            error = str(failure) or type(failure).__name__
            self.refuse(client)
        finally:
            client.close()
            if app is not None:
                app.close()
            if record is not None:
                said = app.received_bytes if app is not None else 0
                self.shared.log.complete(record, sent=said, received=client.received_bytes, error=error)

    def refuse(self, client: Half) -> None:
        """Tell a client that it may not: see ``Outbound.refuse``."""
        client.close()

    async def _own_workload(self, record: Record) -> Workload:
        own = await self.shared.state.local_workload(self.pod)
        if own is None:
            raise ProtocolError("failed to fetch local workload")
        record.destination_workload = own
        record.source_workload = self.shared.state.workload_at(record.source.address)
        return own

    def _judge_plain(self, own: Workload, source: Target, target: Target) -> Connection:
        if target.port in ILLEGAL_PORTS:
            raise ProtocolError("self call: a connection to a port of ztunnel's own")
        connection = self.connection(own, source.address, target)
        decision = self.guard.decide(own, connection)
        if not decision.allowed:
            raise ProtocolError(f"connection closed due to policy rejection: {decision.rule}")
        return connection
