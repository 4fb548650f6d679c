"""What should become of connections that are held open while a mesh changes. Pure.

a policy that denies it, a pod of it that goes         it is closed
a pod of it that enters or leaves the mesh             nobody can say: a proxy may cut or keep it
a node proxy of it that ends, a node that reboots      nobody can say: there is no hand-over
everything else, also an agent or a control plane
that comes back, and policies that allow it            it stays alive
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from meshlab.lab.calls.names import behind
from meshlab.model import (
    AskStep,
    ConnectStep,
    InstanceId,
    Mesh,
    Pod,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
)
from meshlab.oracle import expected
from meshlab.topology import after


@dataclass(slots=True)
class _Line:
    source: Pod
    destination: Pod
    port: int
    step: ConnectStep
    alive: bool | None = True


@dataclass(slots=True)
class Fates:
    """The connections that are held, by name, and what is known of each."""

    _lines: dict[str, _Line] = field(default_factory=dict)

    def alive(self, name: str) -> bool | None:
        """Whether the connection ``name`` should answer now; ``None``: nobody can say."""
        line = self._lines.get(name)
        return line.alive if line else None

    def nodes(self) -> frozenset[str]:
        """Those on which a connection may be open, so that a node proxy waits for it before it ends."""
        held = [line for line in self._lines.values() if line.alive is not False]
        return frozenset(pod.node for line in held for pod in (line.source, line.destination))

    def open(self, mesh: Mesh, step: ConnectStep) -> bool | None:
        """It is opened: ``True`` where it can be said where it goes, and policies allow it; else ``None``."""
        self._lines.pop(step.name, None)
        source = next((pod for pod in mesh.pods if pod.key == step.source), None)
        reached = behind(mesh, step.to)
        if source is None or len(reached) != 1:
            return None
        line = _Line(source, *reached[0], step)
        if not _allowed(mesh, line):
            return None
        self._lines[step.name] = line
        return True

    def live_through(self, before: Mesh, now: Mesh, step: Step) -> None:
        """``step`` is done, and has made ``now`` of ``before``."""
        for line in self._lines.values():
            if line.alive is not False:
                line.alive = _lived_through(line, before, now, step)


def fates(topology: Topology) -> Iterator[tuple[int, bool | None]]:
    """The place of each ``ConnectStep`` and ``AskStep``, and whether it should open, or answer; ``None``: who knows.

    Raises:
        TopologyError: a step changes what is not there.
    """
    mesh, held = topology.mesh, Fates()
    for place, step in enumerate(topology.steps):
        match step:
            case ConnectStep():
                yield place, held.open(mesh, step)
            case AskStep():
                yield place, held.alive(step.name)
            case _:
                now = after(replace(topology, mesh=mesh), step)
                held.live_through(mesh, now, step)
                mesh = now


def _allowed(mesh: Mesh, line: _Line) -> bool:
    ends = mesh.pod(line.source.key), mesh.pod(line.destination.key)
    return expected(mesh, *ends, line.port, line.step.family or 4).passage == "allow"


def _lived_through(line: _Line, before: Mesh, now: Mesh, step: Step) -> bool | None:
    uids = {pod.uid for pod in now.pods}
    ends = (line.source, line.destination)
    if any(pod.uid not in uids for pod in ends):
        return False
    moved = any(before.is_enrolled(before.pod(pod.key)) != now.is_enrolled(now.pod(pod.key)) for pod in ends)
    if moved or _is_shaken(line, step):
        return None
    if line.alive and not _allowed(now, line):
        return False
    if line.alive and now != before and not _allowed(_half_way(now), line):
        return None
    return line.alive


def _half_way(mesh: Mesh) -> Mesh:
    """``mesh`` while it comes into effect: a policy is there before the workloads say that its selector chooses them.

    A proxy that judges open connections again at each message may cut what both the mesh before and this one allow.
    """
    return replace(
        mesh,
        authorization_policies=tuple(policy for policy in mesh.authorization_policies if not policy.selector),
        peer_authentications=tuple(policy for policy in mesh.peer_authentications if not policy.selector),
    )


def _is_shaken(line: _Line, step: Step) -> bool:
    """Whether a verb ends, or stops, something that the connection hangs on."""
    match step:
        case VerbStep(verb="reboot"):
            return step.instance in (line.source.node, line.destination.node)
        case VerbStep():
            keeps = InstanceId.parse(step.instance).role in ("control-plane", "agent")
            return not keeps or step.verb not in ("restart", "kill", "stop")
        case TrafficStep():
            return True
        case _:
            return False
