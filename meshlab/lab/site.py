"""What stands in a lab: namespaces, sockets, plan, programs, pods. ``cluster`` begins it, ``transition`` changes it."""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlab.errors import LabError
from meshlab.implementations import Choice, WaypointChoice
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import Netns, Sandbox
from meshlab.kernel.uninterrupted import uninterrupted
from meshlab.lab.running.mounts import Mounts
from meshlab.lab.running.programs import Peer, Programs
from meshlab.lab.settings import Settings
from meshlab.model import Family, InstanceId, Mesh, Role, Topology
from meshlab.pki import MeshCA
from meshlab.plan.changes import Batch, End
from meshlab.plan.netns import NetnsKey, pod_netns
from meshlab.plan.network import NetworkPlan
from meshlab.plan.pods import PodNetwork
from meshlab.translate.for_envoy import Credentials

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class NodeProxy:
    """A node proxy that was started."""

    instance: InstanceId
    choice: Choice
    place: int
    """Which of the node's places for proxies it is in."""
    token: str
    """Its bearer token, by which the control plane knows it."""


@dataclass(frozen=True, slots=True)
class Started:
    """A waypoint that was started."""

    instance: InstanceId
    token: str
    """Its bearer token, by which the control plane knows it."""
    own: Credentials
    """Its certificate, where it does not ask the CA for one itself."""


