"""What runs in a lab, with the verbs that a test needs: end it, start it again, put another version in its place.

    lab.instance("ztunnel@node-1").restart()           also agent@node-1, control-plane, shop/server
    lab.instance("ztunnel@node-1").upgrade(to="istio=./new")
    lab.node("node-2").reboot()

Each start is another generation of the instance, with a log of its own. An exit that a verb asked for is no finding of
the audit. A verb returns when what it started is in effect: a node proxy has acknowledged everything that is served and
every pod of its node; behind an agent or a control plane that came back, every node proxy has.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable

from meshlab.errors import DeadlineError, KernelRefusedError, LabError, LabLostError, StillRunsError, UsageError
from meshlab.implementations import Choice, resolve
from meshlab.lab import cluster, enrolment, join
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.running.programs import Program
from meshlab.lab.running.readiness import wait_for_programs
from meshlab.lab.site import NodeProxy, Site, enrolled_keys
from meshlab.lab.transition import Transitions
from meshlab.model import InstanceId, Pod
from meshlab.topology.notes import did_you_mean, listed

_TIMEOUT_S = 20.0
_DRAIN_S = 40.0
"""How long a node proxy may let what is open go on after SIGTERM: Kubernetes gives it 30 s."""
_KILLED_S = 5.0
_VERBS = ("ztunnel", "waypoint", "agent", "control-plane", "program")
"""Roles that verbs work on. The recorder and the echoes are the lab's own eyes and hands."""


def instance(transitions: Transitions, name: str) -> Instance:
    """The instance that ``name`` says, of which one generation at least was started.

    Raises:
        UsageError: there is none.
    """
    known = [str(known.first) for known in tuple(transitions.site.programs.every)]
    try:
        asked = InstanceId.parse(name)
    except ValueError:
        asked = None
    if asked is None or str(asked.first) not in known:
        choices = list(dict.fromkeys(known))
        raise UsageError(f"no instance '{name}' in this lab ({listed(choices)}).{did_you_mean(name, choices)}")
    return Instance(transitions, asked.first)


