"""A running lab: its pods, its calls, its configuration. ``open_lab`` builds one and closes it again.

Thread-safe and synchronous outside; inside, calls are made on one asyncio loop that all labs of a process share.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshlab.errors import AuditError, LabError, RejectedError, TopologyError, UsageError
from meshlab.kernel.sandbox import Netns, Sandbox
from meshlab.lab import recent
from meshlab.lab.attempt import Request
from meshlab.lab.audit import findings
from meshlab.lab.build import build, start_control_plane
from meshlab.lab.capture import Capture
from meshlab.lab.mounts import Mounts
from meshlab.lab.names import behind
from meshlab.lab.pod import PodHandle
from meshlab.lab.settings import Settings
from meshlab.lab.sources import Source, read
from meshlab.lab.traffic import TrafficLoop, perform_all
from meshlab.model import Call, Mesh, Topology
from meshlab.pki import MeshCA
from meshlab.plan.network import pod_netns
from meshlab.topology import load_manifests, without

_LOOP = TrafficLoop()
_SOCKETS_AT_ONCE = 253
_REMEMBERED = 100


class Lab:
    """A mesh of namespaces, up and in effect. Made by ``open_lab``, never by hand."""

    def __init__(self, topology: Topology, settings: Settings, visible: tuple[str, ...]) -> None:
        built = build(topology, settings, visible)
        self.topology = topology
        self.timings_ms = built.timings_ms
        """``build`` and ``ready``, from nothing."""
        self.site = built.site
        self.captures = built.captures
        self._configuration = built.configuration
        self._prefix = self.captures.canary_prefix
        self._next_call = 1
        self.last_capture: Capture | None = None
        """The window that was closed last: what ``save`` writes."""
        self._recent: deque[tuple[Mesh, Call]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<lab {self.topology.name}: {', '.join(pod.key for pod in self.mesh.pods)}>"

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def mesh(self) -> Mesh:
        """The manifests that are in effect."""
        return self._configuration.mesh

    @property
    def ca(self) -> MeshCA:
        """The mesh's certificate authority: a ``trustme.CA`` that can also make SVIDs."""
        return self.site.ca

    @property
    def sandbox(self) -> Sandbox:
        return self.site.sandbox

    @property
    def mounts(self) -> Mounts:
        return self.site.mounts

    @property
    def pending(self) -> Mapping[str, str]:
        """Pods that belong in the mesh and are not in it -> why. Empty unless pending pods were allowed."""
        return self.site.pending

    @property
    def implementations(self) -> dict[str, str]:
        """Node -> name of its node proxy."""
        return {node: choice.name for node, choice in self.site.choices.items()}

    def netns(self, key: str) -> Netns:
        """A netns by its key in the plan: ``pod:shop/client``, ``node:node-1``, ``proxy:node-1``, ``fabric``."""
        return self.site.netns[key]

    def pod(self, key: str) -> PodHandle:
        """The pod ``namespace/name``.

        Raises:
            UsageError: there is none.
        """
        try:
            return PodHandle(self, self.mesh.pod(key))
        except KeyError:
            names = ", ".join(pod.key for pod in self.mesh.pods)
            raise UsageError(f"no pod '{key}' in this lab ({names})") from None

    def pods(self, *keys: str) -> tuple[PodHandle, ...]:
        """These pods, or all of them."""
        return tuple(self.pod(key) for key in keys or [pod.key for pod in self.mesh.pods])

    def is_echo(self, to: str) -> bool:
        """Whether the built-in echo answers at ``namespace/pod:port`` or ``service.namespace:port``."""
        return all(pod.program is None for pod, _ in behind(self.mesh, to))

    def speaks_first(self, to: str) -> bool:
        """Whether an echo greets there before it reads (``mode: server-first``)."""
        reached = behind(self.mesh, to)
        return any(port.server_first for pod, number in reached for port in pod.ports if port.number == number)

    # --- calls -------------------------------------------------------------------------------------------------------

    def calls(self, requests: Sequence[Request]) -> list[Call]:
        """Make many calls at once (``pod.plan_http``, ``pod.plan_tcp``), in batches of descriptors; in order.

        How each ended is in its ``Call``; a part of the lab that is gone raises.

        Raises:
            LabLostError: netd is gone.
        """
        made: list[Call] = []
        for start in range(0, len(requests), _SOCKETS_AT_ONCE):
            made += self._batch(requests[start : start + _SOCKETS_AT_ONCE])
        return made

    def _batch(self, requests: Sequence[Request]) -> list[Call]:
        with self._lock:
            first = self._next_call
            self._next_call += len(requests)
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        sockets = self.site.open_sockets(
            [(pod_netns(r.source), families[r.family], socket.SOCK_STREAM, socket.IPPROTO_TCP) for r in requests]
        )
        try:
            for sock in sockets:
                sock.setblocking(False)
            self.site.settings.step("mid-call")
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        work = [
            (sock, request, self._prefix + b"-%d." % number, number)
            for number, (sock, request) in enumerate(zip(sockets, requests, strict=True), first)
        ]
        longest = max((request.timeout_s for request in requests), default=0.0)
        mesh = self.mesh
        made = _LOOP.run(perform_all(work), longest + 30)
        self._recent.extend((mesh, call) for call in made)
        return made

    def received(self, calls: Sequence[Call]) -> dict[int, bool]:
        """Call number -> whether its canary reached any built-in echo: the servers' side of "no byte arrived"."""
        canaries = {call.canary.decode(): call.number for call in calls}
        found: set[str] = set()
        for echo in self.site.echoes.values():
            answer, _ = echo.ask("received", canaries=list(canaries))
            found |= set(answer["received"])
        return {number: canary in found for canary, number in canaries.items()}

    # --- captures ----------------------------------------------------------------------------------------------------

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """A window over the captures of every node's links; prove within it or after it.

        Beacons are put on each link at both ends, so that a proof can say what it would have seen.
        """
        capture = Capture(self)
        capture.open()
        try:
            yield capture
        finally:
            capture.close()
            self.last_capture = capture

    # --- configuration -----------------------------------------------------------------------------------------------

    def apply(self, manifests: str, timeout_s: float = 10.0) -> None:
        """Add or change policies; in effect on every data plane when this returns.

        Args:
            manifests: YAML text of AuthorizationPolicy and PeerAuthentication.

        Raises:
            TopologyError: they are not valid; nothing was sent.
            RejectedError: a proxy refused them; all went back to what was before.
            NotAcknowledgedError: proxy, type and version that were missing at the deadline.
        """
        self._configuration.change(load_manifests(manifests, "<apply>", self._current()), timeout_s)

    def delete(self, manifests: str, timeout_s: float = 10.0) -> None:
        """Take policies away, as ``apply`` adds them; only kind, namespace and name are read."""
        self._configuration.change(without(manifests, "<delete>", self._current()), timeout_s)

    def replace(self, policies: Mesh | str, timeout_s: float = 10.0) -> None:
        """Put exactly these policies into effect, in one push: those of a ``Mesh``, or of YAML text."""
        if isinstance(policies, str):
            policies = load_manifests(policies, "<replace>", _with_policies_of(self._current(), Mesh()))
        self._configuration.change(_with_policies_of(self._current(), policies).mesh, timeout_s)

    def push_raw(self, type_url: str, name: str, body: bytes, timeout_s: float = 10.0) -> str:
        """Push one more resource, as bytes that need not be valid; the proxy's words where it refuses them, else empty.

        Refused, it is taken back; accepted, it stays until the next ``apply``, ``delete`` or ``replace``.
        """
        wire = self._configuration.wire()
        wire[f"type.googleapis.com/{type_url}"][name] = base64.b64encode(body).decode()
        try:
            self._configuration.settle(self._configuration.post((), timeout_s, wire), timeout_s)
        except RejectedError as error:
            return str(error)
        return ""

    def restart_control_plane(self, mesh: Mesh | None = None, timeout_s: float = 20.0) -> None:
        """Kill the control plane and start another, which knows ``mesh`` and nothing of the one before.

        Returns when every node proxy has reconnected and acknowledged; what is gone from ``mesh`` is then gone there.

        Args:
            mesh: what the new one serves; what is in effect, if not given.
        """
        old = self.site.programs.by_name["control-plane"]
        assert old.peer is not None
        self.site.heard += old.peer.drain()
        self.site.programs.end("control-plane")
        self.site.sandbox.wait_exit(old.pid, timeout_s)
        old.peer.close()
        self._configuration.control_plane = start_control_plane(self.site)
        self._configuration.control_plane.wait_event("listening", timeout_s)
        self._configuration.change(mesh or self.mesh, timeout_s)

    def _current(self) -> Topology:
        return replace(self.topology, mesh=self.mesh)

    # --- evidence and the end ----------------------------------------------------------------------------------------

    def told(self, last: int = _REMEMBERED) -> list[str]:
        """The last calls, a sentence each, with the rule by which the policies of that moment decide them."""
        return [recent.sentence(mesh, call) for mesh, call in list(self._recent)[-last:]]

    def logs(self, program: str) -> str:
        """What a program has printed: ``ztunnel@node-1``, ``agent@node-1``, ``control-plane``, ``shop/server`` ..."""
        return self.site.programs.logs(program)

    def tls_secrets(self) -> bytes:
        """The secrets of the node proxies' TLS sessions, as SSLKEYLOGFILE has them; empty unless ``keylog`` was set."""
        return os.pread(self.site.keylog, os.fstat(self.site.keylog).st_size, 0) if self.site.keylog >= 0 else b""

    def rules(self, pod: str) -> str:
        """The nft text of the redirect rules in a pod, rendered from what was read back; empty where it has none."""
        model = self.mesh.pod(pod)
        agent = self.site.agents.get(model.node)
        if agent is None or not self.mesh.is_enrolled(model):
            return ""
        answer, _ = agent.ask("rules", uid=model.uid)
        return str(answer["text"])

    def audit(self) -> None:
        """Check that every part of the lab still is as it should be.

        Raises:
            AuditError: a program exited, was killed, printed a panic, or a proxy refused its configuration.
        """
        found = findings(self.site)
        if found:
            raise AuditError("\n".join(found))

    def save(self, folder: Path) -> Path:
        """Save captures, logs, rules and configuration; ``folder`` is made."""
        from meshlab.lab.evidence import save

        return save(self, folder)

    def close(self) -> None:
        """End the lab; nothing of it is left when this returns. The audit comes first.

        Raises:
            AuditError: as ``audit``.
        """
        found: list[str] = []
        try:
            self.captures.close()
            self.site.settings.step("mid-teardown")
            if not self.site.sandbox.lost.startswith("the lab was closed"):
                found = findings(self.site)
        except LabError as error:
            found = [str(error)]
        finally:
            self.site.close()
        if found:
            raise AuditError("\n".join(found))


