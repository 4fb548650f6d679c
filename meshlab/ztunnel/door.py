"""The door of one pod: what 15008 and 15006 both ask before anybody reaches its app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from meshlab.model import Connection
from meshlab.protocols.hbone import Authority, Refusal, Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import Tls, in_trust_domain
from meshlab.ztunnel import rbac
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.routing import endpoint_port
from meshlab.ztunnel.shared import ILLEGAL_PORTS, Shared
from meshlab.ztunnel.state import Workload


class Door:
    """Who may enter, where a CONNECT leads, and the way to the app."""

    tls_class: ClassVar[type[Tls]] = Tls
    guard_class: ClassVar[type[Guard]] = Guard

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        self.shared = shared
        self.pod = pod
        self.netns = netns
        self.guard = self.guard_class(shared.state, pod)
        self.tasks = Tasks()
        self.draining = False
        """What is open goes on, and nothing new is wanted."""
        self.closed = False
        """The pod is no longer ours, and ``netns`` may be another descriptor by now."""

    def connection(self, own: Workload, source: IPv4Address | IPv6Address, target: Target) -> Connection:
        """Describe a connection in plaintext; a tunnel adds its peer's identity."""
        return Connection(
            source=None,
            source_ip=source,
            destination=f"{own.namespace}/{own.name}",
            destination_ip=target.address,
            port=target.port,
        )

    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        """Let a connection in, or not, as ``Guard.admit`` does, and warn of policies that are skipped because they have
        not come."""
        for key in rbac.missing_policies(self.shared.state.policies, own):
            self.shared.log.warn(f"skipping unknown policy {key}, which {own.namespace}/{own.name} lists")
        return self.guard.admit(own, connection, cut)

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

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        """Reach the app as ``source``, so that it sees its client's address.

        Raises:
            OSError: it is not there.
        """
        sock = await sockets.connect_from(self.netns, target, source)
        _, app = await asyncio.get_running_loop().create_connection(Half, sock=sock)
        return app
