"""``lab.apply``, ``lab.delete`` and ``lab.replace`` on the model: one verb for every kind, as of ``kubectl``.

A change is made of the mesh before and of one text, and is another mesh, or an error that leaves everything as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from meshlab.model import Endpoints, Mesh, Route, Topology
from meshlab.topology.assembly import assembled
from meshlab.topology.check import check, check_kind
from meshlab.topology.gathered import Gathered, expanded
from meshlab.topology.nodes import Map, read_documents
from meshlab.topology.notes import Notes, did_you_mean, listed
from meshlab.topology.placement import Ground, unrunnable, without_pods


def load_manifests(text: str, source: str, topology: Topology) -> Mesh:
    """``topology.mesh`` with everything in ``text``: what is there already changes, what is not there is added.

    A pod that is there can change its labels and annotations. A Deployment whose template changed gets other pods, and
    loses those that its ``replicas`` leave out. A Service keeps its ClusterIP, unless it names another.

    Args:
        text: YAML of any kind but ``Lab``.
        source: what messages call the text.
        topology: its mesh is the one that is changed, its nodes and images stay as they are.

    Raises:
        TopologyError: with every issue found.
    """
    notes = Notes(source)
    mesh = applied(checked(_documents(text, notes), notes), notes, topology)
    notes.raise_if_refused()
    return mesh


def replaced(text: str, source: str, topology: Topology) -> Mesh:
    """``topology.mesh`` with each object of ``text`` in place of the one of its name, of which nothing stays.

    A pod is another pod then, at the same address if it stays on its node and names no other. Policies are replaced as
    a whole: if the text has any, or is empty, exactly these are in effect. Routes and
    RequestAuthentications are replaced one by one.

    Raises:
        TopologyError: with every issue found.
    """
    notes = Notes(source)
    mesh = applied(checked(_documents(text, notes), notes), notes, topology, remake=True)
    notes.raise_if_refused()
    return mesh


def without(text: str, source: str, topology: Topology) -> Mesh:
    """``topology.mesh`` without the objects that ``text`` names: only kind, namespace and name of each are read.

    A Deployment takes its pods with it, a Namespace everything that is in it.

    Raises:
        TopologyError: one of them is not there.
    """
    notes = Notes(source)
    mesh = removed(list(_documents(text, notes)), notes, topology)
    notes.raise_if_refused()
    return mesh


def check_labels(kind: str, labels: Mapping[str, str]) -> None:
    """Hold labels to what a manifest of this kind may have.

    Raises:
        TopologyError: a key or a value is none, or the lab cannot do what it asks for.
    """
    notes = Notes("<labels>")
    document: dict[str, Any] = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": dict(labels)}}
    if kind == "Pod":
        document["spec"] = {"containers": [{"name": "x", "image": "x"}]}
    for found, read in kinds_of(read_documents(json.dumps(document), notes), notes):
        check(found, read, notes)
    notes.raise_if_refused()


def _documents(text: str, notes: Notes) -> Iterator[tuple[str, Map]]:
    return kinds_of(list(expanded(read_documents(text, notes), notes)), notes)


def kinds_of(documents: list[Map], notes: Notes) -> Iterator[tuple[str, Map]]:
    """Each document that can change a lab, with its kind; every other is an issue."""
    for document in documents:
        kind = check_kind(document, notes)
        if kind == "Lab":
            notes.refuse(document.at("kind"), "a Lab cannot change while it runs: its nodes are those of its file")
        elif kind:
            yield kind, document


def checked(documents: Iterable[tuple[str, Map]], notes: Notes) -> list[tuple[str, Map]]:
    """The honoured part of each."""
    return [(kind, check(kind, document, notes)) for kind, document in documents]


def gathered(documents: Iterable[tuple[str, Map]], notes: Notes) -> Gathered:
    """Checked documents, read."""
    given = Gathered(notes)
    for kind, document in documents:
        given.add(kind, document)
    return given


def applied(documents: list[tuple[str, Map]], notes: Notes, topology: Topology, *, remake: bool = False) -> Mesh:
    """As ``load_manifests`` or, to ``remake``, as ``replaced``, of checked documents; issues are noted."""
    given = gathered(documents, notes)
    before = topology.mesh
    if remake and (not documents or given.authorization_policies or given.peer_authentications):
        before = replace(before, authorization_policies=(), peer_authentications=())
    notes.issues += unrunnable(given.drafts, topology.images, notes)
    return assembled(before, given, Ground(topology.nodes, topology.images, topology.urls), notes, remake=remake)


# --- delete ----------------------------------------------------------------------------------------------------------


def removed(documents: list[tuple[str, Map]], notes: Notes, topology: Topology) -> Mesh:
    """As ``without``, of documents; issues are noted.

    What is there is asked of the mesh before: a text that was applied can be deleted as it is, although its pods go
    with their Namespace.
    """
    before = mesh = topology.mesh
    for kind, document in documents:
        metadata = document.map("metadata")
        name, namespace = metadata.text("name"), metadata.text("namespace", "default")
        key = name if kind == "Namespace" else f"{namespace}/{name}"
        keys = _keys(before, kind)
        if keys is not None and key not in keys:
            choices = f"({listed(keys)})" if keys else "(there is none)"
            message = f"no {kind} '{key}' to take away {choices}.{did_you_mean(key, keys)}"
            notes.refuse(metadata.at("name"), message)
        if kind == "Pod" and any(pod.key == key and pod.gateway for pod in before.pods):
            notes.refuse(metadata.at("name"), f"pod '{key}' is its Gateway's, and would come again: delete the Gateway")
        mesh = _less(mesh, kind, key)
    return mesh


_HELD = {
    "Service": "services",
    "Endpoints": "endpoints_by_hand",
    "EndpointSlice": "endpoints_by_hand",
    "Gateway": "waypoints",
    "HTTPRoute": "routes",
    "TCPRoute": "routes",
    "VirtualService": "routes",
    "DestinationRule": "destination_rules",
    "AuthorizationPolicy": "authorization_policies",
    "PeerAuthentication": "peer_authentications",
    "RequestAuthentication": "request_authentications",
}
"""Kind -> the field of the mesh that holds it, and nothing else hangs on it."""


def _keys(mesh: Mesh, kind: str) -> list[str] | None:
    """What there is of ``kind``; ``None`` for one that is only ever mentioned."""
    if kind == "ServiceAccount":
        return None
    if kind == "Namespace":
        return [namespace.name for namespace in mesh.namespaces]
    if kind == "Pod":
        return [pod.key for pod in mesh.pods]
    if kind == "Deployment":
        return sorted({f"{pod.namespace}/{pod.workload}" for pod in mesh.pods if pod.workload})
    return [f"{thing.namespace}/{thing.name}" for thing in getattr(mesh, _HELD[kind]) if _is_of(thing, kind)]


def _is_of(thing: Any, kind: str) -> bool:
    """Whether ``thing`` is of ``kind``, of the two that one field may hold."""
    return not isinstance(thing, Endpoints | Route) or thing.kind == kind


def _less(mesh: Mesh, kind: str, key: str) -> Mesh:
    if kind == "Namespace":
        return _without_namespace(mesh, key)
    if kind == "Pod":
        return without_pods(mesh, {key})
    if kind == "Deployment":
        return without_pods(mesh, {pod.key for pod in mesh.pods if f"{pod.namespace}/{pod.workload}" == key})
    if kind == "ServiceAccount":
        return mesh
    if kind == "Gateway":  # its pod and its Service go with it
        mesh = _less(_less(mesh, "Pod", key), "Service", key)
    return _keeping(
        mesh, _HELD[kind], lambda thing: f"{thing.namespace}/{thing.name}" != key or not _is_of(thing, kind)
    )


def _without_namespace(mesh: Mesh, name: str) -> Mesh:
    mesh = without_pods(mesh, {pod.key for pod in mesh.pods if pod.namespace == name})
    for field in dict.fromkeys(_HELD.values()):
        mesh = _keeping(mesh, field, lambda thing: thing.namespace != name)
    return _keeping(mesh, "namespaces", lambda namespace: namespace.name != name)


def _keeping(mesh: Mesh, field: str, keep: Callable[[Any], bool]) -> Mesh:
    kept: dict[str, Any] = {field: tuple(filter(keep, getattr(mesh, field)))}
    return replace(mesh, **kept)
