"""Where an outbound connection goes: the decision table of a ztunnel, first match wins. Pure.

    the address is a service's  it has a waypoint                      tunnel to it, for the address as dialled
                                its endpoints are not ours to choose   plain, to the address as dialled
                                no usable endpoint                     refused
                                an endpoint, by weight                 as for its workload, below
    the address is a workload's it has a waypoint, and we are not it   tunnel to it, for the address as dialled
                                it takes HBONE                         tunnel to its 15008
                                it does not                            plain, to its own address and port
    nobody's that we know                                              plain, to the address as dialled

What cannot be reached as the mesh says is refused, never passed by another way: also where a waypoint is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshlab.errors import ProtocolError
from meshlab.model.ambient import HBONE_PORT
from meshlab.protocols.hbone import Target
from meshlab.ztunnel.state import Gateway, Service, State, Workload

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
        return _to_service(state, source, service, dialled, choose)
    workload = state.workload_at(dialled.address)
    if workload is None:
        return Route(target=dialled)
    if workload.waypoint is not None:
        waypoint = _waypoint(state, source, workload.waypoint, dialled, choose)
        if waypoint.workload is not source:
            return waypoint
    return _to_workload(workload, dialled, None)


def _waypoint(state: State, source: Workload, gateway: Gateway, dialled: Target, choose: Choose) -> Route:
    """Through a waypoint, in the family of what was dialled; a gateway that is an address keeps that."""
    if gateway.address is None:
        service = state.services.get(gateway.service)
    else:
        service = state.service_at(gateway.address, source)
    if service is not None:
        usable = [w for w in state.endpoints(service) if endpoint_port(service, w, gateway.port) and w.healthy]
    else:
        found = state.workload_at(gateway.address) if gateway.address is not None else None
        usable = [found] if found is not None else []
    if not usable:
        raise NoRouteError(f"unknown waypoint: {gateway} is not there, or not ready")
    workload = choose(usable)
    port = (endpoint_port(service, workload, gateway.port) or gateway.port) if service is not None else gateway.port
    own = gateway.address if service is None else None
    address = own or next((a for a in workload.addresses if a.version == dialled.address.version), None)
    if address is None:
        raise NoRouteError(f"the waypoint {workload.uid} has no address of IPv{dialled.address.version}")
    return Route(
        target=dialled,
        tunnel=Target(address, port),
        identities=frozenset({str(workload.identity), *(service.subject_alt_names if service else ())}),
        workload=workload,
    )


def _to_service(state: State, source: Workload, service: Service, dialled: Target, choose: Choose) -> Route:
    if service.waypoint is not None:
        return replace(_waypoint(state, source, service.waypoint, dialled, choose), service=service)
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
