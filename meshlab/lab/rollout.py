"""What a change of a lab did, and when: ``lab.apply`` and its like return it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from meshlab.errors import DeadlineError


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a transition as it was carried out."""

    name: str
    pods: tuple[str, ...]
    """Those that it was about, ``namespace/name``."""
    began_ns: int
    """CLOCK_REALTIME."""
    ended_ns: int

    def __str__(self) -> str:
        about = f" {', '.join(self.pods[:3])}{', ...' if len(self.pods) > 3 else ''}" if self.pods else ""
        return f"{self.name}{about}: {(self.ended_ns - self.began_ns) / 1e6:.1f} ms"


@dataclass(slots=True)
class Rollout:
    """What a transition did and when; with ``wait=False`` it is still under way."""

    began_ns: int = field(default_factory=time.time_ns)
    steps: list[Step] = field(default_factory=list)
    """Those that are done, in order."""
    in_effect_ns: int = 0
    """When it was in effect; 0 while it is not."""
    _over: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it is over: in effect, or undone."""
        return self._over.is_set()

    @property
    def took_ms(self) -> float:
        """From the call until it was in effect; 0 while it is not."""
        return round((self.in_effect_ns - self.began_ns) / 1e6, 3) if self.in_effect_ns else 0.0

    def wait(self, timeout_s: float = 60.0) -> Rollout:
        """Wait until it is in effect.

        Raises:
            DeadlineError: it is not over after ``timeout_s``; it goes on.
            Whatever ``lab.apply`` raises.
        """
        if not self._over.wait(timeout_s):
            raise DeadlineError(f"the change is still under way after {timeout_s:g} s: {self}")
        if self._failure is not None:
            raise self._failure
        return self

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps)) or "nothing done yet"

    def end(self, failure: BaseException | None = None) -> None:
        """It is over: in effect, or ended by ``failure`` and undone."""
        self._failure = failure
        self._over.set()


def timings_ms(rollout: Rollout, took_ms: float) -> dict[str, float]:
    """Return how long a lab took from nothing: ``build``, until every program ran; ``ready``, until all was in effect.

    Args:
        rollout: the one that made the lab's pods.
        took_ms: from the beginning of the lab until ``rollout`` was in effect.
    """
    began_ns = rollout.in_effect_ns - took_ms * 1e6
    built = [step.ended_ns for step in rollout.steps if step.name in ("open", "start")] or [rollout.began_ns]
    return {"build": round((built[-1] - began_ns) / 1e6, 1), "ready": round(took_ms, 1)}