@dataclass(slots=True, kw_only=True)
class Site:
    """Everything of one lab that the kernel or a program holds."""

    topology: Topology
    """As its file has it. What is in effect now is ``mesh``."""
    settings: Settings
    choices: dict[str, Choice]
    """Node -> what its node proxy is."""
    first_choices: Mapping[str, Choice]
    """Node -> what its node proxy was when the lab was built."""
    network: NetworkPlan
    sandbox: Sandbox
    programs: Programs
    mounts: Mounts
    ca: MeshCA
    waypoint: WaypointChoice
    """What runs as waypoints."""
    mesh: Mesh = field(default_factory=Mesh)
    """What is in effect."""
    pods: dict[str, PodNetwork] = field(default_factory=dict)
    """By key: those that are there, in the kernel."""
    reached: set[str] = field(default_factory=set)
    """Keys of the pods whose links are open: nothing of a pod runs earlier, and nobody calls from it."""
    places: int = 0
    """How many places on links pods have had."""
    netns: dict[NetnsKey, Netns] = field(default_factory=dict)
    """By the plan's key."""
    routes: dict[NetnsKey, RouteSocket] = field(default_factory=dict)
    proxies: dict[str, list[NodeProxy]] = field(default_factory=dict)
    """Node -> its node proxies that have not been ended by a verb, oldest first."""
    waypoints: dict[str, Started] = field(default_factory=dict)
    """Pod -> the waypoint that runs in it and has not been ended by a verb."""
    launched: dict[InstanceId, Choice | WaypointChoice] = field(default_factory=dict)
    """What each node proxy and each waypoint is that was ever started."""
    _tokens: list[str] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Events of programs that have been replaced since."""
    pending: dict[str, str] = field(default_factory=dict)
    """Pods that belong in the mesh and are not -> why."""
    not_listening: set[tuple[str, int, Family]] = field(default_factory=set)
    """(pod, port, family) where nobody listened when the pod was ready, although the pod or a Service names it."""
    not_restarted: list[str] = field(default_factory=list)
    """Programs that ``restartPolicy`` has start again and that could not be, as sentences."""
    changes: int = 0
    """How often a verb has started or ended a program, or ``restartPolicy`` has started one again."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    keylog: int = -1
    """A memfd to which node proxies add the secrets of their TLS sessions; -1: none was asked for."""

    # --- programs ----------------------------------------------------------------------------------------------------

    def peer(self, role: Role, place: str = "") -> Peer | None:
        """The control channel of the instance's latest generation, where that has not been ended by a verb."""
        program = self.programs.newest(InstanceId(role, place))
        return None if program is None or program.ended_by_us else program.peer

    def peers(self, role: Role) -> dict[str, Peer]:
        """By node."""
        found = ((node.name, self.peer(role, node.name)) for node in self.topology.nodes)
        return {node: peer for node, peer in found if peer is not None}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every bearer token that was ever given out."""
        return tuple(self._tokens)

    def new_token(self) -> str:
        """A bearer token for one start of a node proxy."""
        self._tokens.append(secrets.token_urlsafe(16))
        return self._tokens[-1]

    def clients(self) -> dict[str, str]:
        """Token -> instance, of every node proxy and waypoint: whom the control plane answers."""
        proxies = {proxy.token: str(proxy.instance) for some in self.proxies.values() for proxy in some}
        return proxies | {waypoint.token: str(waypoint.instance) for waypoint in self.waypoints.values()}

    def note_change(self) -> None:
        """A program was started or ended on purpose: those who wait for that look again."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def wait_for_change(self, seen: int, timeout_s: float) -> bool:
        """Wait until there are more changes than ``seen``; whether there are."""
        with self._changed:
            return self._changed.wait_for(lambda: self.changes > seen, max(0.0, timeout_s))

    # --- the kernel --------------------------------------------------------------------------------------------------

    def make_netns(self, keys: Sequence[NetnsKey]) -> None:
        """Make these namespaces, each with a socket for changes of its links and routes."""
        self.netns.update(zip(keys, self.sandbox.netns(keys), strict=True))
        sockets = self.open_sockets([(key, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for key in keys])
        self.routes.update({key: RouteSocket(sock, key) for key, sock in zip(keys, sockets, strict=True)})

    def forget_netns(self, keys: Iterable[NetnsKey]) -> None:
        """Let go of these namespaces; Linux frees each with its last socket and process."""
        forgotten = []
        for key in keys:
            if (route := self.routes.pop(key, None)) is not None:
                route.close()
            if (netns := self.netns.pop(key, None)) is not None:
                forgotten.append(netns)
        self.sandbox.forget(netns=forgotten)

    def apply(self, batch: Batch) -> None:
        """Send one batch where it belongs."""
        self.routes[batch.netns].apply(batch.changes, {key: self.netns[key].fd for key in batch.peers()})

    def settle(self, netns: NetnsKey, end: End) -> None:
        self.routes[netns].barrier(end)

    def open_socket(self, netns: NetnsKey, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.open_sockets([(netns, family, kind, protocol)])[0]

    def open_sockets(self, wanted: list[tuple[NetnsKey, int, int, int]]) -> list[socket.socket]:
        """Sockets ``(netns, family, type, protocol)``, driven from here; one round trip for 253 of them."""
        return self.sandbox.sockets([(self.netns[key], family, kind, number) for key, family, kind, number in wanted])

    def open_in_pods(self, pods: Sequence[tuple[str, Family]]) -> list[socket.socket]:
        """TCP sockets in pods ``namespace/name``, which a program there could have made.

        Raises:
            LabError: a pod is not there, or is still being made.
        """
        if early := sorted({key for key, _ in pods} - self.reached):
            raise LabError(f"nothing runs in {', '.join(early)}: it is being made, or has gone")
        return self.open_sockets(
            [(pod_netns(key), _FAMILIES[family], socket.SOCK_STREAM, socket.IPPROTO_TCP) for key, family in pods]
        )

    def close(self) -> None:
        """End netd, and with it everything; nothing of the lab is left when this returns, or is interrupted."""
        uninterrupted(self._close)

    def _close(self) -> None:
        for route in self.routes.values():
            route.close()
        for program in tuple(self.programs.every.values()):
            if program.peer is not None:
                program.peer.close()
        self.programs.close()
        self.sandbox.close()
        if self.keylog >= 0:
            os.close(self.keylog)
            self.keylog = -1


def named(entry: str) -> object:
    """The object that ``package.module:name`` names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def enrolled_keys(mesh: Mesh) -> frozenset[str]:
    """Keys of the pods that belong in the mesh."""
    return frozenset(pod.key for pod in mesh.pods if mesh.is_enrolled(pod))


def nodes_of(pods: Iterable[Any]) -> Mapping[str, list[Any]]:
    """The pods by node."""
    by_node: dict[str, list[Any]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, []).append(pod)
    return by_node
