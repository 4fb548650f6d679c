"""What should come of a call: the paths that it may take, and on each of them the policies' verdict.

A call of a pod in the mesh passes the waypoint of what it calls. A pod outside the mesh knows of none and goes round
it, and so does whoever calls the address of a pod whose waypoint serves Services only. The waypoint judges the client,
and what it asks for; the server's node proxy then judges the waypoint's connection, with the waypoint's identity. Where
that denies a request the waypoint answers 503.
"""

from __future__ import annotations

from dataclasses import replace

from meshlab.model import (
    Carried,
    Connection,
    Copies,
    Expected,
    Family,
    HttpRequest,
    Leg,
    Mesh,
    Path,
    Pod,
    Reaches,
    Refused,
    Service,
    ServicePort,
    Share,
    Status,
    Verdict,
    Way,
)
from meshlab.oracle import http, tcp
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


def expected(
    mesh: Mesh,
    source: Pod,
    destination: Pod | Service,
    port: int,
    family: Family,
    request: HttpRequest | None = None,
    now_s: float = 0.0,
) -> Expected:
    """Return what should come of a call of ``source`` to ``port`` of a pod, or of a Service by its ClusterIP.

    Args:
        request: what it asks for, which counts where a waypoint reads it; ``GET /`` if it is not given.
        now_s: when it is sent, in seconds since 1970, which counts for the token that it may have.

    The caller of a Service is in the mesh: nobody else carries a ClusterIP here. A call of a pod to its own address is
    never captured, and so it is always answered.
    """
    waypoint = _waypoint(mesh, source, destination)
    if isinstance(destination, Service):
        return _of_service(mesh, source, waypoint, destination, port, family, request, now_s)
    way = _way(mesh, source, waypoint, destination, port, port, family)
    if waypoint is not None:
        seen = _at_waypoint(mesh, source, destination, port, family)
        if denial := _denial(mesh, waypoint, None, seen):
            way = _kept_from(way, denial)
    return Expected((way,), way.rule)


def travelled(
    mesh: Mesh, source: Pod, to: Pod | Service, reached: Pod, dialled: int, port: int, family: Family
) -> tuple[Path, Connection]:
    """Return the path of a call to the port ``dialled`` of ``to`` that ends at ``port`` of ``reached``, and what the
    node proxy there sees of it, without judging it."""
    return _travelled(mesh, source, _waypoint(mesh, source, to), reached, dialled, port, family)


def _waypoint(mesh: Mesh, source: Pod, destination: Pod | Service) -> Pod | None:
    """The pod of the waypoint that the call passes."""
    waypoint = mesh.waypoint_of(destination) if mesh.waypoints and mesh.is_enrolled(source) else None
    if waypoint is None:
        return None
    return next((pod for pod in mesh.pods if pod.key == waypoint.key), None)


def _of_service(
    mesh: Mesh,
    source: Pod,
    waypoint: Pod | None,
    service: Service,
    port: int,
    family: Family,
    request: HttpRequest | None,
    now_s: float,
) -> Expected:
    """Over every endpoint that the caller may reach; one without the named target port is none."""
    service_port = next((candidate for candidate in service.ports if candidate.port == port), None)
    if service_port is None:
        return Expected((), f"{service.key} has no port {port}")
    ways = tuple(
        _way(mesh, source, waypoint, pod, port, number, family) for pod, number in mesh.backends(service, service_port)
    )
    if waypoint is not None:
        seen = _at_waypoint(mesh, source, service, port, family)
        if service_port.is_http:
            asked = request or HttpRequest(authority=_authority(seen))
            return _of_request(mesh, source, waypoint, service, service_port, seen, asked, now_s, ways)
        if denial := _denial(mesh, waypoint, service, seen):
            ways = tuple(_kept_from(way, denial) for way in ways)
        elif tcp.rule(mesh, service, service_port) is not None:
            return _of_connection(mesh, source, waypoint, service, service_port, family, ways)
    return Expected(ways, _rule(ways) or f"{service.key} has no endpoint for port {port}")


