"""Pods and Deployments: from checked documents to drafts.

A pod is read in two steps. Its document gives a *draft*; only when the whole file is read are the nodes and the pod's
place known, and so its node and its addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

from meshlab.model import ContainerPort, Program, RestartPolicy
from meshlab.model.ambient import DNS_PORT, HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT
from meshlab.topology.nodes import Map, Scalar
from meshlab.topology.notes import START, Notes, Place, did_you_mean, listed

ZTUNNEL_PORTS = (OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT, DNS_PORT)
"""A ztunnel's own, in every pod of the mesh."""
MAX_PODS = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a container says of its program; what that is hangs on ``spec.images`` too."""

    place: Place = START
    image: str = ""
    image_place: Place = START
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    env_fields: Mapping[str, str] = field(default_factory=dict)
    """Variable -> path of the pod's field that is its value."""
    working_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A pod as its document has it."""

    name: str
    namespace: str
    place: Place
    node: str = ""
    node_place: Place = START
    ipv4: IPv4Address | None = None
    """As the document has it; ``None``: the one of its place."""
    ipv6: IPv6Address | None = None
    ips_place: Place = START
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    ports: tuple[ContainerPort, ...] = ()
    run: Program | None = None
    """The program of the Lab's short form, which no image replaces."""
    container: Container = Container()
    init: tuple[Container, ...] = ()
    restart_policy: RestartPolicy = "Always"
    add_capabilities: tuple[str, ...] = ()
    empty_dirs: tuple[str, ...] = ()
    workload: str = ""
    gateway: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def short_form(key: str, spec: Map, place: Place, notes: Notes) -> Draft:
    """An entry of the Lab's ``spec.pods``."""
    namespace, _, name = key.partition("/")
    run = spec.texts("run")
    if not run and not spec.text("image") and ("env" in spec or "workingDir" in spec):
        notes.refuse(spec.at("env"), f"pod '{key}' has an environment but no `run`: the built-in echo reads none")
    ipv4, ipv6 = _addresses([item for item in spec.items("ips") if isinstance(item, Scalar)], notes)
    return Draft(
        name=name,
        namespace=namespace,
        place=place,
        node=spec.text("node"),
        node_place=spec.at("node"),
        ipv4=ipv4,
        ipv6=ipv6,
        ips_place=spec.at("ips"),
        labels=spec.strings("labels"),
        annotations=spec.strings("annotations"),
        service_account=spec.text("serviceAccount", "default"),
        ports=_container_ports(spec, key, notes),
        run=program(spec),
        container=_short_container(spec),
        init=tuple(_short_container(entry) for entry in spec.maps("init")),
        restart_policy=_restart_policy(spec),
        add_capabilities=spec.texts("capabilities"),
        empty_dirs=spec.texts("emptyDirs"),
        workload=spec.text("workload"),
    )


def placed(draft: Draft, spec: Map, notes: Notes) -> Draft:
    """``draft`` where an entry of the Lab's ``spec.waypoints`` has it."""
    ipv4, ipv6 = _addresses([item for item in spec.items("ips") if isinstance(item, Scalar)], notes)
    where = {"node": spec.text("node"), "node_place": spec.at("node")} if spec.text("node") else {}
    return replace(draft, ipv4=ipv4, ipv6=ipv6, ips_place=spec.at("ips"), **where)  # type: ignore[arg-type]


def _short_container(spec: Map) -> Container:
    return Container(
        place=spec.place,
        image=spec.text("image"),
        image_place=spec.at("image"),
        command=spec.texts("run"),
        env=spec.strings("env"),
        working_dir=spec.text("workingDir"),
    )


def _restart_policy(spec: Map) -> RestartPolicy:
    return cast("RestartPolicy", spec.text("restartPolicy", "Always"))  # the table has checked it


def _addresses(given: list[Scalar], notes: Notes) -> tuple[IPv4Address | None, IPv6Address | None]:
    """The addresses of a pod, as the table has checked them: one of a family at most."""
    found: dict[int, IPv4Address | IPv6Address] = {}
    for scalar in given:
        address = ip_address(scalar.text)
        if found.setdefault(address.version, address) != address:
            message = f"{address} beside {found[address.version]}: a pod has one address of each family"
            notes.refuse(scalar.place, message)
    return cast("IPv4Address | None", found.get(4)), cast("IPv6Address | None", found.get(6))


