"""A running lab: its pods, its calls, its configuration. ``lifetime.open_lab`` builds one and closes it again.

Thread-safe and synchronous outside; inside, calls are made on one asyncio loop that all labs of a process share.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from meshlab.agent.requests import ReadRules
from meshlab.errors import AuditError, LabError, RejectedError, UsageError
from meshlab.kernel.sandbox import NO_DESCRIPTORS, Netns, Sandbox, too_few_descriptors
from meshlab.lab import cluster, edits, renewal
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.calls import background, requests
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.background import Traffic
from meshlab.lab.calls.connections import OpenConnection
from meshlab.lab.calls.opening import OpenConnections
from meshlab.lab.calls.traffic import TrafficLoop, perform_all
from meshlab.lab.handles import NamespaceHandle
from meshlab.lab.history import History
from meshlab.lab.instances import Instance, NodeHandle, instance, whole_again
from meshlab.lab.pod import PodHandle
from meshlab.lab.proving import arrivals, recent
from meshlab.lab.proving.capture import Capture
from meshlab.lab.proving.captures import Captures, open_rings
from meshlab.lab.proving.evidence import save_all
from meshlab.lab.rollout import Rollout, timings_ms
from meshlab.lab.running.audit import findings
from meshlab.lab.running.mounts import Mounts
from meshlab.lab.settings import Settings
from meshlab.lab.transition import Transitions
from meshlab.model import Address, Call, Family, Mesh, Topology
from meshlab.pki import MeshCA
from meshlab.plan.netns import netns_key
from meshlab.proofs.arrivals import Arrivals, Kernel
from meshlab.proofs.canary import canary
from meshlab.topology import load_manifests, replaced, without
from meshlab.topology.notes import did_you_mean, listed

_K = TypeVar("_K", bound=str)
_T = TypeVar("_T")
_LOOP = TrafficLoop()
_SOCKETS_AT_ONCE = 253
_REMEMBERED = 100
_MOST_CANARIES = 100_000


@checks_arguments
class Lab:
    """A mesh of namespaces, up and in effect. Made by ``open_lab``, never by hand."""

    def __init__(self, topology: Topology, settings: Settings, visible: tuple[str, ...]) -> None:
        self.topology = topology
        """As the file has it; what is in effect now is ``mesh``."""
        started = time.monotonic()
        self.site = cluster.begin(topology, settings, visible)
        self._connections = OpenConnections(_LOOP, self.site)
        try:
            recorder = cluster.start(self.site)
            opening = open_rings(self.site, recorder)

            def start_captures() -> Captures:
                return Captures.start(self.site, recorder, opening, settings.part("analyzer"))

            self.transitions = Transitions(self.site, self._connections, start_captures)
            self._rollout = self.transitions.edit(
                lambda _: topology.mesh, settings.ready_timeout_s or topology.ready_timeout_s
            )
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
                raise too_few_descriptors() from error
            raise
        self.timings_ms = timings_ms(self._rollout, (time.monotonic() - started) * 1000)
        """``build`` and ``ready``, from nothing."""
        self._secret = self.captures.canary_secret
        self._next_call = 1
        self.last_capture: Capture | None = None
        """The one that was opened last: what ``save`` writes, also while it is open."""
        self._recent: deque[tuple[Mesh, Call]] = deque(maxlen=_REMEMBERED)
        self._watching: list[Capture] = []
        """The windows that are open."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<lab {self.topology.name}: {', '.join(pod.key for pod in self.mesh.pods)}>"

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def mesh(self) -> Mesh:
        """The manifests that are in effect."""
        return self.site.mesh

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
    def captures(self) -> Captures:
        return self.transitions.captures

    @property
    def history(self) -> History:
        """Which mesh was in effect when."""
        return self.transitions.history

    @property
    def pending(self) -> Mapping[str, str]:
        """Pods that belong in the mesh and are not in it -> why. Empty unless pending pods were allowed."""
        return self.site.pending

    @property
    def not_listening(self) -> frozenset[tuple[str, int, Family]]:
        """(pod, port, family) where nobody listened when the mesh came into effect: any mesh refuses a call there."""
        return frozenset(self.site.not_listening)

    @property
    def implementations(self) -> dict[str, str]:
        """Node -> name of its node proxy, the newest where two overlap."""
        return {node: choice.name for node, choice in self.site.choices.items()}

    def netns(self, key: str) -> Netns:
        """A netns by its key in the plan: ``pod:shop/client``, ``node:node-1``, ``proxy:node-1``, ``fabric``.

        Raises:
            UsageError: there is none.
        """
        return _chosen("netns", netns_key(key), self.site.netns)

    def pod(self, key: str) -> PodHandle:
        """The pod ``namespace/name``.

        Raises:
            UsageError: there is none.
        """
        return PodHandle(self, _chosen("pod", key, {pod.key: pod for pod in self.mesh.pods}))

    def pods(self, *keys: str) -> tuple[PodHandle, ...]:
        """These pods, or all of them."""
        return tuple(self.pod(key) for key in keys or [pod.key for pod in self.mesh.pods])

    def is_echo(self, to: str) -> bool:
        """Whether only the built-in echo answers at ``namespace/pod:port`` or ``service.namespace:port``."""
        return requests.is_echo(self.mesh, to)

    def speaks_first(self, to: str) -> bool:
        """Whether an echo greets there before it reads (``mode: server-first``)."""
        return requests.speaks_first(self.mesh, to)

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
        self.captures.keep_up()
        sockets = self.site.open_in_pods([(request.source, request.family) for request in requests])
        try:
            for sock in sockets:
                sock.setblocking(False)
            self.site.settings.step("mid-call")
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        work = [
            (sock, request, canary(self._secret, number), number)
            for number, (sock, request) in enumerate(zip(sockets, requests, strict=True), first)
        ]
        longest = max((request.timeout_s for request in requests), default=0.0)
        mesh = self.mesh
        made = _LOOP.run(perform_all(work), longest + 30)
        self._recent.extend((mesh, call) for call in made)
        for capture in list(self._watching):
            capture.saw(made)
        return made

    def connect(self, requests: Sequence[Request]) -> list[OpenConnection]:
        """Open connections that stay open (``pod.plan_tcp``), some tens at a time; in order.

        Raises:
            LabLostError: netd is gone.
        """
        self.captures.keep_up()
        return self._connections.open(requests, self.canaries(len(requests)))

    def canaries(self, count: int) -> list[tuple[int, bytes]]:
        """Take so many numbers of calls; each with its canary.

        Raises:
            UsageError: that is none, or more than a lab makes.
        """
        if not 0 < count <= _MOST_CANARIES:
            raise UsageError(f"canaries() gives 1 to {_MOST_CANARIES}, not {count}")
        with self._lock:
            first = self._next_call
            self._next_call += count
        return [(number, canary(self._secret, number)) for number in range(first, first + count)]

    def traffic(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        rate: float = 50.0,
        open: int = 1,  # noqa: A002 - open connections
    ) -> AbstractContextManager[Traffic]:
        """``with lab.traffic(pairs) as traffic:`` keeps calling, and holds connections open, until the block ends.

        Then it says ``failed_new``, ``broken_open``, ``in_plaintext`` and ``kept_plaintext``, each made of what is
        beside it, and has a proof that each of the first three is 0. A capture is open meanwhile.

        Args:
            pairs: source pod ``namespace/name`` and URL, ``http://HOST:PORT/PATH`` or ``tcp://HOST:PORT``. While a
                pair's source or destination is not there, it makes no calls.
            rate: calls a second, of all pairs together.
            open: connections that each pair holds.

        Raises:
            UsageError: an argument will not do, or a capture of this lab is open.
        """
        return background.running(Traffic(self, _LOOP, self._connections, pairs, rate, open))

    def arrivals(self, calls: Sequence[Call], since_ns: int, before: Kernel | None = None) -> Arrivals:
        """What the servers counted from ``since_ns`` on: connections and bytes by client and port, with times.

        Args:
            calls: those whose canaries are looked for.
            since_ns: a moment of CLOCK_REALTIME.
            before: what the kernel had counted then at programs of pods' own; nothing, if not given.
        """
        meshes = self.history.between(since_ns, time.time_ns()) or (self.mesh,)
        return arrivals.count(self.site, meshes, calls, since_ns, before or {})

    def connections_to(self, pod: str) -> dict[tuple[Address, int], int]:
        """(client's address, port) -> connections to a pod's own program since the lab was built, as the kernel counts.

        Nothing for a pod of the built-in echo, which counts for itself. A connection counts when its SYN is about to
        reach the pod's TCP, also one that its node proxy makes inside the pod; 0 is then that no byte can have come.
        """
        return arrivals.connections_to(self.site, self.pod(pod).pod)

    # --- captures ----------------------------------------------------------------------------------------------------

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """A window over the captures of every node's links; prove within it or after it. One at a time.

        Beacons are put on each link at both ends, so that a proof can say what it would have seen.

        Raises:
            UsageError: a capture of this lab is open already.
        """
        capture = Capture(self)
        capture.open()
        self._watching.append(capture)
        self.last_capture = capture
        try:
            yield capture
        finally:
            self._watching.remove(capture)
            capture.close()

    # --- configuration -----------------------------------------------------------------------------------------------

    def apply(self, manifests: str, timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Add or change objects of any kind that a file may hold, as ``kubectl apply`` does; in effect on return.

        A Pod that is not there is created, labels of one that is there are changed, a namespace that gets its label is
        enrolled, in Istio's order and while calls go on. Threads may change one lab at the same time: each change
        starts from what the one before has put into effect. Whatever is raised, ``mesh`` is then what it was.

        Args:
            manifests: YAML text; nodes are those of the Lab document, so a Lab is refused.
            timeout_s: counted from when the changes of other threads are done.
            wait: ``False`` returns at once; the ``Rollout`` can be waited for or watched.

        Returns what was done and when.

        Raises:
            TopologyError: they are not valid; nothing was done.
            NotEnrolledError: a pod was not in the mesh in time.
            RejectedError: a proxy refused them; the message says whether all have gone back to what was before.
            NotAcknowledgedError: proxy, type and version that were missing at the deadline; what was before is on
                its way to all again.
        """
        return self.transitions.put(
            lambda mesh: load_manifests(manifests, "<apply>", self._with(mesh)), timeout_s, wait=wait
        )

    def delete(self, manifests: str, timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Take objects away, as ``apply`` adds them; only kind, namespace and name are read."""
        return self.transitions.put(lambda mesh: without(manifests, "<delete>", self._with(mesh)), timeout_s, wait=wait)

    def replace(self, objects: Mesh | str, timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Put exactly these policies into effect, in one push: those of a ``Mesh``, or of YAML text.

        Objects of other kinds in a text take the place of those of their name: a Pod is then another pod.
        """

        def replaced_by(mesh: Mesh) -> Mesh:
            if isinstance(objects, str):
                return replaced(objects, "<replace>", self._with(mesh))
            return edits.with_policies_of(mesh, objects)

        return self.transitions.put(replaced_by, timeout_s, wait=wait)

    def reset(self, mesh: Mesh | None = None, timeout_s: float = 20.0) -> Rollout:
        """Go back to the mesh of the file that the lab was opened with, or to ``mesh``; programs too.

        What verbs have paused goes on, what they have ended is started again, and a node proxy that was upgraded is
        what it was. Raises as ``apply``.
        """
        whole_again(self.transitions, timeout_s)
        file = mesh or self.topology.mesh
        return self.transitions.put(lambda now: edits.back_to(now, file), timeout_s, wait=True)

    def renew(self, timeout_s: float = 20.0) -> None:
        """``reset`` for somebody who must not notice that the lab was used, proven as far as that is cheap.

        Connections that are open end, calls and captures are forgotten, and pods in which a program ran come anew.

        Raises:
            LabError: it is not as good as a new one; it is then neither the old nor a new one.
        """
        if self._watching:
            raise UsageError("a lab whose capture is open cannot be renewed")
        self._connections.close()
        renewal.renew(self.transitions, timeout_s)
        self._recent.clear()
        self.last_capture = None

    def namespace(self, name: str) -> NamespaceHandle:
        """The namespace ``name``.

        Raises:
            UsageError: there is none.
        """
        return NamespaceHandle(
            self.transitions, _chosen("namespace", name, {one.name: one for one in self.mesh.namespaces}).name
        )

    def push_raw(self, type_url: str, name: str, body: bytes, timeout_s: float = 10.0) -> str:
        """Push one more resource, as bytes that need not be valid; the proxy's words where it refuses them, else empty.

        Refused, it is taken back (unless ``after_nack`` is ``leave``), also where this raises; accepted, it stays until
        the next ``apply``, ``delete`` or ``replace``.

        Raises:
            UsageError: there is no such type; the message names those that there are.
            NotAcknowledgedError: as ``apply``.
        """
        try:
            self.transitions.push_raw(type_url, name, body, timeout_s)
        except RejectedError as error:
            return str(error)
        return ""

    def restart_control_plane(self, mesh: Mesh | None = None, timeout_s: float = 20.0) -> None:
        """Kill the control plane and start another, which knows ``mesh`` and nothing of the one before.

        Returns when every node proxy has reconnected and acknowledged; what is gone from ``mesh`` is then gone there.

        Args:
            mesh: what the new one serves; what is in effect, if not given. Pods that it lacks go.

        Raises:
            UsageError: ``mesh`` has a pod that is not there.
            RejectedError, NotAcknowledgedError: as ``apply``; the new one serves what was before.
        """
        self.transitions.restart_control_plane(mesh, timeout_s)

    # --- what runs ---------------------------------------------------------------------------------------------------

    def instance(self, name: str) -> Instance:
        """What runs as ``ztunnel@node-1``, ``agent@node-1``, ``control-plane`` or ``shop/server``.

        Raises:
            UsageError: nothing of that name was ever started.
        """
        return instance(self.transitions, name)

    def node(self, name: str) -> NodeHandle:
        """The node ``name``.

        Raises:
            UsageError: there is none.
        """
        return NodeHandle(self.transitions, _chosen("node", name, self.site.network.nodes).name)

    def _with(self, mesh: Mesh) -> Topology:
        return replace(self.topology, mesh=mesh)

    # --- evidence and the end ----------------------------------------------------------------------------------------

    def told(self, last: int = _REMEMBERED) -> list[str]:
        """The last calls, a sentence each, with the rule by which the policies of that moment decide them."""
        calls = list(self._recent)
        return [recent.sentence(mesh, call) for mesh, call in calls[max(0, len(calls) - max(0, last)) :]]

    def logs(self, program: str) -> str:
        """What a program has printed: ``ztunnel@node-1``, ``agent@node-1``, ``control-plane``, ``shop/server`` ...

        Raises:
            UsageError: the lab has no such program.
        """
        return self.site.programs.logs(_chosen("program", program, self.site.programs.by_name).name)

    def tls_secrets(self) -> bytes:
        """The secrets of the node proxies' TLS sessions, as SSLKEYLOGFILE has them; empty unless ``keylog`` was set."""
        return os.pread(self.site.keylog, os.fstat(self.site.keylog).st_size, 0) if self.site.keylog >= 0 else b""

    def rules(self, pod: str) -> str:
        """The nft text of the redirect rules in a pod, rendered from what was read back; empty where it has none.

        Raises:
            UsageError: there is no such pod.
        """
        model = self.pod(pod).pod
        agent = self.site.peer("agent", model.node)
        if agent is None or not self.mesh.is_enrolled(model):
            return ""
        answer, _ = agent.ask(ReadRules(model.uid))
        return answer["text"]

    def audit(self) -> None:
        """Check that every part of the lab still is as it should be.

        Raises:
            AuditError: a program exited, was killed, printed a panic, or a proxy refused its configuration.
        """
        found = findings(self.site)
        if found:
            raise AuditError("\n".join(found))

    def save(self, folder: Path | str) -> Path:
        """Save captures, logs, rules and configuration; ``folder`` is made.

        Raises:
            EvidenceError: not all could be saved; what could be is there.
        """
        return save_all(self, Path(folder))

    def _abandon(self) -> None:
        """End a lab that did not come up."""
        transitions: Transitions | None = getattr(self, "transitions", None)
        try:
            if transitions is not None:
                transitions.close()
        finally:
            self.site.close()

    def close(self) -> None:
        """End the lab; nothing of it is left when this returns. The audit comes first.

        Raises:
            AuditError: as ``audit``.
        """
        found: list[str] = []
        try:
            self._connections.close()
            self.transitions.close()
            self.site.settings.step("mid-teardown")
            if not self.site.sandbox.lost.startswith("the lab was closed"):
                found = findings(self.site)
        except LabError as error:
            found = [str(error)]
        finally:
            self.site.close()
        if found:
            raise AuditError("\n".join(found))


def _chosen(what: str, key: _K, among: Mapping[_K, _T]) -> _T:
    """The one that is called ``key``."""
    if key not in among:
        raise UsageError(f"no {what} '{key}' in this lab ({listed(among)}).{did_you_mean(key, among)}")
    return among[key]
