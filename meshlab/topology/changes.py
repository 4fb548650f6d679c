"""Policies that change while a lab runs: ``lab.apply`` and ``lab.delete``, on the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from meshlab.model import AuthorizationPolicy, Mesh, PeerAuthentication, Topology
from meshlab.topology.check import check, check_kind
from meshlab.topology.loader import expanded
from meshlab.topology.nodes import Map, read_documents
from meshlab.topology.notes import Notes, did_you_mean, listed
from meshlab.topology.policies import authorization_policy, peer_authentication

KINDS = ("AuthorizationPolicy", "PeerAuthentication")

P = TypeVar("P", AuthorizationPolicy, PeerAuthentication)


def load_manifests(text: str, source: str, topology: Topology) -> Mesh:
    """``topology.mesh`` with the policies of ``text``, each in place of the one of its kind, namespace and name.

    Raises:
        TopologyError: with every issue found; a kind that cannot change while a lab runs is one.
    """
    notes = Notes(source)
    mesh = topology.mesh
    for kind, document in _documents(text, notes):
        checked = check(kind, document, notes)
        if kind == "AuthorizationPolicy":
            merged = _merged(mesh.authorization_policies, authorization_policy(checked, notes))
            mesh = replace(mesh, authorization_policies=merged)
        else:
            mesh = replace(
                mesh, peer_authentications=_merged(mesh.peer_authentications, peer_authentication(checked, notes))
            )
    notes.raise_if_refused()
    return mesh


def without(text: str, source: str, topology: Topology) -> Mesh:
    """``topology.mesh`` without the policies that ``text`` names: only kind, namespace and name of each are read.

    Raises:
        TopologyError: one of them is not there.
    """
    notes = Notes(source)
    mesh = topology.mesh
    for kind, document in _documents(text, notes):
        if kind == "AuthorizationPolicy":
            mesh = replace(mesh, authorization_policies=_less(mesh.authorization_policies, document, notes))
        else:
            mesh = replace(mesh, peer_authentications=_less(mesh.peer_authentications, document, notes))
    notes.raise_if_refused()
    return mesh


def _documents(text: str, notes: Notes) -> Iterator[tuple[str, Map]]:
    for document in expanded(read_documents(text, notes), notes):
        kind = check_kind(document, notes)
        if kind in KINDS:
            yield kind, document
        elif kind:
            fixed = f"a {kind} is fixed when a lab is built; while it runs {' and '.join(KINDS)} can change"
            notes.refuse(document.at("kind"), fixed)


def _merged(policies: tuple[P, ...], new: P) -> tuple[P, ...]:
    """An update keeps its place, as an object in a cluster keeps its age."""
    if all(policy.key != new.key for policy in policies):
        return tuple(chain(policies, [new]))
    return tuple(new if policy.key == new.key else policy for policy in policies)


def _less(policies: tuple[P, ...], document: Map, notes: Notes) -> tuple[P, ...]:
    metadata = document.map("metadata")
    key = f"{metadata.text('namespace', 'default')}/{metadata.text('name')}"
    keys = [policy.key for policy in policies]
    if key not in keys:
        choices = f"({listed(keys)})" if keys else "(there is none)"
        message = f"no {document.text('kind')} '{key}' to take away {choices}.{did_you_mean(key, keys)}"
        notes.refuse(metadata.at("name"), message)
    return tuple(policy for policy in policies if policy.key != key)