@contextmanager
def open_lab(source: Source | Topology | str, **settings: Any) -> Iterator[Lab]:
    """Build a lab, and close it in the end; the audit raises where something was not as it should be.

    Args:
        source: a shipped name, a path, YAML text, or what ``sources.read`` or ``topology.load`` gave.
        settings: the fields of ``Settings``.
    """
    if isinstance(source, str):
        source = read(source)
    if isinstance(source, Source) and source.unrunnable:
        raise TopologyError(source.unrunnable)
    topology, path = (source.topology, source.path) if isinstance(source, Source) else (source, None)
    visible = (*topology.mounts, *([str(path.resolve().parent)] if path else ()), *_folders_of_programs(topology))
    chosen = Settings(**settings)
    lab = Lab(topology, chosen, (*visible, *chosen.binds, *_folders_of_proxies(chosen, topology)))
    try:
        yield lab
    except BaseException as failure:
        try:
            lab.close()
        except AuditError as error:
            failure.add_note(f"and when the lab closed: {error}")
        raise
    lab.close()


def _with_policies_of(topology: Topology, policies: Mesh) -> Topology:
    mesh = replace(
        topology.mesh,
        authorization_policies=policies.authorization_policies,
        peer_authentications=policies.peer_authentications,
    )
    return replace(topology, mesh=mesh)


def _folders_of_programs(topology: Topology) -> list[str]:
    """Of each program and of arguments that name an existing path."""
    words = [word for pod in topology.mesh.pods if pod.program for word in pod.program.argv]
    return [os.path.dirname(os.path.abspath(word)) for word in words if "/" in word and os.path.exists(word)]


def _folders_of_proxies(settings: Settings, topology: Topology) -> list[str]:
    texts = [settings.ztunnel, topology.ztunnel, *(node.ztunnel for node in topology.nodes)]
    paths = [text.partition("=")[2] or text for text in texts if text and "/" in text]
    return [os.path.dirname(os.path.realpath(os.path.expanduser(path))) for path in paths]
