"""What should come of a call: the paths that it may take, and on each of them the policies' verdict.

A call of a pod in the mesh passes the waypoint of what it calls. A pod outside the mesh knows of none and goes round
it, and so does whoever calls the address of a pod whose waypoint serves Services only. The server's node proxy then
judges the waypoint's connection, with the waypoint's identity.
"""

from __future__ import annotations

from meshlab.model import (
    Carried,
    Connection,
    Expected,
    Family,
    Leg,
    Mesh,
    Path,
    Pod,
    Reaches,
    Refused,
    Service,
    Verdict,
    Way,
)
from meshlab.oracle.decide import decide


def connection(mesh: Mesh, source: Pod, destination: Pod, port: int, family: Family) -> Connection:
    """The connection that ``source`` makes to ``port`` of ``destination``, as the destination's node proxy sees it.

    HBONE, and with it an identity, needs a proxy at both ends; with one end out of the mesh the bytes are plaintext.
    """
    return _seen(mesh, source, destination, port, family, _carried(mesh, source, destination))


def _seen(mesh: Mesh, source: Pod, destination: Pod, port: int, family: Family, carried: Carried) -> Connection:
    return Connection(
        source=source.identity(mesh.trust_domain) if carried == "hbone" else None,
        source_ip=source.address(family),
        destination=destination.key,
        destination_ip=destination.address(family),
        port=port,
    )


def expected(mesh: Mesh, source: Pod, destination: Pod | Service, port: int, family: Family) -> Expected:
    """Return what should come of a call of ``source`` to ``port`` of a pod, or of a Service by its ClusterIP.

    The caller of a Service is in the mesh: nobody else carries a ClusterIP here. A call of a pod to its own address is
    never captured, and so it is always answered.
    """
    waypoint = _waypoint(mesh, source, destination)
    if isinstance(destination, Service):
        return _of_service(mesh, source, waypoint, destination, port, family)
    way = _way(mesh, source, waypoint, destination, port, port, family)
    return Expected((way,), way.rule)


def travelled(
    mesh: Mesh, source: Pod, to: Pod | Service, reached: Pod, dialled: int, port: int, family: Family
) -> tuple[Path, Connection]:
    """Return the path of a call to the port ``dialled`` of ``to`` that ends at ``port`` of ``reached``, and what the
    node proxy there sees of it, without judging it."""
    return _travelled(mesh, source, _waypoint(mesh, source, to), reached, dialled, port, family)


def _waypoint(mesh: Mesh, source: Pod, destination: Pod | Service) -> Pod | None:
    """The pod of the waypoint that the call passes."""
    waypoint = mesh.waypoint_of(destination) if mesh.is_enrolled(source) else None
    return next((pod for pod in mesh.pods if waypoint is not None and pod.key == waypoint.key), None)


def _of_service(mesh: Mesh, source: Pod, waypoint: Pod | None, service: Service, port: int, family: Family) -> Expected:
    """Over every endpoint that the caller may reach; one without the named target port is none."""
    service_port = next((candidate for candidate in service.ports if candidate.port == port), None)
    if service_port is None:
        return Expected((), f"{service.key} has no port {port}")
    ways = tuple(
        _way(mesh, source, waypoint, pod, port, number, family) for pod, number in mesh.backends(service, service_port)
    )
    return Expected(ways, _rule(ways) or f"{service.key} has no endpoint for port {port}")


def _way(
    mesh: Mesh, source: Pod, waypoint: Pod | None, destination: Pod, dialled: int, port: int, family: Family
) -> Way:
    path, seen = _travelled(mesh, source, waypoint, destination, dialled, port, family)
    decision = decide(mesh, seen)
    response = Reaches(destination.key) if decision.allowed else Refused()
    return Way(path, seen, response, decision.rule)


def _travelled(
    mesh: Mesh, source: Pod, waypoint: Pod | None, destination: Pod, dialled: int, port: int, family: Family
) -> tuple[Path, Connection]:
    """A waypoint speaks HBONE itself, in a pod that is not enrolled."""
    last = source if waypoint is None else waypoint
    carried = _carried(mesh, source if waypoint is None else destination, destination)
    legs = [] if waypoint is None else [Leg(source.key, waypoint.key, dialled, "hbone")]
    legs.append(Leg(last.key, destination.key, port, carried))
    return Path(tuple(legs)), _seen(mesh, last, destination, port, family, carried)


def _rule(ways: tuple[Way, ...]) -> str:
    """Each rule that decided for some endpoint, said once, with the pods at which it did."""
    rules: dict[Verdict, dict[str, list[str]]] = {Verdict.DENY: {}, Verdict.ALLOW: {}}
    for way in ways:
        rules[way.verdict].setdefault(way.rule, []).append(way.path.server.pod)
    said = [f"{rule} (at {', '.join(pods)})" for by_rule in rules.values() for rule, pods in by_rule.items()]
    disagree = "endpoints disagree: " if all(rules.values()) else ""
    return disagree + "; ".join(said)


def _carried(mesh: Mesh, source: Pod, destination: Pod) -> Carried:
    return "hbone" if mesh.is_enrolled(source) and mesh.is_enrolled(destination) else "plain"
