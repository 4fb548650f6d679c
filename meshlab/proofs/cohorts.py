"""Which calls passed one pair of pods together, and how much they carried.

All calls that pass a pair of pods, as one of their legs, share a tunnel, whose records nobody can tell apart. So the
tunnel's packets are not taken for one call's own: calls that overlap in time form a cohort, and the tunnel must have
carried what all of them sent and got.

    call 1   |-----|                 cohort 1: calls 1 and 2
    call 2      |------|
    call 3                  |---|    cohort 2: call 3
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from meshlab.model import Call, Path

_FRAME_BYTES = 9
"""RFC 9113 4.1: the header of the smallest HTTP/2 frame. Each call asks by one and is answered by one."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Calls of which a leg joins one pair of pods, and that overlap in time, directly or by others between them."""

    started_ns: int
    ended_ns: int
    calls: int
    there_bytes: int
    """At least so many bytes went from the first of the two pods to the second."""
    back_bytes: int
    """At least so many came back."""

    def joined(self, other: Cohort) -> Cohort:
        """Both as one."""
        return Cohort(
            min(self.started_ns, other.started_ns),
            max(self.ended_ns, other.ended_ns),
            self.calls + other.calls,
            self.there_bytes + other.there_bytes,
            self.back_bytes + other.back_bytes,
        )


def alone(call: Call, *, written_anew: bool = False) -> Cohort:
    """The cohort of one call. A call that was refused has sent nothing for sure but its question.

    Args:
        written_anew: whether a waypoint has read the request, and has written another: of any size.
    """
    answered = call.answered and not written_anew
    return Cohort(
        call.started_ns,
        call.ended_ns,
        1,
        _FRAME_BYTES + (call.sent_bytes if answered else 0),
        _FRAME_BYTES + (call.body_bytes if answered else 0),
    )


Ends = tuple[str, str]
"""The two pods of a leg, in its direction."""
Together = Mapping[Ends, Cohort]
"""Of one call: by leg, the cohort that it is in there."""


def cohorts(calls: Iterable[tuple[Call, Path]], read: Collection[int] = ()) -> Mapping[int, Together]:
    """By the number of each call, its cohorts among ``calls``, each of which comes with the path that it took.

    Args:
        read: the numbers of those whose requests a waypoint has read.
    """
    pairs: dict[tuple[Ends, int], list[tuple[int, Cohort]]] = defaultdict(list)
    for call, path in calls:
        for place, leg in enumerate(path.legs):
            one = alone(call, written_anew=place > 0 and call.number in read)
            pairs[(leg.source, leg.destination), call.family].append((call.number, one))
    found: dict[int, dict[Ends, Cohort]] = defaultdict(dict)
    for (ends, _), of_pair in pairs.items():
        for number, cohort in _of_pair(sorted(of_pair, key=lambda one: one[1].started_ns)).items():
            found[number][ends] = cohort
    return found


def _of_pair(calls: list[tuple[int, Cohort]]) -> dict[int, Cohort]:
    """Sweep the calls that passed one pair in the order of their beginnings."""
    groups: list[tuple[Cohort, list[int]]] = []
    for number, one in calls:
        if groups and one.started_ns <= groups[-1][0].ended_ns:
            cohort, members = groups.pop()
            members.append(number)
            groups.append((cohort.joined(one), members))
        else:
            groups.append((one, [number]))
    return {number: cohort for cohort, members in groups for number in members}
