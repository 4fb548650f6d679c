"""Which mesh was in effect when. While a change is on its way both may be, and a proxy may act by either. Pure.

begin(B) ----- both A and B ----- effect()            from then on only B
begin(B) ----- both A and B ----- back()              from then on only A
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshlab.model import Mesh

_KEPT = 1000


@dataclass(frozen=True, slots=True)
class InEffect:
    """A mesh that may have been in effect from one moment to another."""

    mesh: Mesh
    since_ns: int
    until_ns: int | None = None
    """``None``: it still is."""


@dataclass(slots=True)
class History:
    """The meshes of one lab; ``clock`` gives CLOCK_REALTIME in nanoseconds."""

    clock: Callable[[], int]
    _spans: list[InEffect] = field(default_factory=list)
    """The last one or, while a change is on its way, the last two have no end."""

    def begin(self, mesh: Mesh) -> None:
        """``mesh`` is on its way into effect, or is the first."""
        self._spans.append(InEffect(mesh, self.clock()))
        del self._spans[:-_KEPT]

    def effect(self) -> None:
        """The mesh that began last is the only one in effect."""
        self._end_before(len(self._spans) - 1)

    def back(self, mesh: Mesh) -> None:
        """What began last did not come into effect; ``mesh`` is."""
        self.begin(mesh)
        self.effect()

    def between(self, since_ns: int, until_ns: int) -> tuple[Mesh, ...]:
        """Each mesh that may have been in effect at some moment of this time, oldest first."""
        return tuple(
            span.mesh
            for span in self._spans
            if span.since_ns <= until_ns and (span.until_ns is None or span.until_ns >= since_ns)
        )

    def last_effect_ns(self) -> int:
        """Since when the mesh that is in effect now is the only one."""
        return max((span.until_ns or 0 for span in self._spans), default=0) or self._spans[-1].since_ns

    def _end_before(self, place: int) -> None:
        now = self.clock()
        self._spans[:place] = [
            span if span.until_ns is not None else InEffect(span.mesh, span.since_ns, now)
            for span in self._spans[:place]
        ]
