"""Where a waypoint sends a connection whose bytes it does not read.

The first rule of the oldest route that has the port decides; without one the Service's own endpoints get everything.
What a share of the connections gets that leads to no endpoint is a refusal.

Source: https://gateway-api.sigs.k8s.io/reference/spec/#tcprouterule,
https://istio.io/latest/docs/reference/config/networking/virtual-service/#TCPRoute and, for waypoints,
https://github.com/istio/istio/pull/55198
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from meshlab.model import Backend, Mesh, PodPort, Service, ServicePort, TcpRule
from meshlab.oracle.http import endpoints, named, routes_of


@dataclass(frozen=True, slots=True)
class Share:
    """What becomes of a share of the connections to one port."""

    chance: Fraction
    pods: tuple[PodPort, ...]
    """That may get the connection; none: it is refused."""
    rule: str
    """By which rule, as a sentence."""


def shares(mesh: Mesh, service: Service, port: ServicePort, unhealthy: Sequence[str] = ()) -> tuple[Share, ...]:
    """What becomes of a connection to ``port`` of ``service``; the chances add up to one."""
    found = rule(mesh, service, port)
    if found is None:
        own = endpoints(mesh, Backend(service=service.key, port=port.port), port, unhealthy) or ()
        return (Share(Fraction(1), own, f"{service.key} has no route for port {port.port}"),)
    decides, name = found
    total = sum(backend.weight for backend in decides.backends)
    if not total:
        return (Share(Fraction(1), (), f"{name} has no backend"),)
    return tuple(
        Share(Fraction(backend.weight, total), pods, f"{name} sends to {named(backend, port)}{_lacking(pods)}")
        for backend in decides.backends
        if backend.weight
        for pods in [endpoints(mesh, backend, port, unhealthy) or ()]
    )


def rule(mesh: Mesh, service: Service, port: ServicePort) -> tuple[TcpRule, str] | None:
    """The rule that decides, and its name; ``None`` where none does."""
    for route in () if port.is_http else routes_of(mesh, service, port):
        for number, each in enumerate(route.tcp, 1):
            if not each.ports or port.port in each.ports:
                return each, f"{route.kind} {route.key}: tcp rule {number}"
    return None


def _lacking(pods: Sequence[PodPort]) -> str:
    return "" if pods else ", which has no endpoint"
