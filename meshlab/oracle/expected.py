"""What should come of a call: the paths that it may take, and on each of them the policies' verdict."""

from __future__ import annotations

from meshlab.model import (
    Carried,
    Connection,
    Expected,
    Family,
    Mesh,
    Pod,
    Reaches,
    Refused,
    Service,
    Verdict,
    Way,
    direct,
)
from meshlab.oracle.decide import decide


def connection(mesh: Mesh, source: Pod, destination: Pod, port: int, family: Family) -> Connection:
    """The connection that ``source`` makes to ``port`` of ``destination``, as the destination's node proxy sees it.

    HBONE, and with it an identity, needs a proxy at both ends; with one end out of the mesh the bytes are plaintext.
    """
    return Connection(
        source=source.identity(mesh.trust_domain) if _is_hbone(mesh, source, destination) else None,
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
    if isinstance(destination, Service):
        return _of_service(mesh, source, destination, port, family)
    way = _way(mesh, source, destination, port, family)
    return Expected((way,), way.rule)


def _of_service(mesh: Mesh, source: Pod, service: Service, port: int, family: Family) -> Expected:
    """Over every endpoint that the caller may reach; one without the named target port is none."""
    service_port = next((candidate for candidate in service.ports if candidate.port == port), None)
    if service_port is None:
        return Expected((), f"{service.key} has no port {port}")
    ways = tuple(
        _way(mesh, source, pod, number, family)
        for pod in mesh.endpoints(service)
        if (number := mesh.target(service, service_port, pod)) is not None
    )
    return Expected(ways, _rule(ways) or f"{service.key} has no endpoint for port {port}")


def _way(mesh: Mesh, source: Pod, destination: Pod, port: int, family: Family) -> Way:
    carried: Carried = "hbone" if _is_hbone(mesh, source, destination) else "plain"
    decision = decide(mesh, connection(mesh, source, destination, port, family))
    response = Reaches(destination.key) if decision.allowed else Refused()
    return Way(direct(source.key, destination.key, port, carried), response, decision.rule)


def _rule(ways: tuple[Way, ...]) -> str:
    """Each rule that decided for some endpoint, said once, with the pods at which it did."""
    rules: dict[Verdict, dict[str, list[str]]] = {Verdict.DENY: {}, Verdict.ALLOW: {}}
    for way in ways:
        rules[way.verdict].setdefault(way.rule, []).append(way.path.server.pod)
    said = [f"{rule} (at {', '.join(pods)})" for by_rule in rules.values() for rule, pods in by_rule.items()]
    disagree = "endpoints disagree: " if all(rules.values()) else ""
    return disagree + "; ".join(said)


def _is_hbone(mesh: Mesh, source: Pod, destination: Pod) -> bool:
    return mesh.is_enrolled(source) and mesh.is_enrolled(destination)
