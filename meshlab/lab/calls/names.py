"""What a name in a call means: as in a cluster, and then the pods of the lab. Pure.

server            the Service of that name in the caller's namespace; where there is none, the pod of that name
server.shop       the Service ``server`` in namespace ``shop`` (also with .svc and .svc.cluster.local)
shop/server       the pod
10.128.158.55     an address, of a pod or a VIP where one has it; ``::ffff:10.128.158.55`` is the same

``http://shop/server:8080/x`` can be read in two ways: as a URL it is the host ``shop``, and in the lab's short form it
is port 8080 of the pod ``shop/server``. What is there decides; where both are, the call is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from meshlab.errors import UsageError
from meshlab.lab.calls import urls
from meshlab.lab.calls.urls import Url
from meshlab.model import Address, Call, Expected, Family, HttpRequest, Mesh, Pod, Service, ServicePort
from meshlab.model.route import NO_HTTP
from meshlab.oracle import expected, tcp
from meshlab.topology.notes import did_you_mean, listed


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes."""

    to: str
    """``namespace/pod:port`` or ``service.namespace:port``, as tables name it."""
    address: Address
    port: int
    family: Family


def read_url(mesh: Mesh, caller: Pod, text: str) -> Url:
    """Read the URL of a call, also in the short form with a pod's name.

    Raises:
        UsageError: it is no URL, or can mean two places.
    """
    as_url, short = urls.parse(text), urls.with_pod(text)
    if short is None:
        return as_url
    pod, spelt_out = short
    if _address(as_url.host) is None and _named(mesh, caller, as_url.host) is None:
        return urls.parse(spelt_out)
    if _pod(mesh, caller, pod) is None:
        return as_url
    raise UsageError(
        f"'{text}' can be read as the host '{as_url.host}' and as the pod '{pod}', and both are here: "
        f"write http://{as_url.host}:80{as_url.path} or {spelt_out}"
    )


def resolve(mesh: Mesh, caller: Pod, host: str, port: int, family: Family | None) -> Target:
    """Where ``host`` leads ``caller``; family 4 unless another is asked for.

    Raises:
        UsageError: nothing has that name, or it has no address of the family.
    """
    address = _address(host)
    if address is not None:
        return _literal(mesh, address, port, family)
    wanted: Family = family or 4
    found = _named(mesh, caller, host)
    if found is None:
        raise UsageError(f"{host!r} is no Service and no pod here.{_suggest(mesh, host)}")
    own = found.address(wanted)
    if own is None:
        raise UsageError(f"Service '{found.key}' has no ClusterIP of family {wanted}")
    return Target(f"{found.key}:{port}", own, port, wanted)


def behind(mesh: Mesh, to: str) -> list[tuple[Pod, int]]:
    """The pods, each with its port, that may answer at ``namespace/pod:port`` or ``service.namespace:port``.

    Raises:
        UsageError: ``to`` has no port.
    """
    name, _, number = to.rpartition(":")
    if not (number.isascii() and number.isdigit()):
        raise UsageError(f"{to!r} is not NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT")
    if "/" in name:
        return [(pod, int(number)) for pod in mesh.pods if pod.key == name]
    return [
        backend
        for service in mesh.services
        if service.key == name
        for entry in service.ports
        if entry.port == int(number)
        for backend in _backends(mesh, service, entry)
    ]


def _backends(mesh: Mesh, service: Service, port: ServicePort) -> Iterable[tuple[Pod, int]]:
    """Those that the connections of a port are routed to, where they are; else the Service's own."""
    if mesh.waypoint_of(service) is None or tcp.rule(mesh, service, port) is None:
        return mesh.backends(service, port)
    routed = (one for share in tcp.shares(mesh, service, port) for one in share.pods)
    return ((mesh.pod(one.pod), one.port) for one in dict.fromkeys(routed))


def backends_of(mesh: Mesh, service: str) -> set[str]:
    """The Services, ``name.namespace``, to which routes for ``service`` lead."""
    routes = [route for route in mesh.routes if any(key == service for key, _ in route.services)]
    return {backend.service for route in routes for rule in route.rules for backend in rule.backends}


def routed(mesh: Mesh, service: Service) -> list[Pod]:
    """The pods to which routes for ``service`` may lead a request, beside the Service's own."""
    names = backends_of(mesh, service.key) if mesh.waypoint_of(service) is not None else ()
    return [pod for other in mesh.services if other.key in names for pod in mesh.endpoints(other)]


def owner(mesh: Mesh, to: str) -> Pod | Service | None:
    """The pod or the Service that ``to`` names, with its port; ``None`` where it is not there."""
    name = to.rpartition(":")[0]
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    return next((one for one in owners if one.key == name), None)


def due_of(mesh: Mesh, call: Call) -> Expected:
    """What should come of a call that was made."""
    return due(mesh, call.source, call.to, call.family, call.request or NO_HTTP, call.started_ns / 1e9)


def due(
    mesh: Mesh, source: str, to: str, family: Family, request: HttpRequest | None = None, now_s: float = 0.0
) -> Expected:
    """What should come of a call of the pod ``source`` to what ``to`` names; of one end that is not there, nothing.

    Args:
        request: what it asks for; ``GET /`` if it is not given.
        now_s: when it is asked, in seconds since 1970, which counts for its token.
    """
    caller = next((pod for pod in mesh.pods if pod.key == source), None)
    target = owner(mesh, to)
    if caller is None or target is None:
        return Expected((), f"{to if caller else source} is not there")
    return expected(mesh, caller, target, int(to.rpartition(":")[2]), family, request, now_s)


def ports_of(mesh: Mesh, pod: Pod) -> list[int]:
    """The ports of ``pod`` that somebody may call: those that it declares, and those that Services lead to."""
    led_to = (
        mesh.target(service, port, pod)
        for service in mesh.services
        if pod in mesh.endpoints(service)
        for port in service.ports
    )
    return sorted({port.number for port in pod.ports} | {port for port in led_to if port is not None})


def _address(host: str) -> Address | None:
    """The address that ``host`` is, if it is one. An IPv4 address in IPv6's clothes is IPv4 on the wire."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _literal(mesh: Mesh, address: Address, port: int, family: Family | None) -> Target:
    own: Family = 4 if address.version == 4 else 6
    if family not in (None, own):
        raise UsageError(f"family={family}, but {address} is an address of IPv{own}")
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    for owner in owners:
        if owner.address(own) == address:
            return Target(f"{owner.key}:{port}", address, port, own)
    return Target(f"{address}:{port}", address, port, own)


def _named(mesh: Mesh, caller: Pod, host: str) -> Service | Pod | None:
    return _service(mesh, caller, host) or _pod(mesh, caller, host)


def _service(mesh: Mesh, caller: Pod, host: str) -> Service | None:
    name, _, rest = host.partition(".")
    namespace = rest.removesuffix(".cluster.local").removesuffix(".svc") if rest else caller.namespace
    return next((s for s in mesh.services if (s.name, s.namespace) == (name, namespace)), None)


def _pod(mesh: Mesh, caller: Pod, host: str) -> Pod | None:
    key = host if "/" in host else f"{caller.namespace}/{host}"
    return next((pod for pod in mesh.pods if pod.key == key), None)


def _suggest(mesh: Mesh, host: str) -> str:
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    names = {name for owner in owners for name in (owner.key, owner.name)}
    return did_you_mean(host, names) or f" There are {listed(names)}."
