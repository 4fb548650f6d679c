"""Where a CONNECT to a waypoint leads: the endpoints of what it asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshlab.model import Mesh, Pod, PodPort
from meshlab.protocols.hbone import Authority, Refusal


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

    def endpoints(self, requested: str) -> list[PodPort] | Refusal:
        """As ``_endpoints``, in the one mesh or the other."""
        found = self._endpoints(self.mesh, requested)
        return self._endpoints(self.also, requested) if isinstance(found, Refusal) and self.also is not None else found

    def _endpoints(self, mesh: Mesh, requested: str) -> list[PodPort] | Refusal:
        """The pods that may serve the authority of a CONNECT, each with its port; or why there are none."""
        try:
            authority = Authority.parse(requested)
        except ValueError as error:
            return Refusal(400, str(error))
        for service in mesh.services:
            if authority.host in (service.ipv4, service.ipv6) and self._serves(mesh.waypoint_of(service)):
                port = next((port for port in service.ports if port.port == authority.port), None)
                if port is None:
                    return Refusal(404, f"{service.key} has no port {authority.port}")
                found = [
                    PodPort(pod.key, number)
                    for pod, number in mesh.backends(service, port)
                    if pod.key not in self.unhealthy
                ]
                return found or Refusal(503, f"no healthy endpoint: {service.key} port {authority.port}")
        for pod in mesh.pods:
            if authority.host in (pod.ipv4, pod.ipv6) and self._serves(mesh.waypoint_of(pod)):
                return [PodPort(pod.key, authority.port)]
        return Refusal(404, f"this waypoint does not serve {authority}")

    def _serves(self, waypoint: object) -> bool:
        return getattr(waypoint, "key", None) == self.key

    @property
    def own(self) -> Pod | None:
        """The waypoint's own pod; ``None`` before the first answer of the control plane."""
        return next((pod for pod in self.mesh.pods if pod.key == self.key), None)
