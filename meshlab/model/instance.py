"""What runs in a lab, where, and which time round. Text forms of it are made and read here, and nowhere else.

ztunnel@node-1      agent@node-1      echo@node-1       a program of the lab's, on a node
waypoint@shop/gate                                      what runs in the pod ``shop/gate`` for its Gateway
control-plane       recorder                            one for the whole lab
shop/server                                             what the pod ``shop/server`` runs (also program@shop/server)
ztunnel@node-1#2                                        its third generation: each start of the same one is another
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Role = Literal["ztunnel", "waypoint", "agent", "control-plane", "echo", "recorder", "program"]
_ROLES: tuple[Role, ...] = get_args(Role)
_OF_THE_LAB = ("control-plane", "recorder")


@dataclass(frozen=True, slots=True, order=True)
class InstanceId:
    role: Role
    place: str = ""
    """A node; the pod, ``namespace/name``, of a ``program`` or a ``waypoint``; empty for what the lab has once."""
    generation: int = 0
    """How often it was started before."""

    def __str__(self) -> str:
        generation = f"#{self.generation}" if self.generation else ""
        if self.role == "program":
            return f"{self.place}{generation}"
        return f"{self.role}@{self.place}{generation}" if self.place else f"{self.role}{generation}"

    @classmethod
    def parse(cls, text: str) -> InstanceId:
        """Read the text form.

        Raises:
            ValueError: it names no role, or lacks its place.
        """
        name, _, generation = text.partition("#")
        if generation and not (generation.isascii() and generation.isdigit()):
            raise ValueError(f"'{text}': behind the # is a number, such as {name}#1")
        number = int(generation or 0)
        role, at, place = name.partition("@")
        if not at and "/" in name:
            return cls("program", name, number)
        found = next((known for known in _ROLES if known == role), None)
        if found is None or (found in _OF_THE_LAB) == bool(place):
            raise ValueError(
                f"'{text}' is no instance: write ztunnel@NODE, agent@NODE, waypoint@NAMESPACE/NAME, control-plane or"
                f" NAMESPACE/POD"
            )
        return cls(found, place, number)

    @classmethod
    def init(cls, pod: str, number: int) -> InstanceId:
        """The init container ``number``, from 0 on, of ``pod``: ``namespace/name/init-0``."""
        return cls("program", f"{pod}/init-{number}")

    @property
    def is_init(self) -> bool:
        """Whether it is an init container's."""
        return self.role == "program" and self.place.count("/") > 1

    @property
    def first(self) -> InstanceId:
        """Its first generation: what all of them have in common."""
        return replace(self, generation=0)

    def next(self) -> InstanceId:
        return replace(self, generation=self.generation + 1)
