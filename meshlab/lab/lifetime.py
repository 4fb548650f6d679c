"""``open_lab`` builds a lab from a topology and closes it again. It decides which folders of the host the lab sees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from meshlab.errors import AuditError, TopologyError
from meshlab.implementations import EnvoyWaypoint
from meshlab.lab.arguments import check_value
from meshlab.lab.lab import Lab
from meshlab.lab.settings import LabSettings, Settings, settings_of
from meshlab.lab.sources import Source, read
from meshlab.model import Step, Topology, TrafficStep, VerbStep


@contextmanager
def open_lab(source: Source | Topology | Path | str, **settings: Unpack[LabSettings]) -> Iterator[Lab]:
    """Build a lab, and close it in the end; the audit raises where something was not as it should be.

    Args:
        source: a shipped name, a path, YAML text, or what ``sources.read`` or ``topology.load`` gave.
        settings: the fields of ``Settings``.

    Raises:
        UsageError: an argument names nothing, or is of another type.
        TopologyError: the file cannot be used.
        HostNotReadyError: this machine cannot hold a lab.
        NotEnrolledError: a pod was not in the mesh in time.
        AuditError: when the lab closed, something was not as it should be.
    """
    chosen = settings_of(settings)
    check_value("source", source, Source | Topology | Path | str)
    if isinstance(source, Path | str):
        source = read(str(source))
    if isinstance(source, Source) and source.unrunnable:
        raise TopologyError(source.unrunnable)
    topology, path = (source.topology, source.path) if isinstance(source, Source) else (source, None)
    visible = (*topology.mounts, *([str(path.resolve().parent)] if path else ()), *_folders_of_programs(topology))
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


def _folders_of_programs(topology: Topology) -> list[str]:
    """Return the folder of each program, and of each argument that names an existing path."""
    programs = [program for pod in topology.mesh.pods for program in (*pod.init, pod.program) if program]
    programs += [program for program in topology.images.values() if program]
    words = [word for program in programs for word in program.argv]
    return [os.path.dirname(os.path.abspath(word)) for word in words if "/" in word and os.path.exists(word)]


def _verbs(steps: Sequence[Step]) -> Iterator[VerbStep]:
    """Return the verbs among the steps, those under traffic too."""
    for step in steps:
        if isinstance(step, VerbStep):
            yield step
        elif isinstance(step, TrafficStep):
            yield from _verbs(step.during)


def _folders_of_proxies(settings: Settings, topology: Topology) -> list[str]:
    """Return the folder of each node proxy that the settings, the file or its steps give as a path."""
    texts = [settings.ztunnel, topology.ztunnel, *(node.ztunnel for node in topology.nodes)]
    texts += [*settings.ztunnel_at.values(), *(step.to for step in _verbs(topology.steps))]
    paths = [text.partition("=")[2] or text for text in texts if text and "/" in text]
    waypoint = settings.waypoint_choice(topology).proxy
    paths += [str(waypoint.path)] if isinstance(waypoint, EnvoyWaypoint) else []
    return [os.path.dirname(os.path.realpath(os.path.expanduser(path))) for path in paths]
