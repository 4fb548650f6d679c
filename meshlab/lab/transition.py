"""One writer at a time takes a lab from one mesh to the next, stage by stage, or leaves it as it was.

The stages and their order are those of ``plan.transition``.

    edit(change)    reads the mesh, changes it, carries the stages out, and only then sets ``site.mesh``

All of that is one step to other threads. Whatever ends it early, also a KeyboardInterrupt, is undone: pods that had
come go again, running pods leave the mesh or come back into it, and the control plane is told to serve again what it
served before; that last is not waited for, and the error says so. Pods that had gone stay gone: the mesh says that too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar

from meshlab.errors import LabError, RejectedError, UsageError
from meshlab.lab import cluster, enrolment, join
from meshlab.lab.calls.opening import OpenConnections
from meshlab.lab.configuration import Configuration, Wire
from meshlab.lab.history import History
from meshlab.lab.proving.captures import Captures
from meshlab.lab.restarts import Restarts
from meshlab.lab.rollout import Rollout, Step
from meshlab.lab.running.readiness import note_who_listens, wait_for_programs
from meshlab.lab.site import Site, enrolled_keys
from meshlab.model import InstanceId, Mesh, Pod
from meshlab.plan.transition import Stage, in_effect, transition, waves, without_pods

Change = Callable[[Mesh], Mesh]
_UNDO_S = 5.0


class Transitions:
    """The one writer of a lab. Thread-safe."""

    def __init__(self, site: Site, connections: OpenConnections, start_captures: Callable[[], Captures]) -> None:
        self.site = site
        self.connections = connections
        self.configuration = Configuration(site)
        self.history = History(time.time_ns)
        self.history.begin(site.mesh)
        self.alone = threading.RLock()
        """Held by whoever changes the lab."""
        self.restarts = Restarts(site, self.alone)
        self._start_captures = start_captures
        self._captures: Captures | None = None
        self._undo = ExitStack()
        self._deadline = 0.0
        self._given_s = 0.0
        self._certain: frozenset[str] = frozenset()
        """Keys of the pods that stay in the mesh, whatever becomes of what is under way."""
        self._now = site.mesh
        """What would be in effect if what is under way were undone now."""

    @property
    def captures(self) -> Captures:
        """Started when they are first needed: their rings open meanwhile."""
        if self._captures is None:
            self._captures = self._start_captures()
        return self._captures

    # --- one writer --------------------------------------------------------------------------------------------------

    def edit(self, change: Change, timeout_s: float, rollout: Rollout | None = None) -> Rollout:
        """Put ``change(mesh)`` into effect. What ``change`` raises is raised, and nothing was done.

        ``timeout_s`` counts from when the edits of other threads are done.

        Raises:
            NotEnrolledError: a pod was not in the mesh in time.
            RejectedError: a proxy refused it; the message says who may still serve it.
            NotAcknowledgedError: proxy, type and version that were missing at the deadline.
        """
        rollout = rollout or Rollout()
        with self.alone:
            self._carry_out(change(self.site.mesh), timeout_s, rollout)
        return rollout

    def put(self, change: Change, timeout_s: float, *, wait: bool) -> Rollout:
        """``edit``, or with ``wait=False`` the same in a thread of its own."""
        return self.edit(change, timeout_s) if wait else self._begin_edit(change, timeout_s)

    def _begin_edit(self, change: Change, timeout_s: float) -> Rollout:
        rollout = Rollout()

        def work() -> None:
            try:
                self.edit(change, timeout_s, rollout)
            except BaseException as failure:
                rollout.end(failure)

        threading.Thread(target=work, name="meshlab-rollout", daemon=True).start()
        return rollout

    def push_raw(self, kind: str, name: str, body: bytes, timeout_s: float) -> None:
        """Have one more resource served, as it is, until the next edit; raises as ``edit``.

        Raises:
            UsageError: there is no such type.
        """
        with self.alone:
            wire = self.configuration.wire(in_effect(self.site.mesh))
            self._push(self.configuration.with_raw(wire, kind, name, body), timeout_s)

    def publish_again(self, timeout_s: float) -> None:
        """Wait until every node proxy that runs has what is served; raises as ``edit``."""
        with self.alone:
            self._push(self.configuration.served, timeout_s)

    def _push(self, wire: Wire, timeout_s: float, fallback: Wire | None = None) -> None:
        try:
            self.configuration.post(wire, (), timeout_s, fallback=fallback)
            self.configuration.settle(timeout_s)
        except RejectedError:
            raise  # the control plane has gone back by itself, or was asked to leave it
        except BaseException as failure:
            self.configuration.go_back(failure)
            raise

    # --- what starts again -------------------------------------------------------------------------------------------

    def restart_control_plane(self, mesh: Mesh | None, timeout_s: float) -> None:
        """End the control plane, where one runs, and start another, which knows nothing; raises as ``edit``."""
        if mesh is not None and (new := {pod.uid for pod in mesh.pods} - {pod.uid for pod in self.site.mesh.pods}):
            raise UsageError(
                f"a control plane that comes back makes no pods, and {min(new)} is not there: apply() does"
            )
        with self.alone:
            old = self.site.programs.newest(InstanceId("control-plane"))
            if old is not None and not old.ended_by_us:
                assert old.peer is not None
                self.site.heard += old.peer.drain()
                self.site.programs.end(old.name)
                self.site.sandbox.wait_exit(old.pid, timeout_s)
                old.peer.close()
            self.start_control_plane(mesh, timeout_s)

    def start_control_plane(self, mesh: Mesh | None, timeout_s: float) -> None:
        """Start a control plane in place of one that has ended; raises as ``edit``."""
        with self.alone:
            before, mesh = self.site.mesh, mesh or self.site.mesh
            cluster.start_control_plane(self.site)
            self.site.note_change()
            self.history.begin(mesh)
            try:
                wire = self.configuration.wire(in_effect(mesh))
                self._push(wire, timeout_s, fallback=self.configuration.served)
            except BaseException:
                self.history.back(before)
                raise
            self._end_pods(tuple(pod for pod in before.pods if pod not in mesh.pods))
            self.site.mesh = mesh
            self.captures.rewired(mesh.pods, enrolled_keys(mesh))
            self.history.effect()

    def come_again(self, pods: Sequence[Pod], timeout_s: float) -> None:
        """Make pods anew that are in the mesh and were taken out of the kernel; raises as ``edit``."""
        mesh = self.site.mesh
        with self.alone:
            self._deadline = time.monotonic() + timeout_s
            join.make(self.site, pods)
            enrolment.enrol(self.site, [pod for pod in pods if mesh.is_enrolled(pod)], self._left_s)
            self.captures.rewired(mesh.pods, enrolled_keys(mesh))
            join.open_links(self.site, pods)
            self.captures.joined(pods)
            for wave in waves(pods):
                self._run(wave, mesh)
            self.publish_again(self._left_s)

    def close(self) -> None:
        """Start no program again, and stop recording."""
        self.restarts.close()
        if self._captures is not None:
            self._captures.close()

    def _carry_out(self, after: Mesh, timeout_s: float, rollout: Rollout) -> None:
        self._now = before = self.site.mesh
        self._deadline, self._given_s = time.monotonic() + timeout_s, timeout_s
        self.history.begin(after)
        self._certain = enrolled_keys(before) & enrolled_keys(after)
        stages = transition(before, after)
        try:
            if before.pods:
                self.captures.rewired(before.pods, self._certain)
            for stage in stages:
                began = time.time_ns()
                self._hands[stage.name](self, stage, after)
                rollout.steps.append(Step(stage.name, tuple(pod.key for pod in stage.pods), began, time.time_ns()))
        except BaseException as failure:
            alone = len(stages) == len({"publish", "name"}) and isinstance(failure, RejectedError)
            self._go_back(failure, published=not alone)
            rollout.end(failure)
            raise
        self._undo.pop_all()
        self.site.mesh = after
        self.history.effect()
        rollout.in_effect_ns = time.time_ns()
        rollout.end()

    def _go_back(self, failure: BaseException, *, published: bool) -> None:
        """Undo what was done.

        Args:
            published: whether what was in effect has to be published again; else the control plane has done it by
                itself, or was asked to leave it.
        """
        if published:
            wire = self.configuration.wire(in_effect(self._now)) if self._now.pods else None
            self.configuration.go_back(failure, wire)
        self._deadline = time.monotonic() + _UNDO_S
        try:
            self._undo.close()
        except LabError as error:
            failure.add_note(f"and it could not be undone whole: {error}")
        finally:
            self._undo = ExitStack()
            self.site.mesh = self._now
            self.history.back(self._now)
            if self._captures is not None:
                self._captures.rewired(self._now.pods, enrolled_keys(self._now))

    @property
    def _left_s(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    # --- stages ------------------------------------------------------------------------------------------------------

    def _withdraw(self, stage: Stage, _: Mesh) -> None:
        self._publish(stage, ())

    def _leave(self, stage: Stage, _: Mesh) -> None:
        self.site.settings.step("leaving")
        self._now = without_pods(self._now, stage.pods)
        self._end_pods(stage.pods)
        self.site.settings.step("left")

    def _end_pods(self, pods: tuple[Pod, ...]) -> None:
        self.captures.leaving(pods)
        self.connections.end_of([pod.key for pod in pods])
        join.end_programs(self.site, pods)
        enrolment.let_go(self.site, [pod for pod in pods if self.site.mesh.is_enrolled(pod)], self._left_s)
        join.leave(self.site, pods)

    def _make(self, stage: Stage, after: Mesh) -> None:
        began = time.monotonic()
        self.site.mounts.mesh = after
        self._undo.callback(self._unmake, stage.pods)
        join.make(self.site, stage.pods)
        self._deadline += time.monotonic() - began  # what is waited for begins behind it
        self.site.settings.step("pods built")

    def _unmake(self, pods: tuple[Pod, ...]) -> None:
        made = [pod for pod in pods if pod.key in self.site.pods]
        join.end_programs(self.site, made, grace_s=0)
        enrolment.let_go(self.site, made, self._left_s)
        join.leave(self.site, made, whole=False)
        self.site.mounts.rename(self._now)

    def _announce(self, stage: Stage, after: Mesh) -> None:
        assert stage.served is not None
        identities = {str(pod.identity(after.trust_domain)) for pod in self._certified(stage.pods, after)}
        self.configuration.post(self.configuration.wire(stage.served), identities, self._left_s)

    def _certified(self, pods: tuple[Pod, ...], mesh: Mesh) -> list[Pod]:
        """Those that must have a certificate before the first call: enrolled, on a node with a proxy."""
        return [pod for pod in pods if mesh.is_enrolled(pod) and self.site.proxies[pod.node]]

    def _release(self, stage: Stage, _: Mesh) -> None:
        self._undo.callback(self._enrol_again, stage.pods)
        enrolment.release(self.site, stage.pods, self._left_s)
        self.site.settings.step("released")

    def _enrol_again(self, pods: tuple[Pod, ...]) -> None:
        enrolment.enrol(self.site, pods, self._left_s)

    def _enrol(self, stage: Stage, _: Mesh) -> None:
        self.site.settings.step("enrolling")
        running = [pod for pod in stage.pods if any(pod.uid == known.uid for known in self.site.mesh.pods)]
        entering = [pod for pod in running if not self.site.mesh.is_enrolled(self.site.mesh.pod(pod.key))]
        if entering:
            self._undo.callback(lambda: enrolment.release(self.site, entering, self._left_s))
        enrolment.enrol(self.site, stage.pods, self._left_s)
        self.site.settings.step("enrolled")

    def _open(self, stage: Stage, after: Mesh) -> None:
        captures = self.captures
        stay = self._now.pods
        certain = self._certain | frozenset(pod.key for pod in stage.pods if after.is_enrolled(pod))
        captures.rewired((*stay, *stage.pods), certain)  # what passes from now on is read by it
        join.open_links(self.site, stage.pods)
        captures.joined(stage.pods)
        self.site.settings.step("links open")

    def _start(self, stage: Stage, after: Mesh) -> None:
        self._run(stage.pods, after)

    def _run(self, pods: Sequence[Pod], mesh: Mesh) -> None:
        for pod in pods:
            join.run_init(self.site, pod, self._deadline)
            if pod.program is not None:
                self.restarts.watch()
                join.start(self.site, pod, pod.program)
            if pod.gateway and self.site.waypoint.proxy is not None:
                self.start_waypoint(pod)
        wait_for_programs(self.site, [pod for pod in pods if pod.program is not None], mesh, self._deadline)

    def start_waypoint(self, pod: Pod) -> None:
        """Start the next generation of a pod's waypoint, which the control plane then knows; it is not waited for."""
        cluster.next_waypoint(self.site, pod)
        self.configuration.admit()
        cluster.start_waypoint(self.site, pod)

    def _ready(self, stage: Stage, _: Mesh) -> None:
        self._publish(stage, ())

    def _publish(self, stage: Stage, certificates: tuple[str, ...] = ()) -> None:
        assert stage.served is not None
        self.configuration.post(self.configuration.wire(stage.served), certificates, self._left_s)
        try:
            self.configuration.settle(self._left_s, self._given_s)
        except LabError as error:
            enrolment.settled_in_part(self.site, error)

    def _published(self, stage: Stage, after: Mesh) -> None:
        known = {str(pod.identity(after.trust_domain)) for pod in self._now.pods if self._now.is_enrolled(pod)}
        wanted = {str(pod.identity(after.trust_domain)) for pod in self._certified(after.pods, after)}
        self._publish(stage, tuple(sorted(wanted - known)))
        self._listen_more(after)
        if (self._now.pods, self._now.services, self._now.endpoints_by_hand) != (
            after.pods,
            after.services,
            after.endpoints_by_hand,
        ):
            note_who_listens(self.site, after)

    def _listen_more(self, after: Mesh) -> None:
        """A running pod of the built-in echo listens where Services point now."""
        before = {pod.uid: pod for pod in self._now.pods}
        join.listen(
            self.site,
            [
                (pod, port)
                for pod in after.pods
                if pod.program is None and pod.uid in before
                for port in pod.ports
                if port not in before[pod.uid].ports
            ],
        )

    def _name(self, _: Stage, after: Mesh) -> None:
        self.site.mounts.rename(after)
        self.captures.rewired(after.pods, enrolled_keys(after))
        self.site.settings.step("ready")

    _hands: ClassVar[Mapping[str, Callable[[Transitions, Stage, Mesh], None]]] = {
        "withdraw": _withdraw,
        "leave": _leave,
        "make": _make,
        "announce": _announce,
        "release": _release,
        "enrol": _enrol,
        "open": _open,
        "start": _start,
        "ready": _ready,
        "attach": _ready,
        "publish": _published,
        "detach": _ready,
        "name": _name,
    }
