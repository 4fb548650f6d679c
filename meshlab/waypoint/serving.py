"""What a CONNECT to a waypoint asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from meshlab.model import Connection, Mesh, Pod, Service, ServicePort, SpiffeId, Waypoint
from meshlab.protocols.hbone import Authority, Refusal


@dataclass(frozen=True, slots=True)
class Client:
    """Who opened an HBONE connection to a waypoint."""

    identity: SpiffeId | None
    """Of its certificate."""
    address: IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a CONNECT asks for: a port of a Service, or of a pod."""

    mesh: Mesh
    """The mesh that knows the address."""
    waypoint: Waypoint
    address: IPv4Address | IPv6Address
    """As it was dialled."""
    number: int
    """The port that was dialled."""
    service: Service | None = None
    port: ServicePort | None = None
    """Of ``service``."""
    pod: Pod | None = None

    @property
    def is_http(self) -> bool:
        """Whether requests are read: at ports of Services, and never at a pod's own address."""
        return self.port is not None and self.port.is_http

    def connection(self, client: Client) -> Connection:
        """What policies judge."""
        destination = self.service or self.pod
        assert destination is not None
        return Connection(
            source=client.identity,
            source_ip=client.address,
            destination=destination.key,
            destination_ip=self.address,
            port=self.number,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What a waypoint was sent."""

    key: str
    """The waypoint that asks, ``namespace/name``."""
    mesh: Mesh = field(default_factory=Mesh)
    also: Mesh | None = None
    """A mesh of the same pods whose attachments are served, too: while calls move, some still come as it says."""
    unhealthy: frozenset[str] = frozenset()
    """Keys of the pods that are no endpoints for now."""

    def asked(self, requested: str) -> Asked | Refusal:
        """What the authority of a CONNECT is here, in the one mesh or the other; or why it is nothing."""
        try:
            authority = Authority.parse(requested)
        except ValueError as error:
            return Refusal(400, str(error))
        found = self._asked(self.mesh, authority)
        return self._asked(self.also, authority) if isinstance(found, Refusal) and self.also is not None else found

    def _asked(self, mesh: Mesh, authority: Authority) -> Asked | Refusal:
        host, number = authority.host, authority.port
        if isinstance(host, str):
            return Refusal(404, f"this waypoint serves addresses, and {authority} is none")
        for service in mesh.services:
            waypoint = mesh.waypoint_of(service)
            if host in (service.ipv4, service.ipv6) and waypoint is not None and waypoint.key == self.key:
                port = next((port for port in service.ports if port.port == number), None)
                if port is None:
                    return Refusal(404, f"{service.key} has no port {number}")
                return Asked(mesh=mesh, waypoint=waypoint, address=host, number=number, service=service, port=port)
        for pod in mesh.pods:
            waypoint = mesh.waypoint_of(pod)
            if host in (pod.ipv4, pod.ipv6) and waypoint is not None and waypoint.key == self.key:
                return Asked(mesh=mesh, waypoint=waypoint, address=host, number=number, pod=pod)
        return Refusal(404, f"this waypoint does not serve {authority}")

    @property
    def own(self) -> Pod | None:
        """The waypoint's own pod; ``None`` before the first answer of the control plane."""
        return next((pod for pod in self.mesh.pods if pod.key == self.key), None)
