"""What stands when a lab is built: namespaces, sockets, plan, programs. ``build`` makes it, ``Lab`` uses it."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshlab.implementations import Choice
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import Netns, Sandbox
from meshlab.kernel.uninterrupted import uninterrupted
from meshlab.lab.running.mounts import Mounts
from meshlab.lab.running.programs import Peer, Programs
from meshlab.lab.settings import Settings
from meshlab.model import Family, Topology
from meshlab.pki import MeshCA
from meshlab.plan.changes import Batch, End
from meshlab.plan.network import NetworkPlan


@dataclass(slots=True, kw_only=True)
class Site:
    """Everything of one lab that the kernel or a program holds."""

    topology: Topology
    settings: Settings
    choices: Mapping[str, Choice]
    """Node -> what its node proxy is."""
    network: NetworkPlan
    sandbox: Sandbox
    programs: Programs
    mounts: Mounts
    ca: MeshCA
    tokens: Mapping[str, str]
    """Bearer token of each node proxy, by its name: ``ztunnel@node-1``."""
    netns: dict[str, Netns] = field(default_factory=dict)
    """By the plan's key."""
    routes: dict[str, RouteSocket] = field(default_factory=dict)
    agents: dict[str, Peer] = field(default_factory=dict)
    """By node, where there is one."""
    echoes: dict[str, Peer] = field(default_factory=dict)
    """By node."""
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Events of programs that have been replaced since."""
    pending: dict[str, str] = field(default_factory=dict)
    """Pods that belong in the mesh and are not -> why."""
    not_listening: set[tuple[str, int, Family]] = field(default_factory=set)
    """(pod, port, family) where nobody listened when the lab was ready, although the pod or a Service names it."""
    keylog: int = -1
    """A memfd to which node proxies add the secrets of their TLS sessions; -1: none was asked for."""

    def apply(self, batch: Batch) -> None:
        """Send one batch where it belongs."""
        self.routes[batch.netns].apply(batch.changes, {key: self.netns[key].fd for key in batch.peers()})

    def settle(self, netns: str, end: End) -> None:
        self.routes[netns].barrier(end)

    def open_socket(self, netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.open_sockets([(netns, family, kind, protocol)])[0]

    def open_sockets(self, wanted: list[tuple[str, int, int, int]]) -> list[socket.socket]:
        """Sockets ``(netns, family, type, protocol)``, driven from here; one round trip for 253 of them."""
        return self.sandbox.sockets([(self.netns[key], *rest) for key, *rest in wanted])  # type: ignore[misc]

    def close(self) -> None:
        """End netd, and with it everything; nothing of the lab is left when this returns, or is interrupted."""
        uninterrupted(self._close)

    def _close(self) -> None:
        for route in self.routes.values():
            route.close()
        for program in self.programs.by_name.values():
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
