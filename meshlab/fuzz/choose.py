"""Which calls tell a set of policies from its neighbours. Pure.

Every value in a policy is a question with two answers: is the caller's address in this block, is it this port? So is
whether a service's address is dialled, and whether the call would show a proxy that takes the value for a nearly equal
one. Calls are picked until each question was answered both ways, under an allowed and a denied verdict, as far as any
call of the mesh can. What room is left goes to whichever verdict is rarer. A caller out of the mesh, which has a
service account but nobody to vouch for it, is always among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from meshlab.fuzz.questions import questions
from meshlab.fuzz.requests import Oddities, nothing_odd, shapes
from meshlab.lab.calls.names import behind
from meshlab.lab.proving.matrix import Places, least_to_count
from meshlab.model import (
    FAMILIES,
    Address,
    CallShape,
    Connection,
    Decision,
    Family,
    Mesh,
    Pod,
    Service,
    Verdict,
)
from meshlab.oracle import decide, expected, travelled
from meshlab.play.moments import asked

MOST = 48
"""Calls of one set of policies."""
_UNREAD = 4
"""Where a waypoint reads requests, one call in so many goes where none does."""
_MOST_ALIKE = 24
"""So many calls show both of two outcomes that share evenly."""
_PLAIN = CallShape()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One call that a mesh can make. Policies have no part in it."""

    source: Pod
    destination: Pod
    port: int
    """Of the destination."""
    family: Family
    connection: Connection
    hbone: bool
    """Whether it crosses a link in a tunnel; one that the caller itself may answer does not."""
    service: Service | None = None
    """Whose address is dialled; ``None``: the destination's own."""
    service_port: int = 0
    also: tuple[Candidate, ...] = ()
    """The same call at the other pods of the service: the proxy takes any of them."""
    is_read: bool = False
    """Whether a waypoint reads what is asked for."""

    @property
    def address(self) -> Address:
        vip = self.service.address(self.family) if self.service else None
        return vip or self.destination.address(self.family)

    @property
    def dialled_port(self) -> int:
        return self.service_port if self.service else self.port

    @property
    def ways(self) -> tuple[Candidate, ...]:
        """One for each pod that may answer."""
        return (self, *self.also)

    @property
    def place(self) -> tuple[str, int, Family]:
        return self.destination.key, self.port, self.family

    @property
    def is_echoed(self) -> bool:
        """Whether the built-in echo answers, wherever the call ends up."""
        return all(way.destination.program is None for way in self.ways)

    @property
    def to(self) -> str:
        return f"{(self.service or self.destination).key}:{self.dialled_port}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A call, and what should come of it."""

    call: Candidate
    decision: Decision
    shape: CallShape = field(default_factory=CallShape)
    times: int = 1
    """How many such calls show each outcome that they share."""


def candidates(mesh: Mesh, not_listening: Places = frozenset()) -> tuple[Candidate, ...]:
    """Every call of ``mesh`` from pod to pod, and from its enrolled pods to services, in the order of the file.

    A pod also calls a service that it backs itself. Services are left out of which a pod does not listen, or is out of
    the mesh where another is in it.

    Args:
        not_listening: where nobody listens (``lab.not_listening``): no call there could be answered.
    """
    possible = (*_to_pods(mesh), *_to_services(mesh))
    return tuple(call for call in possible if not_listening.isdisjoint(way.place for way in call.ways))


def _to_pods(mesh: Mesh) -> Iterator[Candidate]:
    for destination in mesh.pods:
        for source in _callers(mesh):
            for port in destination.ports:
                for family in FAMILIES:
                    if source.key != destination.key:
                        yield _candidate(mesh, source, destination, destination, port.number, port.number, family)


