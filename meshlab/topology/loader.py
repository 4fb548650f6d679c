"""Text -> ``Topology``: every document of a file, read in order, and every issue found on the way.

    text --nodes--> documents --check, beside the table of keys--> honoured parts --gathered--> drafts
    drafts --assembly, from the empty mesh--> mesh --expect, steps--> topology

Pure: it opens no file. What a user may write is in ``keys``; what it means in the readers of the kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshlab.errors import Issue
from meshlab.model import WAYPOINT_CLASS, Mesh, Node, Program, Topology
from meshlab.model.mesh import Profile
from meshlab.topology import placement, workloads
from meshlab.topology.assembly import assembled
from meshlab.topology.check import check, check_kind
from meshlab.topology.expect import Ends, expectations
from meshlab.topology.gathered import Gathered, expanded
from meshlab.topology.nodes import Map, Scalar, Sequence, read_documents
from meshlab.topology.nodes import Node as YamlNode
from meshlab.topology.notes import START, Notes, did_you_mean, listed
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


class _File:
    """One text while it is read."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._lab: Map | None = None
        self._given = Gathered(notes)
        self._images: dict[str, Program | None] = {}

    def add(self, kind: str, document: Map) -> None:
        """Read one checked document."""
        if kind == "Lab":
            self._add_lab(document)
        else:
            self._given.add(kind, document)

    def topology(self) -> Topology:
        """What was read, put together; issues that only show now are noted."""
        lab = self._lab or Map(START)
        spec = lab.map("spec")
        nodes = self._nodes(spec)
        self._images = {pattern: workloads.program(entry) for pattern, entry in _maps(spec.map("images"))}
        self._place_waypoints(spec.map("waypoints"))
        profile: Profile = "required" if spec.text("profile") == "required" else "advisory"
        ground = placement.Ground(nodes, self._images, spec.strings("urls"))
        mesh = assembled(Mesh(profile=profile), self._given, ground, self._notes)
        topology = Topology(
            name=lab.map("metadata").text("name", DEFAULT_NAME),
            nodes=nodes,
            mesh=mesh,
            expect=expectations(spec.maps("expect"), Ends.of(mesh), self._notes),
            images=self._images,
            urls=spec.strings("urls"),
            mounts=spec.texts("mounts"),
        )
        topology = replace(topology, steps=steps(spec.maps("steps"), topology, self._notes))
        return _with_given(topology, spec)

    def unrunnable(self) -> Iterator[Issue]:
        """Images without a program, each once."""
        return placement.unrunnable(self._given.drafts, self._images, self._notes)

    def _add_lab(self, document: Map) -> None:
        self._given.refuse_second("Lab", "", document.place)
        self._lab = document
        pods = document.map("spec").map("pods")
        self._given.add_pods(
            [workloads.short_form(key, spec, pods.key_places[key], self._notes) for key, spec in _maps(pods)]
        )

    def _place_waypoints(self, given: Map) -> None:
        """Each waypoint's pod is where ``spec.waypoints`` says."""
        drafts = {draft.key: place for place, draft in enumerate(self._given.drafts) if draft.gateway}
        for key, spec in _maps(given):
            if key in drafts:
                draft = self._given.drafts[drafts[key]]
                self._given.drafts[drafts[key]] = workloads.placed(draft, spec, self._notes)
            else:
                hint = f"({listed(drafts)}).{did_you_mean(key, drafts)}" if drafts else "(there is none)"
                self._notes.refuse(given.key_places[key], f"no Gateway '{key}' of the class {WAYPOINT_CLASS} {hint}")

    def _nodes(self, spec: Map) -> tuple[Node, ...]:
        nodes = [_node(item) for item in spec.items("nodes")]
        if len(nodes) > MAX_NODES:
            self._notes.refuse(spec.at("nodes"), f"{len(nodes)} nodes; a lab has at most {MAX_NODES}")
            return DEFAULT_NODES
        if isinstance(given := spec.entries.get("nodes"), Sequence) and given.whole and not nodes:
            self._notes.refuse(spec.at("nodes"), "a lab has at least one node")
        for item, node in zip(spec.items("nodes"), nodes, strict=True):
            self._given.refuse_second(f"node '{node.name}'", "", item.place)
        return tuple(nodes) or DEFAULT_NODES


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
    if waypoint := spec.map("dataplane").text("waypoint"):
        topology = replace(topology, waypoint=waypoint)
    if ztunnel:
        topology = replace(topology, ztunnel=ztunnel)
    return replace(topology, ready_timeout_s=float(timeout)) if isinstance(timeout, int | float) else topology
