"""Services, and the Endpoints that somebody wrote by hand: from checked documents to the model."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from meshlab.model import Address, EndpointPort, Endpoints, Service, ServicePort
from meshlab.topology.nodes import Map, Scalar
from meshlab.topology.notes import Notes, Place

SERVICE_NAME = "kubernetes.io/service-name"
"""Label of an EndpointSlice: the Service that it is of."""
_PROTOCOLS = frozenset({"http", "http2", "grpc", "https", "tls", "tcp", "udp", "mongo", "mysql", "redis"})
_OF_KUBERNETES = {"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https"}


def service(document: Map, default: tuple[IPv4Address | None, IPv6Address | None], notes: Notes) -> Service:
    """A ``kind: Service``.

    Args:
        document: checked.
        default: the addresses that it has where it names none; no address at all for one that is headless.
        notes: takes what is wrong with it.
    """
    metadata, spec = document.map("metadata"), document.map("spec")
    ipv4, ipv6 = _virtual_addresses(spec, default, notes)
    return Service(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        ipv4=ipv4,
        ipv6=ipv6,
        selector=spec.strings("selector"),
        ports=_service_ports(spec, notes),
        labels=metadata.strings("labels"),
    )


def _service_ports(spec: Map, notes: Notes) -> tuple[ServicePort, ...]:
    entries = spec.maps("ports")
    ports: list[ServicePort] = []
    known: set[int | str] = set()
    for entry in entries:
        number = entry.value("port")
        if not isinstance(number, int):
            continue
        target = entry.value("targetPort")
        name = entry.text("name")
        port = ServicePort(
            port=number,
            target_port=target if isinstance(target, int | str) else number,
            name=name,
            protocol=declared_protocol(entry.text("appProtocol")) or named_protocol(name),
        )
        if number in known:
            notes.refuse(entry.at("port"), f"port {number} is there twice")
        elif len(entries) > 1 and not port.name:
            notes.refuse(entry.place, f"port {number} needs a name, since the Service has several")
        elif port.name and port.name in known:
            notes.refuse(entry.at("name"), f"two ports are named '{port.name}'")
        else:
            ports.append(port)
            known |= {number, port.name}
    return tuple(ports)


def declared_protocol(app_protocol: str) -> str:
    """Return the protocol that ``appProtocol`` declares, in Istio's words where it has one.

    Source: https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/
    """
    text = app_protocol.lower()
    return _OF_KUBERNETES.get(text) or named_protocol(text) or text


def named_protocol(port: str) -> str:
    """Return the protocol that the first part of a port's name declares; nothing if it is none of Istio's."""
    first = "grpc" if port.startswith("grpc-web") else port.partition("-")[0]
    return first if first in _PROTOCOLS else ""


def _virtual_addresses(
    spec: Map, default: tuple[IPv4Address | None, IPv6Address | None], notes: Notes
) -> tuple[IPv4Address | None, IPv6Address | None]:
    given = list(_given_addresses(spec))
    if any(text == "None" for _, text in given):
        return None, None
    families = _families(spec)
    ipv4 = default[0] if "IPv4" in families else None
    ipv6 = default[1] if "IPv6" in families else None
    for where, text in given:
        match ip_address(text):
            case IPv4Address() as address if "IPv4" in families:
                ipv4 = address
            case IPv6Address() as address if "IPv6" in families:
                ipv6 = address
            case _:
                notes.refuse(where, f"{text} is not of the Service's ipFamilies ({', '.join(families)})")
    return ipv4, ipv6


def _given_addresses(spec: Map) -> Iterator[tuple[Place, str]]:
    if "clusterIP" in spec:
        yield spec.at("clusterIP"), spec.text("clusterIP")
    for item in spec.items("clusterIPs"):
        if isinstance(item, Scalar):
            yield item.place, item.text


def _families(spec: Map) -> tuple[str, ...]:
    """Both, unless the Service asks for one.

    Source: https://kubernetes.io/docs/concepts/services-networking/dual-stack/#services
    """
    asked = spec.texts("ipFamilies")
    single = "SingleStack" if asked else "RequireDualStack"
    if len(asked) == 2 or spec.text("ipFamilyPolicy", single) != "SingleStack":
        return ("IPv4", "IPv6")
    return asked or ("IPv4",)


# --- by hand ---------------------------------------------------------------------------------------------------------


def endpoints(document: Map, notes: Notes) -> Endpoints:
    """A ``kind: Endpoints``, which is of the Service of its name."""
    metadata = document.map("metadata")
    subsets = document.maps("subsets")
    if len(subsets) > 1:
        notes.refuse(subsets[1].place, "Endpoints of the lab have one subset: write an EndpointSlice for each more")
    subset = subsets[0] if subsets else Map(document.place)
    found = [(entry.at("ip"), entry.text("ip")) for entry in subset.maps("addresses") if "ip" in entry]
    return Endpoints(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        service=metadata.text("name"),
        addresses=_each_once(found, notes),
        ports=_endpoint_ports(subset, notes),
    )


def endpoint_slice(document: Map, notes: Notes) -> Endpoints:
    """A ``kind: EndpointSlice``: the addresses of its endpoints that are ready."""
    metadata = document.map("metadata")
    name = metadata.map("labels").text(SERVICE_NAME)
    if not name:
        notes.refuse(metadata.at("name"), f"an EndpointSlice needs the label {SERVICE_NAME}: the name of its Service")
    ready = [entry for entry in document.maps("endpoints") if entry.map("conditions").value("ready") is not False]
    items = [item for entry in ready for item in entry.items("addresses")]
    found = [(item.place, item.text) for item in items if isinstance(item, Scalar)]
    family = document.text("addressType")
    for place, text in found:
        if family and family != f"IPv{ip_address(text).version}":
            notes.refuse(place, f"{text} is not of the slice's addressType ({family})")
    return Endpoints(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        service=name,
        addresses=_each_once(found, notes),
        ports=_endpoint_ports(document, notes),
        kind="EndpointSlice",
    )


def _each_once(found: list[tuple[Place, str]], notes: Notes) -> tuple[Address, ...]:
    known: dict[Address, None] = {}
    for place, text in found:
        address = ip_address(text)
        if address in known:
            notes.refuse(place, f"the address {address} is there twice")
        known[address] = None
    return tuple(known)


def _endpoint_ports(owner: Map, notes: Notes) -> tuple[EndpointPort, ...]:
    ports: dict[str, EndpointPort] = {}
    for entry in owner.maps("ports"):
        number, name = entry.value("port"), entry.text("name")
        if not isinstance(number, int):
            continue
        if name in ports:
            said = f"two ports are named '{name}'" if name else "two ports have no name"
            notes.refuse(entry.at("port"), f"{said}: each is found by the name of the Service's port")
        ports.setdefault(name, EndpointPort(number=number, name=name))
    return tuple(ports.values())