def _to_services(mesh: Mesh) -> Iterator[Candidate]:
    for service in mesh.services:
        for port in service.ports:
            reached = behind(mesh, f"{service.key}:{port.port}")
            listening = all(number in {own.number for own in pod.ports} for pod, number in reached)
            if not reached or not listening or len({mesh.is_enrolled(pod) for pod, _ in reached}) > 1:
                continue
            for source in filter(mesh.is_enrolled, mesh.pods):  # others have no kube-proxy here
                for family in FAMILIES:
                    if service.address(family):
                        one, *others = (
                            _candidate(mesh, source, service, pod, port.port, number, family) for pod, number in reached
                        )
                        leaves = all(way.hbone for way in (one, *others))
                        yield replace(
                            one,
                            service=service,
                            service_port=port.port,
                            also=tuple(others),
                            hbone=leaves,
                            is_read=mesh.reads_requests(service, port),
                        )


def _callers(mesh: Mesh) -> list[Pod]:
    """Those that call: nobody does from a waypoint's pod."""
    return [pod for pod in mesh.pods if not pod.gateway]


def _candidate(
    mesh: Mesh, source: Pod, to: Pod | Service, destination: Pod, dialled: int, port: int, family: Family
) -> Candidate:
    path, seen = travelled(mesh, source, to, destination, dialled, port, family)
    return Candidate(
        source=source,
        destination=destination,
        port=port,
        family=family,
        connection=seen,
        hbone=path.is_hbone and path.leaves_its_pod,
    )


