"""What a name in a call means: as in a cluster, and then the pods of the lab. Pure.

server            the Service of that name in the caller's namespace; where there is none, the pod of that name
server.shop       the Service ``server`` in namespace ``shop`` (also with .svc and .svc.cluster.local)
shop/server       the pod
10.128.158.55     an address, of a pod or a VIP where one has it
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address

from meshlab.errors import UsageError
from meshlab.model import Address, Family, Mesh, Pod, Service, target_port


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes."""

    to: str
    """``namespace/pod:port`` or ``service.namespace:port``, as tables name it."""
    address: Address
    port: int
    family: Family


def resolve(mesh: Mesh, caller: Pod, host: str, port: int, family: Family | None) -> Target:
    """Where ``host`` leads ``caller``; family 4 unless another is asked for.

    Raises:
        UsageError: nothing has that name, or it has no address of the family.
    """
    with_address = _literal(mesh, host, port)
    if with_address is not None:
        return with_address
    wanted: Family = family or 4
    found: Service | Pod | None = _service(mesh, caller, host) or _pod(mesh, caller, host)
    if found is None:
        raise UsageError(f"'{host}' is no Service and no pod here.{_suggest(mesh, host)}")
    address = found.address(wanted)
    if address is None:
        raise UsageError(f"Service '{found.key}' has no ClusterIP of family {wanted}")
    return Target(f"{found.key}:{port}", address, port, wanted)


def behind(mesh: Mesh, to: str) -> list[tuple[Pod, int]]:
    """The pods, each with its port, that may answer at ``namespace/pod:port`` or ``service.namespace:port``."""
    name, _, number = to.rpartition(":")
    if "/" in name:
        return [(pod, int(number)) for pod in mesh.pods if pod.key == name]
    return [
        (pod, port)
        for service in mesh.services
        if service.key == name
        for entry in service.ports
        if entry.port == int(number)
        for pod in mesh.endpoints(service)
        if (port := target_port(entry, pod)) is not None
    ]


def ports_of(mesh: Mesh, pod: Pod) -> list[int]:
    """The ports of ``pod`` that somebody may call: those that it declares, and those that Services lead to."""
    led_to = (
        target_port(port, pod) for service in mesh.services if pod in mesh.endpoints(service) for port in service.ports
    )
    return sorted({port.number for port in pod.ports} | {port for port in led_to if port is not None})


def _literal(mesh: Mesh, host: str, port: int) -> Target | None:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    family: Family = 4 if address.version == 4 else 6
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    for owner in owners:
        if owner.address(family) == address:
            return Target(f"{owner.key}:{port}", address, port, family)
    return Target(f"{address}:{port}", address, port, family)


def _service(mesh: Mesh, caller: Pod, host: str) -> Service | None:
    name, _, rest = host.partition(".")
    namespace = rest.removesuffix(".cluster.local").removesuffix(".svc") if rest else caller.namespace
    return next((s for s in mesh.services if (s.name, s.namespace) == (name, namespace)), None)


def _pod(mesh: Mesh, caller: Pod, host: str) -> Pod | None:
    key = host if "/" in host else f"{caller.namespace}/{host}"
    return next((pod for pod in mesh.pods if pod.key == key), None)


def _suggest(mesh: Mesh, host: str) -> str:
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    names = sorted({name for owner in owners for name in (owner.key, owner.name)})
    close = get_close_matches(host, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" There are {', '.join(names)}."
