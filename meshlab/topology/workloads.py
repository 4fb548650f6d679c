"""Pods, Deployments and Services: from checked documents to the model.

A pod is read in two steps. Its document gives a *draft*; only when the whole file is read are the nodes and the pod's
place known, and so its node and its addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from meshlab.model import ContainerPort, Program, Service, ServicePort, addresses
from meshlab.topology.nodes import Map, Scalar
from meshlab.topology.notes import START, Notes, Place, did_you_mean, listed

ZTUNNEL_PORTS = (15001, 15006, 15008, 15053)
"""A ztunnel's own, in every pod of the mesh."""
MAX_PODS = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A pod as its document has it."""

    name: str
    namespace: str
    place: Place
    node: str = ""
    node_place: Place = START
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    ports: tuple[ContainerPort, ...] = ()
    run: Program | None = None
    """The program of the Lab's short form, which no image replaces."""
    image: str = ""
    image_place: Place = START
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    env_fields: Mapping[str, str] = field(default_factory=dict)
    """Variable -> path of the pod's field that is its value."""
    working_dir: str = ""
    add_capabilities: tuple[str, ...] = ()
    empty_dirs: tuple[str, ...] = ()
    workload: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def short_form(key: str, spec: Map, place: Place, notes: Notes) -> Draft:
    """An entry of the Lab's ``spec.pods``."""
    namespace, _, name = key.partition("/")
    run = spec.texts("run")
    if not run and not spec.text("image") and ("env" in spec or "workingDir" in spec):
        notes.refuse(spec.at("env"), f"pod '{key}' has an environment but no `run`: the built-in echo reads none")
    return Draft(
        name=name,
        namespace=namespace,
        place=place,
        node=spec.text("node"),
        node_place=spec.at("node"),
        labels=spec.strings("labels"),
        annotations=spec.strings("annotations"),
        service_account=spec.text("serviceAccount", "default"),
        ports=_container_ports(spec, key, notes),
        run=program(spec),
        image=spec.text("image"),
        image_place=spec.at("image"),
        env=spec.strings("env"),
        working_dir=spec.text("workingDir"),
        add_capabilities=spec.texts("capabilities"),
        empty_dirs=spec.texts("emptyDirs"),
        workload=spec.text("workload"),
    )


def program(spec: Map) -> Program | None:
    """``run``, ``env`` and ``workingDir`` of a short form or an image; ``None``: the built-in echo."""
    run = spec.texts("run")
    return Program(argv=run, env=spec.strings("env"), working_dir=spec.text("workingDir")) if run else None


def verbatim(document: Map, notes: Notes) -> Draft:
    """A ``kind: Pod``."""
    metadata = document.map("metadata")
    return _draft(metadata, document.map("spec"), metadata.text("name"), metadata.text("namespace", "default"), notes)


def replicas(document: Map, others: int, notes: Notes) -> list[Draft]:
    """The pods of a ``kind: Deployment``: NAME-0, NAME-1, ...

    Args:
        others: how many pods the file has already. A few bytes can ask for many pods, so the sum is bounded before any
            is made.
    """
    metadata, spec = document.map("metadata"), document.map("spec")
    given = spec.value("replicas")
    count = given if isinstance(given, int) else 1
    if others + count > MAX_PODS:
        beside = f" beside {others} other pods" if others else ""
        notes.refuse(spec.at("replicas"), f"{count} replicas{beside}; a lab has at most {MAX_PODS} pods")
        return []
    name, namespace = metadata.text("name"), metadata.text("namespace", "default")
    template = spec.map("template")
    draft = _draft(template.map("metadata"), template.map("spec"), name, namespace, notes)
    draft = replace(draft, place=metadata.at("name"), workload=name)
    return [replace(draft, name=f"{name}-{number}") for number in range(count)]


