"""Text -> ``Topology``: every document of a file, read in order, and every issue found on the way.

    text --nodes--> documents --check, beside the table of keys--> honoured parts --workloads, policies--> model
                                                                                `--expect, once all else is known

Pure: it opens no file. What a user may write is in ``keys``; what it means in the readers of the kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshlab.errors import Issue
from meshlab.model import (
    Address,
    AuthorizationPolicy,
    Mesh,
    Namespace,
    Node,
    PeerAuthentication,
    Program,
    Service,
    Topology,
)
from meshlab.topology import images, placement, policies, workloads
from meshlab.topology.check import check, check_kind
from meshlab.topology.expect import Ends, expectations
from meshlab.topology.nodes import Map, Scalar, Sequence, read_documents
from meshlab.topology.nodes import Node as YamlNode
from meshlab.topology.notes import START, Notes, Place
from meshlab.topology.steps import steps

DEFAULT_NAME = "lab"
DEFAULT_NODES = (Node(name="node-1"), Node(name="node-2"))
MAX_NODES = 255


@dataclass(frozen=True, slots=True)
class Reading:
    """A topology, and what its author may want to know of it."""

    topology: Topology
    unrunnable: tuple[Issue, ...]
    """Images without a program: a warning of ``validate``, an error of ``check``."""
    inert: tuple[Issue, ...]
    """Keys that were read over, since they have no part in traffic."""
    warnings: tuple[Issue, ...] = ()
    """What of the file has no effect, and what the lab adds to it."""


def load(text: str, source: str) -> Topology:
    """The topology that ``text`` describes.

    Args:
        text: YAML 1.2: at most one ``kind: Lab``, and manifests of the kinds in ``keys.KINDS``.
        source: what messages call the file.

    Raises:
        TopologyError: with every issue found, in the order of the file.
    """
    return read(text, source).topology


def read(text: str, source: str) -> Reading:
    """As ``load``, with the keys that were read over and the images that have no program."""
    notes = Notes(source)
    file = _File(notes)
    for document in expanded(read_documents(text, notes), notes):
        kind = check_kind(document, notes)
        if kind:
            file.add(kind, check(kind, document, notes))
    topology = file.topology()
    notes.raise_if_refused()
    return Reading(topology, tuple(file.unrunnable()), tuple(sorted(notes.inert)), tuple(sorted(notes.warnings)))


def expanded(documents: list[Map], notes: Notes) -> Iterator[Map]:
    """``kind: List``, as ``kubectl get -o yaml`` prints it, is its items."""
    for document in documents:
        if document.text("kind") != "List":
            yield document
            continue
        for item in document.items("items"):
            if isinstance(item, Map):
                yield item
            else:
                notes.refuse(item.place, "an item of a List is a mapping with apiVersion and kind")


class _File:
    """One text while it is read."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._lab: Map | None = None
        self._declared: dict[str, Namespace] = {}
        self._mentioned: dict[str, Namespace] = {}
        self._drafts: list[workloads.Draft] = []
        self._services: list[tuple[Service, Place]] = []
        self._service_names: dict[str, Place] = {}
        self._authorization_policies: list[AuthorizationPolicy] = []
        self._peer_authentications: list[PeerAuthentication] = []
        self._lines: dict[tuple[str, str], int] = {}
        self._images: dict[str, Program | None] = {}

    def add(self, kind: str, document: Map) -> None:
        """Read one checked document."""
        metadata = document.map("metadata")
        namespace = metadata.text("namespace", "default")
        key = metadata.text("name") if kind in ("Lab", "Namespace") else f"{namespace}/{metadata.text('name')}"
        if kind not in ("ServiceAccount", "Lab", "Pod"):
            self._refuse_second(kind, key, metadata.at("name"))
        if kind not in ("Lab", "Namespace"):
            self._mention(namespace)
        match kind:
            case "Lab":
                self._add_lab(document)
            case "Namespace":
                self._declared[key] = Namespace(name=key, labels=metadata.strings("labels"))
            case "Pod":
                self._add_pods([workloads.verbatim(document, self._notes)])
            case "Deployment":
                self._add_pods(workloads.replicas(document, len(self._drafts), self._notes))
            case "Service":
                service = workloads.service(document, len(self._services), self._notes)
                self._services.append((service, document.map("spec").at("clusterIP")))
                self._service_names[service.key] = metadata.at("name")
            case "AuthorizationPolicy":
                self._authorization_policies.append(policies.authorization_policy(document, self._notes))
            case "PeerAuthentication":
                self._peer_authentications.append(policies.peer_authentication(document, self._notes))
            case _:
                assert kind == "ServiceAccount"  # it was mentioned above, and that is all it does

    def topology(self) -> Topology:
        """What was read, put together; issues that only show now are noted."""
        lab = self._lab or Map(START)
        spec = lab.map("spec")
        nodes = self._nodes(spec)
        self._images = {pattern: workloads.program(entry) for pattern, entry in _maps(spec.map("images"))}
        mesh = Mesh(
            namespaces=(*self._declared.values(), *(self._mentioned[name] for name in self._only_mentioned())),
            services=tuple(service for service, _ in self._services),
            authorization_policies=tuple(self._authorization_policies),
            peer_authentications=tuple(self._peer_authentications),
        )
        pods = placement.place_pods(self._drafts, nodes, mesh, self._images, self._notes)
        mesh = self._with_target_ports(replace(mesh, pods=pods))
        self._refuse_shared_addresses(mesh)
        ends = Ends.of(mesh)
        topology = Topology(
            name=lab.map("metadata").text("name", DEFAULT_NAME),
            nodes=nodes,
            mesh=mesh,
            expect=expectations(spec.maps("expect"), ends, self._notes),
            images=self._images,
            steps=steps(spec.maps("steps"), ends, self._notes),
            mounts=spec.texts("mounts"),
        )
        return _with_given(topology, spec)

    def unrunnable(self) -> Iterator[Issue]:
        """Images without a program, each once."""
        seen = set()
        for draft in self._drafts:
            if not draft.image or draft.run or draft.image in seen or images.find(draft.image, self._images)[0]:
                continue
            seen.add(draft.image)
            message = (
                f"no program stands for the image '{draft.image}' of pod '{draft.key}'. Add to the Lab's spec.images: "
                f"{images.line_to_add(draft.image)}, or {{}} in place of {{run: ...}} for the built-in echo"
            )
            yield self._notes.at(draft.image_place, message)

    def _add_lab(self, document: Map) -> None:
        self._refuse_second("Lab", "", document.place)
        self._lab = document
        pods = document.map("spec").map("pods")
        drafts = [workloads.short_form(key, spec, pods.key_places[key], self._notes) for key, spec in _maps(pods)]
        for draft in drafts:
            self._mention(draft.namespace)
        self._add_pods(drafts)

    def _add_pods(self, drafts: list[workloads.Draft]) -> None:
        for draft in drafts:
            self._refuse_second("Pod", draft.key, draft.place)
        self._drafts += drafts

    def _mention(self, namespace: str) -> None:
        self._mentioned.setdefault(namespace, Namespace(name=namespace))

    def _only_mentioned(self) -> list[str]:
        return [name for name in self._mentioned if name not in self._declared]

    def _refuse_second(self, kind: str, key: str, place: Place) -> None:
        if (kind, key) in self._lines:
            named = f" '{key}'" if key else ""
            self._notes.refuse(place, f"the {kind}{named} is already on line {self._lines[kind, key]}")
        self._lines.setdefault((kind, key), place.line)

    def _nodes(self, spec: Map) -> tuple[Node, ...]:
        nodes = [_node(item) for item in spec.items("nodes")]
        if len(nodes) > MAX_NODES:
            self._notes.refuse(spec.at("nodes"), f"{len(nodes)} nodes; a lab has at most {MAX_NODES}")
            return DEFAULT_NODES
        if isinstance(given := spec.entries.get("nodes"), Sequence) and given.whole and not nodes:
            self._notes.refuse(spec.at("nodes"), "a lab has at least one node")
        for item, node in zip(spec.items("nodes"), nodes, strict=True):
            self._refuse_second(f"node '{node.name}'", "", item.place)
        return tuple(nodes) or DEFAULT_NODES

    def _with_target_ports(self, mesh: Mesh) -> Mesh:
        """``mesh`` with what Services add to its pods; that is noted, and who has nobody behind it."""
        mesh, added = placement.with_target_ports(mesh)
        for service, pod, number in added:
            self._notes.warn(
                self._service_names[service.key],
                f"Service '{service.key}' leads to port {number} of pod '{pod.key}', which does not declare it: the "
                f"built-in echo listens there too",
            )
        for service in mesh.services:
            if why := placement.nobody_behind(mesh, service):
                self._notes.warn(
                    self._service_names[service.key], f"nobody stands behind Service '{service.key}': {why}"
                )
        return mesh

    def _refuse_shared_addresses(self, mesh: Mesh) -> None:
        owners: dict[Address, str] = {
            address: f"pod '{pod.key}'" for pod in mesh.pods for address in (pod.ipv4, pod.ipv6)
        }
        for service, place in self._services:
            for address in (service.ipv4, service.ipv6):
                owner = owners.setdefault(address, f"Service '{service.key}'") if address else ""
                if owner not in ("", f"Service '{service.key}'"):
                    self._notes.refuse(place, f"{address} of Service '{service.key}' is also that of {owner}")


def _maps(node: Map) -> Iterator[tuple[str, Map]]:
    return ((key, entry) for key, entry in node.entries.items() if isinstance(entry, Map))


def _node(item: YamlNode) -> Node:
    if isinstance(item, Map):
        return Node(name=item.text("name"), ztunnel=item.text("ztunnel") or None)
    assert isinstance(item, Scalar)
    return Node(name=item.text)


def _with_given(topology: Topology, spec: Map) -> Topology:
    """What the model has a default for, where the file says otherwise."""
    ztunnel = spec.map("dataplane").text("ztunnel")
    timeout = spec.value("readyTimeoutSeconds")
    if ztunnel:
        topology = replace(topology, ztunnel=ztunnel)
    return replace(topology, ready_timeout_s=float(timeout)) if isinstance(timeout, int | float) else topology
