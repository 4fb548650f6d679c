"""What a lab is built with besides its topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypedDict, get_type_hints

from meshlab.errors import UsageError
from meshlab.implementations import (
    Choice,
    Reference,
    ReferenceWaypoint,
    WaypointChoice,
    installed_envoy,
    resolve,
    resolve_waypoint,
)
from meshlab.lab.arguments import check_value
from meshlab.lab.steps import Step, no_step
from meshlab.model import Topology
from meshlab.testing.registry import accept, find
from meshlab.topology.notes import did_you_mean, listed

AfterNack = Literal["resend", "leave"]

ENTRIES: Mapping[str, str] = {
    "agent": "meshlab.agent.main:main",
    "analyzer": "meshlab.proofs.follower:Follower",
    "controlplane": "meshlab.controlplane.main:main",
    "echo": "meshlab.apps.echo:main",
    "recorder": "meshlab.kernel.recorder:main",
}
"""Part -> ``package.module:name`` of what plays it. A mutant is another one, named, never imported here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to build a lab; every field has a default that suits a test."""

    ztunnel: str | None = None
    """``reference``, ``none``, an entry point's name or ``[NAME=]PATH``; ``None``: what the topology says."""
    ztunnel_at: Mapping[str, str] = field(default_factory=dict)
    """Node -> its own node proxy, as ``ztunnel`` says it; it beats ``ztunnel`` and what the topology says."""
    waypoint: str | None = None
    """``reference``, ``envoy``, ``none``, an entry point's name or ``[NAME=]PATH`` of an Envoy; ``None``: what the
    topology says."""
    mutant: str | None = None
    """A deliberately broken part, by name."""
    variant: str | None = None
    """An unusual but right reference, by name."""
    ready_timeout_s: float | None = None
    """``None``: what the topology says."""
    record: bool = False
    """Keep the conversation of control plane and agents with the proxies."""
    keylog: bool = False
    """Have reference ztunnels hand over the secrets of their TLS sessions, so that captures can be read."""
    binds: Sequence[str] = ()
    """Host folders, under /tmp, that the lab's programs may read."""
    allow_pending: bool = False
    """Open the links of pods that are still pending at the deadline, instead of raising ``NotEnrolledError``."""
    after_nack: AfterNack = "resend"
    """What the control plane does when a proxy refuses a configuration: ``resend`` the version before at once, so that
    all are alike again, or ``leave`` it as Istio does, so that it is seen what the proxy keeps."""
    step: Step = no_step
    entries: Mapping[str, str] = field(default_factory=dict)
    """Parts played by something else than ``ENTRIES`` say: for tests of the lab itself."""

    def __post_init__(self) -> None:
        """Raises ``UsageError``: a value is of another type, or mutant and variant are none, or exclude each other."""
        for name, hint in get_type_hints(Settings).items():
            check_value(name, getattr(self, name), hint)
        for part in self.entries:
            if part not in ENTRIES:
                raise UsageError(
                    f"a lab has no part '{part}' to play ({listed(ENTRIES)}).{did_you_mean(part, ENTRIES)}"
                )
        accept(self.mutant, self.variant)

    def part(self, name: str) -> str:
        """What plays a part, mutant included."""
        for chosen in (self.mutant, self.variant):
            if chosen and (found := find(chosen)).part == name:
                return found.entry
        return self.entries.get(name) or ENTRIES[name]

    def played(self, choice: Choice) -> Choice:
        """``choice``, or what plays the reference in this lab: a mutant or a variant of it."""
        for name in filter(None, (self.mutant, self.variant)):
            if (found := find(name)).part == "ztunnel":
                choice = _made_of(choice, name, found.entry)
        return choice

    def choices(self, topology: Topology) -> dict[str, Choice]:
        """The node proxy of each node.

        Raises:
            UsageError: an option names nothing, or a mutant of the reference has no reference to break.
        """
        everywhere, names = self.ztunnel or topology.ztunnel, [node.name for node in topology.nodes]
        for name in self.ztunnel_at:
            if name not in names:
                raise UsageError(f"ztunnel_at: no node '{name}' ({listed(names)}).{did_you_mean(name, names)}")
        chosen = {
            node.name: resolve(self.ztunnel_at.get(node.name) or node.ztunnel or everywhere) for node in topology.nodes
        }
        for name in filter(None, (self.mutant, self.variant)):
            if find(name).part != "ztunnel":
                continue
            if not any(isinstance(choice.proxy, Reference) for choice in chosen.values()):
                raise UsageError(f"'{name}' is made of the reference ztunnel, and no node runs that one")
        return {node: self.played(choice) for node, choice in chosen.items()}

    def waypoint_choice(self, topology: Topology) -> WaypointChoice:
        """What runs as waypoints.

        Raises:
            UsageError: an option names nothing, or a mutant of the reference has no reference to break.
        """
        given = (find(name) for name in (self.mutant, self.variant) if name)
        own = [found for found in given if found.part == "waypoint"]
        usual = "reference" if own or installed_envoy() is None else "envoy"
        choice = resolve_waypoint(self.waypoint or topology.waypoint or usual)
        for found in own:
            if not isinstance(choice.proxy, ReferenceWaypoint):
                raise UsageError(f"'{found.name}' is made of the reference waypoint, and {choice.name} runs")
            choice = WaypointChoice(f"{choice.name} ({found.name})", ReferenceWaypoint(found.entry))
        return choice


class LabSettings(TypedDict, total=False):
    """The fields of ``Settings`` as keyword arguments."""

    ztunnel: str | None
    ztunnel_at: Mapping[str, str]
    waypoint: str | None
    mutant: str | None
    variant: str | None
    ready_timeout_s: float | None
    record: bool
    keylog: bool
    binds: Sequence[str]
    allow_pending: bool
    after_nack: AfterNack
    step: Step
    entries: Mapping[str, str]


def settings_of(given: LabSettings) -> Settings:
    """The settings that keyword arguments say.

    Raises:
        UsageError: there is no setting of that name, or its value will not do.
    """
    names = [field.name for field in fields(Settings)]
    for name in given:
        if name not in names:
            raise UsageError(f"a lab has no setting '{name}' ({listed(names)}).{did_you_mean(name, names)}")
    return Settings(**given)


def _made_of(choice: Choice, name: str, entry: str) -> Choice:
    if not isinstance(choice.proxy, Reference):
        return choice
    return Choice(f"{choice.name} ({name})", replace(choice.proxy, entry=entry))
