"""What a lab is built with besides its topology."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from meshlab.errors import UsageError
from meshlab.implementations import Choice, Reference, resolve
from meshlab.lab.steps import Step, no_step
from meshlab.model import Topology
from meshlab.testing.registry import accept, find

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
    binds: tuple[str, ...] = ()
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
        """Raises ``UsageError``: mutant and variant are none, or cannot be had together; no such ``after_nack``."""
        if self.after_nack not in get_args(AfterNack):
            raise UsageError(f"no after_nack '{self.after_nack}' (there are {', '.join(get_args(AfterNack))})")
        accept(self.mutant, self.variant)

    def part(self, name: str) -> str:
        """What plays a part, mutant included."""
        for chosen in (self.mutant, self.variant):
            if chosen and (found := find(chosen)).part == name:
                return found.entry
        return self.entries.get(name) or ENTRIES[name]

    def choices(self, topology: Topology) -> dict[str, Choice]:
        """The node proxy of each node.

        Raises:
            UsageError: an option names nothing, or a mutant of the reference has no reference to break.
        """
        everywhere = self.ztunnel or topology.ztunnel
        chosen = {node.name: resolve(node.ztunnel or everywhere) for node in topology.nodes}
        for name in filter(None, (self.mutant, self.variant)):
            found = find(name)
            if found.part != "ztunnel":
                continue
            if not any(isinstance(choice.proxy, Reference) for choice in chosen.values()):
                raise UsageError(f"'{name}' is made of the reference ztunnel, and no node runs that one")
            chosen = {node: _made_of(choice, name, found.entry) for node, choice in chosen.items()}
        return chosen


def _made_of(choice: Choice, name: str, entry: str) -> Choice:
    if not isinstance(choice.proxy, Reference):
        return choice
    return Choice(f"{choice.name} ({name})", replace(choice.proxy, entry=entry))
