"""``meshlab fuzz --histories``: what happens to a living mesh, drawn, played, and told as a file when it fails.

An example is a whole file with steps (``strategies.histories``). What is told of one that failed is the file up to the
step that failed: first only the last few of its steps, then all that happened, and then the calls as well. Of what is
told ``shrink`` takes away what is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from meshlab.model import CallStep, Step, Topology
from meshlab.play.faults import Wrong
from meshlab.play.moments import expecting
from meshlab.play.replay import steps_of
from meshlab.strategies.histories import histories
from meshlab.topology import after

_ENDINGS = (3, 6, 12)
"""Numbers of steps."""


@dataclass(frozen=True, slots=True)
class History:
    """An example of a campaign."""

    topology: Topology

    def __repr__(self) -> str:
        """Short: whole it has some kB."""
        return f"<history of {len(self.topology.steps)} steps>"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))


def drawn(topology: Topology, most: int) -> st.SearchStrategy[History]:
    """Histories of the pods of ``topology``, of up to ``most`` things that happen."""
    return histories(topology, most).map(History)


def first(topology: Topology) -> History:
    """Nothing is drawn: what the file itself expects, and its steps."""
    return History(replace(topology, expect=(), steps=steps_of(topology)))


def endings(history: History, wrong: Sequence[Wrong]) -> Iterator[Topology]:
    """The last few steps that led to the first of ``wrong``; the fewest come first.

    What belongs together stands together, so that few steps are enough for most faults.
    """
    topology, place = history.topology, _place(history, wrong[0])
    for first in dict.fromkeys(max(0, place + 1 - length) for length in _ENDINGS):
        told = expecting(_from(topology, first, topology.steps[first : place + 1]))
        if told is not None:
            yield told


def _from(topology: Topology, first: int, steps: tuple[Step, ...]) -> Topology:
    """``steps``, of which the first stands at ``first``, with the pods of the file and the policies of that moment."""
    mesh = topology.mesh
    for step in topology.steps[:first]:
        mesh = after(replace(topology, mesh=mesh), step)
    mesh = replace(
        topology.mesh,
        namespaces=mesh.namespaces,
        authorization_policies=mesh.authorization_policies,
        peer_authentications=mesh.peer_authentications,
    )
    return replace(topology, mesh=mesh, expect=(), steps=steps)


def _place(history: History, wrong: Wrong) -> int:
    return len(history.topology.steps) - 1 if wrong.kind in ("lost", "rejected") else wrong.stage


def stories(history: History, wrong: Sequence[Wrong]) -> Iterator[Topology]:
    """Every way to tell all that led to the first of ``wrong``; the shortest come first."""
    topology = history.topology
    until = topology.steps[: _place(history, wrong[0]) + 1]
    happened = tuple(step for step in until[:-1] if not isinstance(step, CallStep))
    for steps in ((*happened, *until[-1:]), until, topology.steps):
        told = expecting(replace(topology, expect=(), steps=steps))
        if told is not None:
            yield told