def _of_request(
    mesh: Mesh,
    source: Pod,
    waypoint: Pod,
    service: Service,
    port: ServicePort,
    seen: Connection,
    request: HttpRequest,
    now_s: float,
    own: tuple[Way, ...],
) -> Expected:
    """What becomes of a request that a waypoint reads.

    Args:
        own: the ways to the Service's own endpoints.
    """
    known = next(one for one in mesh.waypoints if one.key == waypoint.key)
    family: Family = 4 if seen.source_ip.version == 4 else 6
    to_waypoint = Path((Leg(source.key, waypoint.key, port.port, "hbone"),))
    shares: list[Share] = []
    ways: tuple[Way, ...]
    said = http.shares(mesh, http.Came(known, service, port, seen, request, now_s))
    for one in said:
        match one.outcome:
            case http.Answered(status, location, body, _):
                ways = (Way(to_waypoint, None, Status(status), one.rule, tuple(way.path for way in own)),)
                share = Share(chance=one.chance, ways=ways, location=location, body=body)
            case http.Forwarded(pods, sent, timeout_s, copies=copied):
                found = [_way(mesh, source, waypoint, mesh.pod(to.pod), port.port, to.port, family) for to in pods]
                ways = tuple(_unavailable(way) if way.verdict is Verdict.DENY else way for way in found)
                if timeout_s is not None and request.takes_s > timeout_s:
                    ways = tuple(_late(way, timeout_s) if way.verdict is Verdict.ALLOW else way for way in ways)
                copies = tuple(
                    Copies(
                        copy.chance,
                        tuple(
                            _way(mesh, source, waypoint, mesh.pod(to.pod), port.port, to.port, family)
                            for to in copy.pods
                        ),
                    )
                    for copy in copied
                )
                share = Share(chance=one.chance, ways=ways, request=sent, copies=copies)
        shares.append(replace(share, delay_s=one.delay_s, response_headers=one.response_headers))
    rule = "; ".join(dict.fromkeys(_said(one.rule, share) for one, share in zip(said, shares, strict=True)))
    return Expected(tuple(way for share in shares for way in share.ways), rule, tuple(shares), is_read=True)


def _of_connection(
    mesh: Mesh,
    source: Pod,
    waypoint: Pod,
    service: Service,
    port: ServicePort,
    family: Family,
    own: tuple[Way, ...],
) -> Expected:
    """What becomes of a connection that a waypoint routes, and does not read.

    Args:
        own: the ways to the Service's own endpoints.
    """
    to_waypoint = Path((Leg(source.key, waypoint.key, port.port, "hbone"),))
    shares: list[Share] = []
    said = tcp.shares(mesh, service, port)
    for one in said:
        nobody = Way(to_waypoint, None, Refused(), one.rule, tuple(way.path for way in own))
        ways = tuple(_way(mesh, source, waypoint, mesh.pod(to.pod), port.port, to.port, family) for to in one.pods)
        shares.append(Share(chance=one.chance, ways=ways or (nobody,)))
    rule = "; ".join(dict.fromkeys(_said(one.rule, share) for one, share in zip(said, shares, strict=True)))
    return Expected(tuple(way for share in shares for way in share.ways), rule, tuple(shares))


def _said(rule: str, share: Share) -> str:
    chance = "" if share.chance == 1 else f" ({float(share.chance):.4g})"
    return f"{rule}{chance}: {_rule(share.ways)}" if share.ways[0].connection is not None else f"{rule}{chance}"


def _at_waypoint(mesh: Mesh, source: Pod, to: Pod | Service, port: int, family: Family) -> Connection:
    """The connection as a waypoint judges it: from the client, to what was dialled."""
    address = to.address(family)
    assert address is not None, "it was called by this address"
    return Connection(
        source=source.identity(mesh.trust_domain),
        source_ip=source.address(family),
        destination=to.key,
        destination_ip=address,
        port=port,
    )


def _authority(seen: Connection) -> str:
    address = seen.destination_ip
    return f"[{address}]:{seen.port}" if address.version == 6 else f"{address}:{seen.port}"


def _denial(mesh: Mesh, waypoint: Pod, service: Service | None, seen: Connection) -> str:
    """The rule by which a waypoint denies a connection of which it reads nothing; empty where it does not."""
    known = next(one for one in mesh.waypoints if one.key == waypoint.key)
    decision = http.authorize(mesh, known, service, seen, None)
    return "" if decision.allowed else decision.rule


def _kept_from(way: Way, rule: str) -> Way:
    """The way of a call that its waypoint refuses."""
    return Way(Path(way.path.legs[:1]), None, Refused(), rule, (way.path,))


def _late(way: Way, timeout_s: float) -> Way:
    """The way of a request that its server answers after the rule has ceased to wait."""
    rule = f"{way.rule}, and after {timeout_s:g} s the waypoint answers {http.TIMED_OUT}"
    return replace(way, response=Status(http.TIMED_OUT), rule=rule, too_late=True)


def _unavailable(way: Way) -> Way:
    """The way of a request that the server's node proxy refuses to the waypoint."""
    return replace(way, response=Status(http.UNAVAILABLE), rule=f"{way.rule}, and the waypoint answers 503")


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
