"""Where an outbound connection goes: the decision table of a ztunnel, first match wins. Pure.

    the address is a service's  it has a waypoint                      refused (not supported here)
                                its endpoints are not ours to choose   plain, to the address as dialled
                                no usable endpoint                     refused
                                an endpoint, by weight                 as for its workload, below
    the address is a workload's it has a waypoint, and was dialled     refused (not supported here)
                                it takes HBONE                         tunnel to its 15008
                                it does not                            plain, to its own address and port
    nobody's that we know                                              plain, to the address as dialled

What cannot be reached as the mesh says is refused, never passed by another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import Target
from meshlab.ztunnel.state import Service, State, Workload

HBONE_PORT = 15008
Choose = Callable[[Sequence[Workload]], Workload]
"""One endpoint of several, at random by their capacity."""


class NoRouteError(ProtocolError):
    """There is no way that the mesh allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to reach what was dialled."""

    target: Target
    """The app: in a tunnel, the authority of the CONNECT."""
    tunnel: Target | None = None
    """The peer's HBONE port; ``None``: ``target`` is reached in clear."""
    identities: frozenset[str] = frozenset()
    """SPIFFE URIs of which the peer must show one."""
    workload: Workload | None = None
    service: Service | None = None


def route(state: State, source: Workload, dialled: Target, choose: Choose) -> Route:
    """Decide for one connection of ``source``.

    Raises:
        NoRouteError: it is refused; the message is for the log.
    """
    service = state.service_at(dialled.address, source)
    if service is not None:
        return _to_service(state, service, dialled, choose)
    workload = state.workload_at(dialled.address)
    if workload is None:
        return Route(target=dialled)
    if workload.has_waypoint:
        raise NoRouteError(f"{workload.uid} has a waypoint, which this ztunnel does not support")
    return _to_workload(workload, dialled, None)


def _to_service(state: State, service: Service, dialled: Target, choose: Choose) -> Route:
    if service.has_waypoint:
        raise NoRouteError(f"{service.name} has a waypoint, which this ztunnel does not support")
    if service.passthrough:
        return Route(target=dialled, service=service)
    usable = [w for w in state.endpoints(service) if _target(service, w, dialled) is not None]
    if service.only_healthy:
        usable = [workload for workload in usable if workload.healthy]
    if not usable:
        raise NoRouteError(f"no healthy upstream: {service.name} port {dialled.port}")
    workload = choose(usable)
    target = _target(service, workload, dialled)
    assert target is not None
    return _to_workload(workload, target, service)


def _target(service: Service, workload: Workload, dialled: Target) -> Target | None:
    """Where ``workload`` serves the port that was dialled; ``None``: it does not, or not in this family."""
    port = endpoint_port(service, workload, dialled.port)
    address = next((a for a in workload.addresses if a.version == dialled.address.version), None)
    return Target(address, port) if port and address else None


def endpoint_port(service: Service, workload: Workload, port: int) -> int | None:
    """The endpoint's own number for a service's port; ``None``: it does not serve it."""
    own = workload.services.get(service.name, {})
    return (own[port] or service.ports.get(port)) if port in own else None


def _to_workload(workload: Workload, target: Target, service: Service | None) -> Route:
    if workload.network:
        raise NoRouteError(f"{workload.uid} is on network {workload.network!r}, which this ztunnel does not reach")
    if not workload.hbone:
        return Route(target=target, workload=workload, service=service)
    return Route(
        target=target,
        tunnel=Target(target.address, HBONE_PORT),
        identities=frozenset({str(workload.identity), *(service.subject_alt_names if service else ())}),
        workload=workload,
        service=service,
    )