@checks_arguments
class Instance:
    """One instance, whichever generation of it runs. Made by ``lab.instance``."""

    def __init__(self, transitions: Transitions, first: InstanceId) -> None:
        self._transitions = transitions
        self._site = transitions.site
        self.id = first

    def __repr__(self) -> str:
        return f"<{self.id}: {'runs' if self.running else 'does not run'}, generation {self.generation}>"

    @property
    def name(self) -> str:
        """``ztunnel@node-1``."""
        return str(self.id)

    @property
    def running(self) -> bool:
        return bool(self._site.programs.running(self.id))

    @property
    def generation(self) -> int:
        """How often it was started again."""
        return self._newest.id.generation

    @property
    def pid(self) -> int:
        """Of its newest generation, in the lab's pid namespace."""
        return self._newest.pid

    def wait_generation(self, generation: int, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until this generation has started. A pod's program must also listen on the ports that its pod declares.

        Raises:
            DeadlineError: it was not within ``timeout_s``.
            LabError: it ended, or the time was over, before it listened.
        """
        deadline = time.monotonic() + timeout_s
        seen = self._site.changes
        while self.generation < generation:
            if not self._site.wait_for_change(seen, deadline - time.monotonic()):
                started = f"{self.generation} generations after its first"
                raise DeadlineError(f"{self.name} was started {started} within {timeout_s:g} s, not {generation}")
            seen = self._site.changes
        pods = [pod for pod in self._site.mesh.pods if pod.key == self.id.place and pod.program is not None]
        wait_for_programs(self._site, pods, self._site.mesh, deadline)

    def logs(self, generation: int | None = None) -> str:
        """What it has printed; of its newest generation, if no other is asked for.

        Raises:
            UsageError: there was no such generation.
        """
        wanted = self._newest.id if generation is None else InstanceId(self.id.role, self.id.place, generation)
        if wanted not in self._site.programs.every:
            raise UsageError(f"{self.name} has no generation {generation}: the newest is {self.generation}")
        return self._site.programs.logs(str(wanted))

    # --- ending ------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it at once (SIGKILL); only a verb or ``reset`` starts it again, whatever its ``restartPolicy`` says."""
        self._end(signal.SIGKILL, _KILLED_S)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = _DRAIN_S) -> None:
        """Ask it to end, as a cluster does, and wait until it has.

        Raises:
            StillRunsError: it still runs.
        """
        self._end(number, timeout_s)

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP), as a machine that has no time for it; connections stay."""
        self._pause(paused=True)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._pause(paused=False)

    # --- starting ----------------------------------------------------------------------------------------------------

    def restart(self, timeout_s: float = _TIMEOUT_S) -> None:
        """Start it again as it was started; where it runs it is asked to end first, and is killed when it does not.

        Raises:
            NotAcknowledgedError, NotEnrolledError, LabError: it was not in effect in time.
        """
        self._allow()
        with self._transitions.alone:
            _end(self._site, self._site.programs.running(self.id), signal.SIGTERM, _KILLED_S, kill=True)
            self._started(timeout_s)

    def upgrade(self, to: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        """Start another version beside it, which takes over; then ask the old one to end, and wait until it has.

        Args:
            to: ``reference``, an entry point's name or ``[NAME=]PATH``; ``same``, or nothing: what runs there now. In a
                lab with a mutant or a variant of the reference, that is what ``reference`` means.

        Raises:
            UsageError: it is no node proxy, or ``to`` names nothing.
            NotAcknowledgedError, NotEnrolledError: the new one was not in effect in time; the old one still runs.
        """
        if self.id.role != "ztunnel":
            raise UsageError(f"{self.name} has no versions: upgrade() is for ztunnel@NODE; there is restart()")
        same = to in (None, "same")
        choice = self._site.choices[self.id.place] if same else self._site.settings.played(resolve(to or ""))
        if choice.proxy is None:
            raise UsageError(f"'{to}' starts nothing: kill() ends a node proxy")
        with self._transitions.alone:
            _upgrade(self._transitions, self.id.place, choice, timeout_s)

    # --- how ---------------------------------------------------------------------------------------------------------

    @property
    def _newest(self) -> Program:
        program = self._site.programs.newest(self.id)
        assert program is not None, "it was started"
        return program

    def _allow(self) -> None:
        if self.id.role not in _VERBS:
            raise UsageError(f"{self.name} is the lab's own: verbs are for {', '.join(_VERBS)}")

    def _pause(self, *, paused: bool) -> None:
        self._allow()
        for program in self._site.programs.running(self.id):
            self._site.sandbox.kill(program.pid, signal.SIGSTOP if paused else signal.SIGCONT)
            program.paused = paused

    def _end(self, number: int, timeout_s: float) -> None:
        self._allow()
        self._transitions.restarts.keep_down(self.id)
        _end(self._site, self._site.programs.running(self.id), number, timeout_s)

    def _started(self, timeout_s: float) -> None:
        _start(self._transitions, self.id, timeout_s)


@checks_arguments
class NodeHandle:
    """One node. Made by ``lab.node``."""

    def __init__(self, transitions: Transitions, name: str) -> None:
        self._transitions = transitions
        self.name = name

    def __repr__(self) -> str:
        return f"<node {self.name}>"

    def reboot(self, timeout_s: float = _TIMEOUT_S) -> None:
        """End everything on the node at once, its pods too, and start it again: the same pods, at their addresses.

        Nobody is told beforehand, as when a machine loses its power. The node's own netns stays, and with it what is
        captured on it.

        Raises:
            NotEnrolledError, NotAcknowledgedError, LabError: it was not in effect in time.
        """
        transitions, site = self._transitions, self._transitions.site
        with transitions.alone:
            pods = [pod for pod in site.mesh.pods if pod.node == self.name]
            programs = [
                program
                for role in ("agent", "ztunnel", "echo")
                for program in site.programs.running(InstanceId(role, self.name))
            ]
            transitions.captures.leaving(pods)
            transitions.connections.end_of([pod.key for pod in pods])
            _end(site, programs, signal.SIGKILL, _KILLED_S)
            join.end_programs(site, pods, grace_s=0)
            join.leave(site, pods)
            cluster.start_agent(site, self.name)
            cluster.start_echo(site, self.name)
            choice = site.choices[self.name]
            if choice.proxy is not None:
                _launch(transitions, self.name, choice, 0)
            transitions.come_again(pods, timeout_s)


# --- ending ----------------------------------------------------------------------------------------------------------


def _end(site: Site, programs: list[Program], number: int, timeout_s: float, *, kill: bool = False) -> None:
    """Send a signal to programs on purpose and wait for their ends.

    Args:
        kill: what has not ended in time is killed.

    Raises:
        StillRunsError: one still runs.
    """
    for program in programs:
        _forget(site, program)
        _signal(site, program, signal.SIGCONT)  # a paused one hears nothing but SIGKILL
        _signal(site, program, number)
    deadline = time.monotonic() + timeout_s
    for program in programs:
        try:
            site.sandbox.wait_exit(program.pid, max(0.001, deadline - time.monotonic()))
        except StillRunsError:
            if not kill:
                raise
            _signal(site, program, signal.SIGKILL)
            site.sandbox.wait_exit(program.pid, _KILLED_S)
        if program.peer is not None:
            site.heard += program.peer.drain()
            program.peer.close()
    site.note_change()


def _signal(site: Site, program: Program, number: int) -> None:
    """Send a signal to a program, which may have ended by itself meanwhile."""
    try:
        site.sandbox.kill(program.pid, number)
    except KernelRefusedError as error:
        if error.errno != errno.ESRCH:
            raise


def _forget(site: Site, program: Program) -> None:
    """It is about to end because somebody asked for it: nobody waits for it any more."""
    program.ended_by_us = True
    for node, proxies in site.proxies.items():
        site.proxies[node] = [proxy for proxy in proxies if proxy.instance != program.id]
    if program.id.role == "waypoint":
        site.waypoints.pop(program.id.place, None)


# --- starting --------------------------------------------------------------------------------------------------------


def _start(transitions: Transitions, first: InstanceId, timeout_s: float) -> None:
    """Start the next generation of what does not run, and wait until it is in effect."""
    match first.role:
        case "ztunnel":
            _start_proxy(transitions, first.place, timeout_s)
        case "agent":
            _start_agent(transitions, first.place, timeout_s)
        case "control-plane":
            transitions.start_control_plane(None, timeout_s)
        case "waypoint":
            _start_waypoint(transitions, first.place, timeout_s)
        case _:
            _start_program(transitions, first.place, timeout_s)


def whole_again(transitions: Transitions, timeout_s: float) -> None:
    """Take back what verbs have done to programs: what was paused goes on, what was ended is started, what was upgraded
    is what it was.

    Raises:
        NotAcknowledgedError, NotEnrolledError, LabError: it was not in effect in time.
    """
    site = transitions.site
    with transitions.alone:
        for program in list(site.programs.every.values()):
            if program.paused:
                site.sandbox.kill(program.pid, signal.SIGCONT)
                program.paused = False
        first: list[InstanceId] = [InstanceId("control-plane")]
        first += [InstanceId("agent", node.name) for node in site.topology.nodes]
        first += [
            InstanceId("ztunnel", node) for node, choice in site.first_choices.items() if choice.proxy is not None
        ]
        first += [InstanceId("program", pod.key) for pod in site.mesh.pods if pod.program is not None]
        first += [InstanceId("waypoint", pod.key) for pod in site.mesh.pods if pod.gateway]
        for one in first:
            newest = site.programs.newest(one)
            if newest is not None and (newest.ended_by_us or newest.kept_down) and not site.programs.running(one):
                _start(transitions, one, timeout_s)
        for node, choice in site.first_choices.items():
            if site.choices[node] != choice:
                _upgrade(transitions, node, choice, timeout_s)


def _start_proxy(transitions: Transitions, node: str, timeout_s: float) -> None:
    choice = transitions.site.choices[node]
    proxy = _launch(transitions, node, choice, 0)
    _wait_in_effect(transitions, proxy, node, timeout_s)


def _launch(transitions: Transitions, node: str, choice: Choice, place: int) -> NodeProxy:
    site = transitions.site
    proxy = cluster.next_proxy(site, node, choice, place)
    site.proxies[node].append(proxy)
    if site.peer("control-plane") is not None:
        transitions.configuration.admit()
    cluster.launch(site, node, proxy)
    site.note_change()
    return proxy


def _wait_in_effect(transitions: Transitions, proxy: NodeProxy, node: str, timeout_s: float) -> None:
    """Wait until a node proxy has everything that is served, and every pod of its node."""
    deadline = time.monotonic() + timeout_s
    transitions.publish_again(timeout_s)
    _wait_synced(transitions.site, node, transitions.site.programs.by_name[str(proxy.instance)], deadline)


def _wait_synced(site: Site, node: str, program: Program | None, deadline: float) -> None:
    """Wait until the agent of ``node`` has the acknowledgement of a proxy (any, if none is given) for all its pods."""
    agent = site.peer("agent", node)
    if agent is None or not site.proxies[node]:
        return
    wanted = {pod.uid for pod in _members(site, node)}
    pid = None if program is None else program.pid

    def synced() -> bool | None:
        said = [event for event in tuple(agent.events) if event["event"] == "synced"]
        return any((pid is None or event["pid"] == pid) and wanted <= set(event["pods"]) for event in said) or None

    _until(site, agent.name, synced, deadline, f"the node proxy of {node} has not acknowledged all its pods")


def _until(site: Site, name: str, reached: Callable[[], bool | None], deadline: float, what: str) -> None:
    peer = site.programs.by_name[name].peer
    assert peer is not None
    if not peer.until(reached, max(0.0, deadline - time.monotonic())):
        raise LabError(f"{what}{enrolment.last_words(site)}")


def _members(site: Site, node: str) -> list[Pod]:
    """The pods of the mesh that are on ``node`` now."""
    return [
        pod
        for pod in site.mesh.pods
        if pod.node == node and pod.key in site.pods and site.mesh.is_enrolled(pod) and pod.key not in site.pending
    ]


def _start_agent(transitions: Transitions, node: str, timeout_s: float) -> None:
    site = transitions.site
    cluster.start_agent(site, node, _members(site, node))
    site.note_change()
    _wait_synced(site, node, None, time.monotonic() + timeout_s)


def _start_program(transitions: Transitions, key: str, timeout_s: float) -> None:
    site = transitions.site
    pod = next((pod for pod in site.mesh.pods if pod.key == key), None)
    if pod is None or pod.program is None:
        raise LabLostError(f"{key} has gone, so that nothing can be started there")
    join.start(site, pod, pod.program)
    site.note_change()
    wait_for_programs(site, [pod], site.mesh, time.monotonic() + timeout_s)


def _start_waypoint(transitions: Transitions, key: str, timeout_s: float) -> None:
    pod = next((pod for pod in transitions.site.mesh.pods if pod.key == key and pod.gateway), None)
    if pod is None:
        raise LabLostError(f"{key} has gone, so that nothing can be started there")
    transitions.start_waypoint(pod)
    transitions.site.note_change()
    transitions.publish_again(timeout_s)


def _upgrade(transitions: Transitions, node: str, choice: Choice, timeout_s: float) -> None:
    site = transitions.site
    old = list(site.proxies[node])
    place = 1 - old[-1].place if old else 0
    cluster.make_place(site, node, place)
    transitions.captures.rewired(site.mesh.pods, enrolled_keys(site.mesh))
    proxy = _launch(transitions, node, choice, place)
    try:
        _wait_in_effect(transitions, proxy, node, timeout_s)
    except BaseException:
        _end(site, [site.programs.by_name[str(proxy.instance)]], signal.SIGKILL, _KILLED_S)
        raise
    site.choices[node] = choice
    running = [site.programs.by_name[str(one.instance)] for one in old]
    _end(site, running, signal.SIGTERM, _DRAIN_S, kill=True)
    transitions.configuration.admit()
