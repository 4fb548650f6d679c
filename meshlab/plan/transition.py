"""From one value of the mesh to the next, as stages in Istio's order. Pure: ``lab`` carries them out.

    withdraw   endpoints that are about to go are published as unhealthy, so that nobody chooses them any more
    leave      their programs end, the node proxies let go of them (ZDS), their links and namespaces go
    make       new pods get their namespaces, links and addresses; the node's ends of their links stay down
    announce   the workloads of new pods are published; those that still have something to start are unhealthy
    release    running pods leave the mesh: their rules go, then the node proxy lets go of them
    enrol      new and running pods enter the mesh: rules, then the node proxy's acknowledgement (ZDS)
    open       the links of new pods are set up
    start      their init containers run, and then their programs, until they listen; of pods with one, after all others
    ready      those that started first are published as healthy, since an init container may wait for them
    attach     where calls move to a waypoint or away from one, waypoints take what they serve before and after
    publish    everything that the mesh says is published, and acknowledged by every node proxy
    detach     waypoints take what they serve from now on, and nothing else
    name       the names of Services and pods (``/etc/hosts``) follow

A stage without anything to do is left out. ``transition(Mesh(), mesh)`` is how a lab is built.

Source: https://github.com/istio/istio/blob/master/architecture/ambient/ztunnel-cni-lifecycle.md, and the order of
``cni/pkg/nodeagent/net.go``: rules before ZDS, both before the pod is published as a member of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from meshlab.model import Mesh, Pod, Service

StageName = Literal[
    "withdraw",
    "leave",
    "make",
    "announce",
    "release",
    "enrol",
    "open",
    "start",
    "ready",
    "attach",
    "publish",
    "detach",
    "name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the control plane serves."""

    mesh: Mesh
    hbone: frozenset[str] = frozenset()
    """Keys of the pods whose node proxy takes HBONE for them."""
    unhealthy: frozenset[str] = frozenset()
    """Keys of the pods that are no endpoints for now: they start, or are about to go."""
    also: Mesh | None = None
    """A mesh whose attachments waypoints serve, too: while calls move, some still come as it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: StageName
    pods: tuple[Pod, ...] = ()
    """Those that it is about."""
    served: Served | None = None
    """Of ``withdraw``, ``announce``, ``ready``, ``attach``, ``publish`` and ``detach``."""


def transition(before: Mesh, after: Mesh) -> tuple[Stage, ...]:
    """The stages that lead from ``before`` to ``after``."""
    old, new = _by_uid(before), _by_uid(after)
    gone = tuple(pod for uid, pod in old.items() if uid not in new)
    came = tuple(pod for uid, pod in new.items() if uid not in old)
    stay = [(old[uid], pod) for uid, pod in new.items() if uid in old]
    enrolled = _keys(pod for pod, _ in stay if before.is_enrolled(pod))
    released = tuple(pod for was, pod in stay if before.is_enrolled(was) and not after.is_enrolled(pod))
    entering = tuple(pod for was, pod in stay if _has_to_enter(before, was, after, pod))
    first, waiting = waves(came)
    coming = _keys(pod for pod in came if after.is_enrolled(pod))
    announced = Served(mesh=after, hbone=enrolled | coming, unhealthy=_keys((*first, *waiting)))
    published = Served(mesh=after, hbone=_keys(pod for pod in after.pods if after.is_enrolled(pod)))
    stages = (
        Stage(name="withdraw", pods=_endpoints(before, gone), served=_without(before, gone)),
        Stage(name="leave", pods=gone),
        Stage(name="make", pods=came),
        Stage(name="announce", pods=came, served=announced),
        Stage(name="release", pods=released),
        Stage(name="enrol", pods=(*(pod for pod in came if pod.key in coming), *entering)),
        Stage(name="open", pods=came),
        Stage(name="start", pods=first),
        Stage(name="ready", pods=first if waiting else (), served=replace(announced, unhealthy=_keys(waiting))),
        Stage(name="start", pods=waiting),
    )
    return (
        *(stage for stage in stages if stage.pods),
        *_publishing(before, after, published, same_pods=not came and not gone),
        Stage(name="name"),
    )


def _publishing(before: Mesh, after: Mesh, published: Served, *, same_pods: bool) -> tuple[Stage, ...]:
    """A call that is under way when it moves finds its waypoint ready for it, and so does one that was late."""
    if not same_pods or attachments(before) == attachments(after):
        return (Stage(name="publish", served=published),)
    return (
        Stage(name="attach", served=replace(in_effect(before), also=after)),
        Stage(name="publish", served=replace(published, also=before)),
        Stage(name="detach", served=published),
    )


def attachments(mesh: Mesh) -> dict[str, str]:
    """By key of a Service or a pod: the waypoint that calls to it pass."""
    objects: tuple[Pod | Service, ...] = (*mesh.services, *mesh.pods) if mesh.waypoints else ()
    found = ((each.key, mesh.waypoint_of(each)) for each in objects)
    return {key: waypoint.key for key, waypoint in found if waypoint is not None}


def waves(pods: Iterable[Pod]) -> tuple[tuple[Pod, ...], tuple[Pod, ...]]:
    """Of those with something to start: who starts at once, and who has init containers, which may wait for them."""
    some = [pod for pod in pods if pod.program is not None or pod.init or pod.gateway]
    return tuple(pod for pod in some if not pod.init), tuple(pod for pod in some if pod.init)


def in_effect(mesh: Mesh) -> Served:
    """What is served while nothing changes."""
    return Served(mesh=mesh, hbone=_keys(pod for pod in mesh.pods if mesh.is_enrolled(pod)))


def without_pods(mesh: Mesh, gone: Iterable[Pod]) -> Mesh:
    """``mesh`` after these pods have gone."""
    uids = {pod.uid for pod in gone}
    return replace(mesh, pods=tuple(pod for pod in mesh.pods if pod.uid not in uids))


def _by_uid(mesh: Mesh) -> dict[str, Pod]:
    return {pod.uid: pod for pod in mesh.pods}


def _keys(pods: Iterable[Pod]) -> frozenset[str]:
    return frozenset(pod.key for pod in pods)


def _has_to_enter(before: Mesh, was: Pod, after: Mesh, pod: Pod) -> bool:
    """Whether a running pod enters the mesh, or needs other rules in it."""
    if not after.is_enrolled(pod):
        return False
    return not before.is_enrolled(was) or was.bypasses_inbound != pod.bypasses_inbound


def _endpoints(mesh: Mesh, pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """Those of ``pods`` that stand behind a Service."""
    behind = {pod.uid for service in mesh.services for pod in mesh.endpoints(service)}
    return tuple(pod for pod in pods if pod.uid in behind)


def _without(mesh: Mesh, gone: tuple[Pod, ...]) -> Served:
    return replace(in_effect(mesh), unhealthy=_keys(gone))
