"""Changes of a mesh that need no manifest: ``Mesh -> Mesh``. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from meshlab.model import Mesh, Namespace, Pod
from meshlab.topology import check_labels

Labelled = TypeVar("Labelled", Pod, Namespace)


def with_policies_of(mesh: Mesh, policies: Mesh) -> Mesh:
    """``mesh`` with exactly the policies of the other one."""
    return replace(
        mesh,
        authorization_policies=policies.authorization_policies,
        peer_authentications=policies.peer_authentications,
    )


def label_pod(mesh: Mesh, key: str, labels: Mapping[str, str | None]) -> Mesh:
    """``mesh`` with these labels at the pod ``namespace/name``; ``None`` takes one away, as in ``kubectl label``.

    Raises:
        TopologyError: a key or a value is none, or the lab cannot do what it asks for.
    """
    return replace(mesh, pods=tuple(_labelled("Pod", pod, labels) if pod.key == key else pod for pod in mesh.pods))


def label_namespace(mesh: Mesh, name: str, labels: Mapping[str, str | None]) -> Mesh:
    """As ``label_pod``, at a namespace."""
    return replace(
        mesh,
        namespaces=tuple(_labelled("Namespace", one, labels) if one.name == name else one for one in mesh.namespaces),
    )


def _labelled(kind: str, one: Labelled, labels: Mapping[str, str | None]) -> Labelled:
    changed = {key: value for key, value in {**one.labels, **labels}.items() if value is not None}
    check_labels(kind, changed)
    return replace(one, labels=changed)


def back_to(mesh: Mesh, file: Mesh, anew: Collection[str] = ()) -> Mesh:
    """``file`` as what ``mesh`` can become.

    A pod that is as the file has it, but for its labels, stays; one that went, or is otherwise, comes as another pod.

    Args:
        anew: keys of pods that come as other pods in any case.
    """
    there = {pod.key: pod for pod in mesh.pods}
    pods = tuple(_back(pod, there.get(pod.key), mesh.former, pod.key in anew) for pod in file.pods)
    keys = {pod.key for pod in pods}
    gone = {pod.key: pod.incarnation + 1 for pod in mesh.pods if pod.key not in keys}
    former = {key: count for key, count in {**mesh.former, **gone}.items() if key not in keys}
    return replace(file, pods=pods, places=max(mesh.places, file.places), former=former)


def is_of(mesh: Mesh, file: Mesh) -> bool:
    """Whether ``mesh`` is ``file``, but for the incarnations of its pods and what it remembers of others."""
    pods = tuple(replace(pod, incarnation=0) for pod in mesh.pods)
    return replace(mesh, pods=pods, places=file.places, former=file.former) == replace(
        file, pods=tuple(replace(pod, incarnation=0) for pod in file.pods)
    )


def _back(pod: Pod, known: Pod | None, former: Mapping[str, int], anew: bool) -> Pod:
    if known is None:
        return replace(pod, incarnation=former.get(pod.key, pod.incarnation))
    alike = replace(known, labels=pod.labels, annotations=pod.annotations, incarnation=pod.incarnation) == pod
    return replace(pod, incarnation=known.incarnation + (anew or not alike))