def _draft(metadata: Map, spec: Map, name: str, namespace: str, notes: Notes) -> Draft:
    containers = spec.maps("containers")
    if "containers" in spec and len(containers) != 1:
        notes.refuse(spec.at("containers"), f"{len(containers)} containers; a pod of the lab runs one program")
    container = containers[0] if containers else Map(spec.place)
    plain, fields = _environment(container)
    return Draft(
        name=name,
        namespace=namespace,
        place=metadata.at("name"),
        node=spec.text("nodeName"),
        node_place=spec.at("nodeName"),
        labels=metadata.strings("labels"),
        annotations=metadata.strings("annotations"),
        service_account=spec.text("serviceAccountName") or spec.text("serviceAccount") or "default",
        ports=_container_ports(container, f"{namespace}/{name}", notes),
        image=container.text("image"),
        image_place=container.at("image"),
        command=container.texts("command"),
        args=container.texts("args"),
        env=plain,
        env_fields=fields,
        working_dir=container.text("workingDir"),
        add_capabilities=container.map("securityContext").map("capabilities").texts("add"),
        empty_dirs=_empty_dirs(spec, container, notes),
    )


def _environment(container: Map) -> tuple[dict[str, str], dict[str, str]]:
    plain, fields = {}, {}
    for variable in container.maps("env"):
        path = variable.map("valueFrom").map("fieldRef").text("fieldPath")
        if path:
            fields[variable.text("name")] = path
        else:
            plain[variable.text("name")] = variable.text("value")
    return plain, fields


def _empty_dirs(spec: Map, container: Map, notes: Notes) -> tuple[str, ...]:
    volumes = {volume.text("name"): "emptyDir" in volume for volume in spec.maps("volumes")}
    mounted = []
    for mount in container.maps("volumeMounts"):
        name = mount.text("name")
        if name and name not in volumes:
            message = (
                f"volume '{name}' is not among the pod's volumes ({listed(volumes)}).{did_you_mean(name, volumes)}"
            )
            notes.refuse(mount.at("name"), message)
        elif volumes.get(name):
            mounted.append(mount.text("mountPath"))
    return tuple(mounted)


def _container_ports(owner: Map, key: str, notes: Notes) -> tuple[ContainerPort, ...]:
    ports: list[ContainerPort] = []
    known: set[int | str] = set()
    for entry in owner.items("ports"):
        scalar = (
            entry
            if isinstance(entry, Scalar)
            else entry.entries.get("containerPort")
            if isinstance(entry, Map)
            else None
        )
        if not isinstance(scalar, Scalar):
            continue
        written = entry if isinstance(entry, Map) else None
        port = ContainerPort(
            number=int(str(scalar.value)),
            name=written.text("name") if written else "",
            server_first=written is not None and written.text("mode") == "server-first",
        )
        fault = _port_fault(port, known)
        if fault:
            notes.refuse(scalar.place, f"pod '{key}': {fault}")
        else:
            ports.append(port)
            known |= {port.number, port.name}
    return tuple(ports)


def _port_fault(port: ContainerPort, others: Collection[int | str]) -> str:
    """Why ``port`` cannot be there beside the numbers and names of ``others``."""
    if port.number in ZTUNNEL_PORTS:
        return f"port {port.number} is the ztunnel's own in every pod of the mesh ({listed(map(str, ZTUNNEL_PORTS))})"
    if port.number in others:
        return f"port {port.number} is there twice"
    if port.name and port.name in others:
        return f"two ports are named '{port.name}'"
    return ""


def service(document: Map, place: int, notes: Notes) -> Service:
    """A ``kind: Service``, the ``place``-th of the file."""
    metadata, spec = document.map("metadata"), document.map("spec")
    ipv4, ipv6 = _virtual_addresses(spec, place, notes)
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
        port = ServicePort(
            port=number, target_port=target if isinstance(target, int | str) else number, name=entry.text("name")
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


def _virtual_addresses(spec: Map, place: int, notes: Notes) -> tuple[IPv4Address | None, IPv6Address | None]:
    given = list(_given_addresses(spec))
    if any(text == "None" for _, text in given):
        return None, None
    families = _families(spec)
    ipv4 = addresses.service4(place) if "IPv4" in families else None
    ipv6 = addresses.service6(place) if "IPv6" in families else None
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
