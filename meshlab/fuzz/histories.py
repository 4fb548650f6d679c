"""``meshlab fuzz --histories``: what happens to a living mesh, drawn, played, and told as a file when it fails.

An example is a whole file with steps (``strategies.histories``). What is told of one that failed is the file up to the
step that failed, first with all that happened and then, to be made smaller, with less of it (``shrink``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from meshlab.model import CallStep, Topology
from meshlab.play.faults import Wrong
from meshlab.play.moments import expecting
from meshlab.strategies.histories import histories


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
    """Nothing happens: what the file itself expects."""
    return History(topology)


def stories(history: History, wrong: Sequence[Wrong]) -> Iterator[Topology]:
    """Every way to tell what led to the first of ``wrong``; the shortest come first."""
    topology, place = history.topology, wrong[0].stage
    if wrong[0].kind in ("lost", "rejected"):
        place = len(topology.steps) - 1
    until = topology.steps[: place + 1]
    happened = tuple(step for step in until[:-1] if not isinstance(step, CallStep))
    for steps in ((*happened, *until[-1:]), until, topology.steps):
        told = expecting(replace(topology, expect=(), steps=steps))
        if told is not None:
            yield told
