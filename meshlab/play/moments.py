"""The calls of a file's steps, each with the mesh that is in effect when it is made. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshlab.errors import TopologyError
from meshlab.lab.calls.fates import fates
from meshlab.lab.calls.names import due, owner
from meshlab.model import (
    FAMILIES,
    AskStep,
    CallShape,
    CallStep,
    ChangeStep,
    Family,
    HttpRequest,
    Mesh,
    PolicyStep,
    Step,
    Topology,
    TrafficStep,
    Verdict,
)
from meshlab.model.route import NO_HTTP
from meshlab.topology import after


@dataclass(frozen=True, slots=True)
class Moment:
    """One call of ``spec.steps``."""

    place: int
    """Of the step, from 0."""
    step: CallStep
    mesh: Mesh
    """The one that is in effect then."""

    @property
    def verdicts(self) -> frozenset[Verdict]:
        """What the policies say at the pods that the call may reach; more than one word where they disagree."""
        return verdicts(self.mesh, self.step)


def moments(topology: Topology) -> Iterator[Moment]:
    """Every call, in order, but for those that are made during ``traffic``.

    Raises:
        TopologyError: a step changes what is not there.
    """
    mesh = topology.mesh
    for place, step in enumerate(topology.steps):
        if isinstance(step, CallStep):
            yield Moment(place, step, mesh)
        else:
            mesh = after(replace(topology, mesh=mesh), step)


def states_before(topology: Topology, place: int) -> Iterator[Mesh]:
    """The mesh as the file has it, and as each change before the step at ``place`` made it."""
    mesh = topology.mesh
    yield mesh
    for step in topology.steps[:place]:
        if isinstance(step, PolicyStep | ChangeStep | TrafficStep):
            mesh = after(replace(topology, mesh=mesh), step)
            yield mesh


def verdicts(mesh: Mesh, step: CallStep) -> frozenset[Verdict]:
    """What the policies of ``mesh`` say of the call, over each family and at each pod that it may reach."""
    families = (step.family,) if step.family else FAMILIES
    return frozenset(
        way.verdict
        for family in families
        for way in due(mesh, step.source, step.to, family, asked(mesh, step.to, family, step.shape)).ways
    )


def asked(mesh: Mesh, to: str, family: Family, shape: CallShape) -> HttpRequest | None:
    """What a call of ``shape`` asks for, as a waypoint reads it; ``None`` stands for a plain one."""
    if shape == CallShape():
        return None
    if shape.kind == "tcp":
        return NO_HTTP
    headers = [(name.lower(), value) for name, value in shape.headers]
    target = owner(mesh, to)
    address, port = target.address(family) if target else None, to.rpartition(":")[2]
    dialled = f"[{address}]:{port}" if family == 6 else f"{address}:{port}"
    return HttpRequest(
        method=shape.method,
        path=shape.path,
        authority=dict(headers).get("host", dialled),
        headers=tuple(pair for pair in headers if pair[0] != "host"),
    )


def expecting(topology: Topology) -> Topology | None:
    """``topology`` whose calls expect what the policies in effect at their time say, and its open connections, too.

    ``None`` is returned where these do not say one thing of a call: its verdict hangs on the family, or on the pod that
    answers, or nobody can answer. Whatever such a file expects, a right proxy may fail it. So is it where a
    step changes what is not there, or a pod that is not there calls in ``traffic``.
    """
    steps: list[Step] = [*topology.steps]
    try:
        if not all(_has_its_callers(mesh, step) for mesh, step in _traffic(topology)):
            return None
        for moment in moments(topology):
            said = [*moment.verdicts]
            if len(said) != 1:
                return None
            steps[moment.place] = replace(moment.step, expect=said[0])
        for place, alive in fates(topology):
            step = steps[place]
            if alive is None:
                return None
            if isinstance(step, AskStep):
                steps[place] = replace(step, alive=alive)
    except TopologyError:
        return None
    return replace(topology, steps=tuple(steps))


def _traffic(topology: Topology) -> Iterator[tuple[Mesh, TrafficStep]]:
    """Each ``traffic``, with the mesh in which it begins."""
    mesh = topology.mesh
    for step in topology.steps if any(isinstance(step, TrafficStep) for step in topology.steps) else ():
        if isinstance(step, TrafficStep):
            yield mesh, step
        mesh = after(replace(topology, mesh=mesh), step)


def _has_its_callers(mesh: Mesh, step: TrafficStep) -> bool:
    return {source for source, _ in step.pairs} <= {pod.key for pod in mesh.pods}
