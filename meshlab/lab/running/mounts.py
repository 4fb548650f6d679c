"""The mount namespaces of a lab: one for each node, made at its start, and one for each pod, made when first needed."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from meshlab.kernel.sandbox import Furniture, Mntns, Netns, Sandbox
from meshlab.model import Mesh, Pod

_RESOLV = "nameserver 127.0.0.1\n"
"""A ztunnel reads one nameserver at its start or panics; nothing in a lab asks it yet."""
_PACKAGE = Path(__file__).resolve().parents[2]


def binds(paths: Iterable[str | Path | None]) -> tuple[str, ...]:
    """Host folders that a lab's programs may read although they lie under /tmp or /var/tmp."""
    always = [sys.prefix, sys.base_prefix, str(_PACKAGE), os.getcwd(), *filter(os.path.isdir, sys.path)]
    wanted = {os.path.realpath(path) for path in (*always, *paths) if path}
    scratch = {os.path.realpath(folder) for folder in ("/tmp", "/var/tmp", tempfile.gettempdir())}  # noqa: S108
    return tuple(sorted(wanted - scratch))


@dataclass(slots=True)
class Mounts:
    sandbox: Sandbox
    visible: tuple[str, ...]
    """From ``binds``."""
    mesh: Mesh = field(default_factory=Mesh)
    """Whose names a mount namespace has that is made now."""
    _nodes: dict[str, Mntns] = field(default_factory=dict)
    _pods: dict[str, Mntns] = field(default_factory=dict)
    _written: dict[int, str] = field(default_factory=dict)
    """Number of a mount namespace -> what its ``/etc/hosts`` says."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of_node(self, node: str) -> Mntns:
        """Shared by a node's agent and its node proxy, so that both see the ZDS socket."""
        with self._lock:
            if node not in self._nodes:
                hosts = _hosts(self.mesh, None, node)
                furniture = Furniture(
                    hostname=node,
                    files={"/etc/hosts": hosts, "/etc/resolv.conf": _RESOLV},
                    folders=("/run/ztunnel", "/var/run/ztunnel"),
                    binds=self.visible,
                )
                self._nodes[node] = self.sandbox.mntns(furniture)
                self._written[self._nodes[node].number] = hosts
            return self._nodes[node]

    def of_pod(self, pod: Pod, netns: Netns) -> Mntns:
        with self._lock:
            if pod.key not in self._pods:
                files = {
                    "/etc/hosts": _hosts(self.mesh, pod, pod.name),
                    "/etc/hostname": f"{pod.name}\n",
                    "/etc/resolv.conf": _RESOLV,
                }
                furniture = Furniture(
                    hostname=pod.name,
                    files={path: text for path, text in files.items() if os.path.exists(path)},
                    empty_dirs=pod.empty_dirs,
                    binds=self.visible,
                )
                self._pods[pod.key] = self.sandbox.mntns(furniture, netns)
                self._written[self._pods[pod.key].number] = files["/etc/hosts"]
            return self._pods[pod.key]

    def known(self, pod: str) -> Mntns | None:
        """That of the pod ``namespace/name``, where one was made."""
        with self._lock:
            return self._pods.get(pod)

    def forget(self, pod: str) -> None:
        """Let go of that of the pod ``namespace/name``, which has gone."""
        with self._lock:
            if (mntns := self._pods.pop(pod, None)) is not None:
                self._written.pop(mntns.number, None)
                self.sandbox.forget(mntns=[mntns])

    def rename(self, mesh: Mesh) -> None:
        """Give every mount namespace that there is the names of ``mesh``, where they differ."""
        with self._lock:
            self.mesh = mesh
            for node, mntns in self._nodes.items():
                self._rewrite(mntns, _hosts(mesh, None, node))
            pods = {pod.key: pod for pod in mesh.pods}
            for key, mntns in self._pods.items():
                if (pod := pods.get(key)) is not None:
                    self._rewrite(mntns, _hosts(mesh, pod, pod.name))

    def _rewrite(self, mntns: Mntns, hosts: str) -> None:
        if self._written[mntns.number] != hosts:
            self.sandbox.write_files(mntns, {"/etc/hosts": hosts})
            self._written[mntns.number] = hosts


def _hosts(mesh: Mesh, pod: Pod | None, hostname: str) -> str:
    """``/etc/hosts`` as names mean in a cluster: Services (short in their own namespace), then pods."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    here = pod.namespace if pod else ""
    short_services = {service.name for service in mesh.services if service.namespace == here}
    if pod:
        lines += [f"{address} {hostname}" for address in (pod.ipv4, pod.ipv6)]
    for service in mesh.services:
        names = [service.hostname, f"{service.key}.svc", service.key]
        names += [service.name] if service.namespace == here else []
        lines += [f"{address} {' '.join(names)}" for address in (service.ipv4, service.ipv6) if address]
    for other in mesh.pods:
        if other != pod:
            names = [f"{other.name}.{other.namespace}.pod"]
            names += [other.name] if other.namespace == here and other.name not in short_services else []
            lines += [f"{address} {' '.join(names)}" for address in (other.ipv4, other.ipv6)]
    return "\n".join(lines) + "\n"
