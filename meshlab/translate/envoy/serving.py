"""What a waypoint serves, and where it sends calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from meshlab.model import (
    FAMILIES,
    Address,
    Backend,
    Family,
    Mesh,
    Pod,
    PodPort,
    Route,
    Service,
    ServicePort,
    has_labels,
)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The endpoints of a Service's port that a subset has, at their addresses of one family: what a cluster is of."""

    service: Service
    port: ServicePort
    subset: str
    """Empty: all endpoints."""
    family: Family

    @property
    def name(self) -> str:
        return f"{self.service.key}|{self.port.port}|{self.subset}|v{self.family}"

    def endpoints(self, mesh: Mesh, unhealthy: Collection[str]) -> tuple[PodPort, ...]:
        """Those that may be chosen now."""
        labels = mesh.subset(self.service, self.subset) or {}
        return tuple(
            PodPort(pod.key, number)
            for pod, number in mesh.backends(self.service, self.port)
            if pod.key not in unhealthy and has_labels(pod.labels, labels)
        )


@dataclass(frozen=True, slots=True)
class Served:
    """An address and a port of it at which the waypoint takes calls."""

    address: Address
    family: Family
    to: Upstream | Pod
    """A pod: at every port."""

    @property
    def port(self) -> int | None:
        """``None``: every port."""
        return self.to.port.port if isinstance(self.to, Upstream) else None

    @property
    def name(self) -> str:
        """Of its filter chain, and of the routes of that."""
        return f"to|{self.address}|{self.port or '*'}"

    @property
    def cluster(self) -> str:
        """Where its calls go, unless a route sends them elsewhere."""
        return self.to.name if isinstance(self.to, Upstream) else self.name


def served(mesh: Mesh, key: str) -> Iterator[Served]:
    """All that the waypoint ``key`` serves."""
    for service in mesh.services:
        waypoint = mesh.waypoint_of(service)
        for port in service.ports if waypoint is not None and waypoint.key == key else ():
            for family in FAMILIES:
                if (address := service.address(family)) is not None:
                    yield Served(address, family, Upstream(service, port, "", family))
    for pod in mesh.pods:
        waypoint = mesh.waypoint_of(pod)
        if waypoint is not None and waypoint.key == key:
            for family in FAMILIES:
                yield Served(pod.address(family), family, pod)


def routes_in_effect(mesh: Mesh, own: Upstream) -> list[Route]:
    """Those for calls to ``own``, of the Service's namespace and of the waypoint's.

    Where several kinds of route are for it, the kind of the oldest counts; of others than HTTPRoutes the oldest alone.
    """
    at = {(own.service.key, own.port.port), (own.service.key, None)}
    waypoint = mesh.waypoint_of(own.service)
    near = {own.service.namespace, waypoint.namespace if waypoint else ""}
    some = [route for route in mesh.routes if at & set(route.services) and route.namespace in near]
    if some and some[0].kind == "HTTPRoute":
        return [route for route in some if route.kind == "HTTPRoute"]
    return some[:1]


def destinations(mesh: Mesh, own: Upstream) -> list[tuple[Upstream | None, int]]:
    """Where the bytes of calls to ``own`` go, with weights: by the first rule for its port, else to ``own``.

    ``None`` is an upstream that is not there; it has everything where no backend has a weight.
    """
    for route in routes_in_effect(mesh, own):
        for rule in route.tcp:
            if not rule.ports or own.port.port in rule.ports:
                some = [(upstream(mesh, each, own.port.port, own.family), each.weight) for each in rule.backends]
                return [one for one in some if one[1]] or [(None, 1)]
    return [(own, 1)]


def upstream(mesh: Mesh, backend: Backend, called: int, family: Family) -> Upstream | None:
    """The upstream that a backend names; ``None`` where the Service, its port or its subset is missing.

    Args:
        called: the port that is meant where the backend names none, and its Service has several.
    """
    for each in mesh.services:
        if each.key == backend.service and mesh.subset(each, backend.subset) is not None:
            port = backend.port or (each.ports[0].port if len(each.ports) == 1 else called)
            for one in each.ports:
                if one.port == port:
                    return Upstream(each, one, backend.subset, family)
    return None