def choose(
    mesh: Mesh,
    possible: Sequence[Candidate],
    *,
    most: int = MOST,
    turn: int = 0,
    before: Mesh | None = None,
    odd: Oddities = nothing_odd,
) -> list[Chosen]:
    """At most ``most`` calls that split what the policies and routes of ``mesh`` say.

    Args:
        possible: ``candidates`` of the mesh.
        turn: which of two calls that tell the same comes first; another number, another choice.
        before: policies that were in effect until now: calls that these judged otherwise come first.
        odd: gives further requests, beside those that are chosen for a Service port that a waypoint reads.
    """
    read = [call for call in possible if call.is_read]
    if read:
        others = [call for call in possible if not call.is_read]
        chosen = choose(mesh, others, most=most // _UNREAD, turn=turn, before=before)
        return [*chosen, *_asking(mesh, read, most - len(chosen), turn, odd)]
    turn %= max(1, len(possible))
    ordered = [*possible[turn:], *possible[:turn]]
    known = [one for call in ordered if (one := decided(mesh, call))]
    picked = _Picks(known, most)
    picked.take(place for place, one in enumerate(known) if not mesh.is_enrolled(one.call.source))
    if before is not None:
        flipped = (place for place, one in enumerate(known) if _flips(before, one))
        picked.take(flipped, at_most=most // 3)
    picked.cover(_answers(mesh, known))
    picked.balance()
    return picked.chosen()


def _asking(mesh: Mesh, read: Sequence[Candidate], most: int, turn: int, odd: Oddities) -> list[Chosen]:
    """Requests on both sides of every match and rule: each request, and each rule by which one of a caller is decided.

    Each request goes over one family, every other one over the other. One that two outcomes share evenly is asked so
    often, one after the other, that both have to be seen.
    """
    known: list[Chosen] = []
    places: dict[str, list[Candidate]] = {}
    for call in read:
        places.setdefault(call.to, []).append(call)
    for calls in places.values():
        families = sorted({call.family for call in calls})
        for number, shape in enumerate(shapes(mesh, calls[0].service, calls[0].service_port, odd), turn):
            family = families[number % len(families)]
            start = number % len(calls)
            turned = [call for call in (*calls[start:], *calls[:start]) if call.family == family]
            known += [one for call in turned if (one := decided(mesh, call, shape))]
    picked = _Picks(known, most)
    picked.cover(_told(known))
    chosen = picked.chosen()
    shared = next((one for one in chosen if 1 < one.times <= _MOST_ALIKE), None)
    if shared is None:
        return chosen
    return [*(one for one in chosen if one is not shared), *[shared] * shared.times]


def _told(known: Sequence[Chosen]) -> list[int]:
    """For each call a bit for its request, for the rule that decides, and for that rule with its caller."""
    bits: dict[object, int] = {}
    return [
        sum(
            1 << bits.setdefault(fact, len(bits))
            for fact in (
                (one.call.to, one.shape),
                (one.call.to, one.decision.rule),
                (one.call.to, one.decision.rule, one.call.source.key),
            )
        )
        for one in known
    ]


def decided(mesh: Mesh, call: Candidate, shape: CallShape = _PLAIN) -> Chosen | None:
    """Return what the policies say of a call; ``None`` where its pods or routes disagree, so that chance decides."""
    if mesh.waypoints:
        target = call.service or call.destination
        request = asked(mesh, call.to, call.family, shape)
        due = expected(mesh, call.source, target, call.dialled_port, call.family, request)
        if due.passage == "mixed":
            return None
        times = 1 if due.is_certain else least_to_count(due)
        return Chosen(call, Decision(Verdict(due.passage), due.rule), shape, times)
    decision = decide(mesh, call.connection)
    if any(decide(mesh, other.connection).verdict is not decision.verdict for other in call.also):
        return None
    return Chosen(call, decision, shape)


def _flips(before: Mesh, one: Chosen) -> bool:
    return all(decide(before, way.connection).verdict is not one.decision.verdict for way in one.call.ways)


class _Picks:
    """The calls that were picked, by their place in ``decided``."""

    def __init__(self, decided: Sequence[Chosen], most: int) -> None:
        self._decided = decided
        self._most = most
        self._places: dict[int, None] = {}

    def take(self, places: Iterable[int], at_most: int = 1) -> None:
        for place, _ in zip(places, range(at_most), strict=False):
            self._places[place] = None

    def cover(self, answers: Sequence[int]) -> None:
        """Greedily, while some call answers what none has: ``answers`` is a set of bits for each."""
        covered = 0
        for place in self._places:
            covered |= answers[place]
        left = {place: answers[place] & ~covered for place in range(len(answers)) if answers[place] & ~covered}
        while left and len(self._places) < self._most:
            best = max(left, key=lambda place: (left[place].bit_count(), -place))
            self._places[best] = None
            new = left[best]
            left = {place: rest for place, bits in left.items() if (rest := bits & ~new)}

    def balance(self) -> None:
        """Fill what room is left with the rarer verdict, then with any."""
        rest: dict[bool, list[int]] = {True: [], False: []}
        count = {True: 0, False: 0}
        for place, one in enumerate(self._decided):
            if place in self._places:
                count[one.decision.allowed] += 1
            else:
                rest[one.decision.allowed].append(place)
        while len(self._places) < self._most and (rest[True] or rest[False]):
            rarer = count[True] < count[False]
            side = rarer if rest[rarer] else not rarer
            if side is not rarer and count[side] >= 2 * count[not side] + 8:
                return  # more of the same would only cost time
            self._places[rest[side].pop(0)] = None
            count[side] += 1

    def chosen(self) -> list[Chosen]:
        return [self._decided[place] for place in self._places]


def _answers(mesh: Mesh, decided: Sequence[Chosen]) -> list[int]:
    """For each call a bit for every question, answer and verdict that it shows."""
    answers = [0] * len(decided)
    destinations = {one.call.destination.key: one.call.destination for one in decided}
    called = [one.call.destination.key for one in decided]
    allowed = [one.decision.allowed for one in decided]
    alike: dict[tuple[str, ...], list[list[int]]] = {}
    at = 0
    for question in questions(mesh):
        asked = {key for key, pod in destinations.items() if question.applies(pod)}
        if question.hangs_on not in alike:
            alike[question.hangs_on] = _alike(decided, question.hangs_on)
        for places in alike[question.hangs_on]:
            some = [place for place in places if called[place] in asked]
            if some:
                told = question.reply(decided[some[0]].call.connection)
                for place in some:
                    answers[place] |= 1 << (at + 2 * told + allowed[place])
        at += 4
    for place, one in enumerate(decided):
        answers[place] |= 1 << (at + 2 * (one.call.service is not None) + allowed[place])
    return answers


def _alike(decided: Sequence[Chosen], attributes: tuple[str, ...]) -> list[list[int]]:
    """The places of the calls whose connections have these attributes in common."""
    of, places = attrgetter(*attributes), dict[object, list[int]]()
    for place, one in enumerate(decided):
        places.setdefault(of(one.call.connection), []).append(place)
    return [*places.values()]
