"""What makes a failure this one, and not another that is met while it is made smaller. Pure.

    what was wrong       a verdict, bytes in clear, an identity ...
    what was expected    answered, or refused; and what was seen instead
    what came before     policies that decide the call otherwise, calls that end otherwise, or neither

A proxy may have two faults. Where a call after a change is judged by the old policies, and alone as it should be, a
call alone that fails under other policies is the other fault. So a smaller file may have less before its failing call
only if the policies in effect at that call stayed as they were: then what came before was not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from meshlab.model import AuthorizationPolicy, Outcome, PeerAuthentication, Topology, Verdict
from meshlab.play.faults import Wrong
from meshlab.play.moments import Moment, moments, states_before, verdicts

_REFUSED = {str(outcome) for outcome in Outcome if outcome in Outcome.REFUSED}


class Before(StrEnum):
    """What a verdict may be mistaken for."""

    OTHER_POLICIES = "policies that decide the call otherwise"
    OTHER_CALLS = "calls that end otherwise"


Policies = tuple[tuple[AuthorizationPolicy, ...], tuple[PeerAuthentication, ...]]


@dataclass(frozen=True, slots=True)
class Sign:
    """By which a failure is known again."""

    kind: str
    expect: Verdict | None = None
    seen: str = ""
    before: frozenset[Before] = frozenset()
    policies: Policies = ((), ())
    """In effect at the failing call."""

    def is_alike(self, other: Sign) -> bool:
        """Whether both are the same fault, whatever came before."""
        return (self.kind, self.expect, self.seen) == (other.kind, other.expect, other.seen)

    def is_kept_by(self, smaller: Sign) -> bool:
        """Whether a smaller file with the sign ``smaller`` shows what this one shows."""
        if not self.is_alike(smaller):
            return False
        same_history = smaller.before <= self.before and bool(smaller.before) == bool(self.before)
        return same_history or smaller.policies == self.policies


def sign_of(topology: Topology, wrong: Wrong) -> Sign:
    """The sign of what was wrong with the step ``wrong.stage`` of ``topology``."""
    moment = next((moment for moment in moments(topology) if moment.place == wrong.stage), None)
    if wrong.kind in ("lost", "rejected") or moment is None:
        return seen_sign(wrong)
    policies = (moment.mesh.authorization_policies, moment.mesh.peer_authentications)
    return replace(seen_sign(wrong), before=frozenset(_before(topology, moment)), policies=policies)


def seen_sign(wrong: Wrong) -> Sign:
    """What is known before it was played as a file: nothing of what came before."""
    return Sign(wrong.kind, wrong.expect, _ending(wrong)) if wrong.kind == "verdict" else Sign(wrong.kind)


def _ending(wrong: Wrong) -> str:
    """How a call of a wrong verdict ended, where what is left to chance counts as one ending.

    Which ending a refused call meets is chance, and so is which pod of several answers a request.
    """
    if wrong.seen.endswith("arrived"):
        return "arrived"
    if " calls came to " in wrong.seen:
        return "shares"
    word = wrong.seen.partition(" ")[0].rstrip(":")
    if "/" in word:
        return "answered"
    return "refused" if word in _REFUSED else word


def _before(topology: Topology, now: Moment) -> Iterator[Before]:
    if any(verdicts(mesh, now.step) != now.verdicts for mesh in states_before(topology, now.place)):
        yield Before.OTHER_POLICIES
    if any(moment.verdicts != now.verdicts for moment in moments(topology) if moment.place < now.place):
        yield Before.OTHER_CALLS