def program(spec: Map) -> Program | None:
    """``run``, ``env`` and ``workingDir`` of a short form or an image; ``None``: the built-in echo."""
    run = spec.texts("run")
    return Program(argv=run, env=spec.strings("env"), working_dir=spec.text("workingDir")) if run else None


def verbatim(document: Map, notes: Notes) -> Draft:
    """A ``kind: Pod``."""
    metadata, spec, status = document.map("metadata"), document.map("spec"), document.map("status")
    draft = _draft(metadata, spec, metadata.text("name"), metadata.text("namespace", "default"), notes)
    given = [*(entry.entries.get("ip") for entry in status.maps("podIPs")), status.entries.get("podIP")]
    ipv4, ipv6 = _addresses([item for item in given if isinstance(item, Scalar)], notes)
    return replace(draft, ipv4=ipv4, ipv6=ipv6, ips_place=document.at("status"))


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
    containers, before = spec.maps("containers"), spec.maps("initContainers")
    if "containers" in spec and len(containers) != 1:
        notes.refuse(spec.at("containers"), f"{len(containers)} containers; a pod of the lab runs one program")
    main = containers[0] if containers else Map(spec.place)
    return Draft(
        name=name,
        namespace=namespace,
        place=metadata.at("name"),
        node=spec.text("nodeName"),
        node_place=spec.at("nodeName"),
        labels=metadata.strings("labels"),
        annotations=metadata.strings("annotations"),
        service_account=spec.text("serviceAccountName") or spec.text("serviceAccount") or "default",
        ports=_container_ports(main, f"{namespace}/{name}", notes),
        container=_container(main),
        init=tuple(map(_container, before)),
        restart_policy=_restart_policy(spec),
        add_capabilities=_capabilities((main, *before)),
        empty_dirs=_empty_dirs(spec, (main, *before), notes),
    )


def _container(container: Map) -> Container:
    plain, fields = _environment(container)
    return Container(
        place=container.place,
        image=container.text("image"),
        image_place=container.at("image"),
        command=container.texts("command"),
        args=container.texts("args"),
        env=plain,
        env_fields=fields,
        working_dir=container.text("workingDir"),
    )


def _capabilities(containers: tuple[Map, ...]) -> tuple[str, ...]:
    """Those of all containers, each once: they are the pod's."""
    added = [entry.map("securityContext").map("capabilities").texts("add") for entry in containers]
    return tuple(dict.fromkeys(name for names in added for name in names))


def _environment(container: Map) -> tuple[dict[str, str], dict[str, str]]:
    plain, fields = {}, {}
    for variable in container.maps("env"):
        path = variable.map("valueFrom").map("fieldRef").text("fieldPath")
        if path:
            fields[variable.text("name")] = path
        else:
            plain[variable.text("name")] = variable.text("value")
    return plain, fields


def _empty_dirs(spec: Map, containers: tuple[Map, ...], notes: Notes) -> tuple[str, ...]:
    """Where the ``emptyDir`` volumes are mounted; all containers of a pod see the same files."""
    volumes = {volume.text("name"): "emptyDir" in volume for volume in spec.maps("volumes")}
    mounted: dict[str, tuple[str, Map]] = {}
    for container in containers:
        for mount in container.maps("volumeMounts"):
            name, path = mount.text("name"), mount.text("mountPath")
            if name and name not in volumes:
                choices = f"({listed(volumes)}).{did_you_mean(name, volumes)}"
                notes.refuse(mount.at("name"), f"volume '{name}' is not among the pod's volumes {choices}")
            elif volumes.get(name):
                _mount(mounted, name, path, container, notes, mount.at("mountPath"))
    return tuple(mounted)


def _mount(
    mounted: dict[str, tuple[str, Map]], name: str, path: str, container: Map, notes: Notes, place: Place
) -> None:
    elsewhere = [known for known, (volume, by) in mounted.items() if volume == name and by is not container]
    if elsewhere and path not in elsewhere:
        notes.refuse(place, f"volume '{name}' is at {elsewhere[0]} in another container: it has one path in a pod")
    mounted.setdefault(path, (name, container))


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
