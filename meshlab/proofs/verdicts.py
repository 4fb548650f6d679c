"""What a window proves about a call: held, failed or cannot-tell, with the reason as a sentence.

A proof never passes on what it could not see. It asks for the opposite first; then for what shows that the opposite
would have been seen (beacons, no drops, the twin's bytes); then for the call's own packets on the links it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshlab.model import Call, Family, Outcome, SpiffeId
from meshlab.model.report import Grade, Proof, Result
from meshlab.proofs.flows import Flow
from meshlab.proofs.links import Link, Wiring
from meshlab.proofs.packets import ICMP, ICMPV6
from meshlab.proofs.route import (
    Route,
    Target,
    carried,
    not_tls,
    on_application_port,
    passed,
    routes,
    unfollowed,
    unread,
)
from meshlab.proofs.streams import HBONE_PORT
from meshlab.proofs.traffic import indexed
from meshlab.proofs.window import Window


def encrypted(window: Window, wiring: Wiring, call: Call, targets: Sequence[Target]) -> Proof:
    """No byte of the call in clear on any link, and its packets, all TLS records, on the way between the two pods.

    For calls between enrolled pods; a refused call holds too, where its tunnel was seen.
    """
    draft = _Draft.of("encrypted", call, Grade.WIRE, window.control, 1)
    ways = routes(wiring, call, targets)
    plain = [site.pod for way in ways for site in (way.source, way.destination) if not site.enrolled]
    if plain:
        return draft.cannot_tell(f"{plain[0]} is not in the mesh: its traffic is in clear by right")
    if opposite := _in_clear(window, call, ways):
        return draft.failed(opposite)
    if doubt := window.blind or _doubt(window, ways):
        return draft.cannot_tell(doubt)
    return _on_the_way(draft, window, call, ways)


def path(window: Window, wiring: Wiring, call: Call, targets: Sequence[Target]) -> Proof:
    """The call's packets on each link between the two pods, there and back, on the port that they should use there.

    That is 15008 where both pods are enrolled, and else the application's own.
    """
    draft = _Draft.of("path", call, Grade.WIRE, window.control, 0)
    if window.blind:
        return draft.cannot_tell(window.blind)
    ways = routes(wiring, call, targets)
    for way in ways:
        if way.tunnelled and (link := on_application_port(window, way, call)):
            return draft.failed(f"packets of its time on the application's own port were seen on {link}")
    return _on_the_way(draft, window, call, ways)


def denied(
    window: Window,
    wiring: Wiring,
    call: Call,
    targets: Sequence[Target],
    received: Mapping[int, int] | None,
    *,
    twin: Call | None = None,
    instead: str = "",
) -> Proof:
    """No byte of the call at the server, and a twin's bytes there, which shows that they could have arrived.

    Args:
        received: how many bytes the server's application got, by the number of the call; ``None`` where it cannot say.
        twin: a call of another pod to the same place, which was allowed.
        instead: where everybody is denied, the control that stands for the twin, as a phrase.
    """
    shown = f"call {twin.number} of {twin.source} was allowed" if twin else instead
    control = f"{shown}; {window.control}" if shown and window.control else ""
    draft = _Draft.of("denied", call, Grade.WIRE, control, 1)
    if call.outcome in Outcome.OK:
        return draft.failed("it was answered")
    if received and received.get(call.number):
        return draft.failed(f"{received[call.number]} bytes of it reached the server (the caller saw: {call.outcome})")
    if received is None:
        return draft.cannot_tell(f"what {call.to} received is not known: only the built-in echo says so")
    if call.outcome not in Outcome.REFUSED:
        return draft.cannot_tell(f"it ended in {call.outcome}, which is no refusal")
    if twin and (problem := _twin_problem(call, twin, received)):
        return draft.cannot_tell(problem)
    if window.blind:
        return draft.cannot_tell(window.blind)
    packets = sum(passed(window, way, call) for way in routes(wiring, call, targets))
    if not packets:
        return draft.cannot_tell("no packet of it was seen: nothing says that it was refused where it was sent to")
    return draft.held(packets, f"{call.outcome}, 0 bytes at the server")


def identity(
    call: Call,
    expected: SpiffeId,
    seen: SpiffeId | str | None,
    grade: Grade,
    *,
    packets: int,
    control: str,
    at_least: Grade = Grade.PEER,
    how: str = "",
) -> Proof:
    """The peer showed this identity, known at this grade or a better one.

    Args:
        seen: what was seen, ``None`` where nothing was.
        packets: of the call on the wire: ``tunnel_packets``.
        control: what shows that another identity would have been noticed, as a phrase.
        how: how it could be had, or be had at a better grade.
    """
    draft = _Draft.of("identity", call, grade, control, 0)
    hint = f"; {how}" if how else ""
    if seen is not None and str(seen) != str(expected):
        return draft.failed(f"the peer was {seen}, not {expected} (grade {grade})")
    if seen is None:
        return draft.cannot_tell(f"nobody saw the peer's certificate{hint}")
    if not _reaches(grade, at_least):
        return draft.cannot_tell(f"known at grade {grade}, asked for at least {at_least}{hint}")
    if not packets:
        return draft.cannot_tell("no packet of the call was seen")
    return draft.held(packets, f"{expected}, grade {grade}")


def nothing_in_clear(window: Window, wiring: Wiring, link: Link, family: Family, calls: Sequence[Call]) -> Proof:
    """On this link all packets between addresses of enrolled pods are TCP 15008 (ICMP is listed), their payload TLS.

    Args:
        calls: those between enrolled pods, the refused ones too: none of their canaries may stand on the link.
    """
    ours = _between_enrolled(window, wiring, link, family)
    icmp = [flow for flow in ours if flow.protocol in {ICMP, ICMPV6}]
    others = [flow for flow in ours if flow.protocol not in {ICMP, ICMPV6}]
    draft = _Draft("nothing-in-clear", "*", str(link), HBONE_PORT, family, Grade.WIRE, window.control, len(calls))
    leaks = (finding for call in calls for finding in window.by_call.get(call.number, ()) if finding.link == link)
    if leak := next(leaks, None):
        return draft.failed(str(leak))
    if wrong := next((flow for flow in others if not flow.is_hbone), None):
        return draft.failed(f"not on 15008: {wrong}")
    traffic = indexed(others)
    if clear := traffic.not_tls:
        return draft.failed(f"{clear}: {clear.not_tls}")
    if window.blind:
        return draft.cannot_tell(window.blind)
    if traffic.unfollowed:
        return draft.cannot_tell(_not_followed(window, traffic.unfollowed))
    packets = sum(len(flow.times) for flow in others)
    if not packets:
        return draft.cannot_tell("no packet between enrolled pods was seen there")
    return draft.held(packets, "; ".join(f"beside it, {len(flow.times)} packets of {flow}" for flow in icmp))


def _between_enrolled(window: Window, wiring: Wiring, link: Link, family: Family) -> list[Flow]:
    size = 4 if family == 4 else 16
    enrolled = {address for address in wiring.enrolled_addresses() if len(address) == size}
    return [flow for flow in window.flows if flow.link == link and {flow.source, flow.destination} <= enrolled]


def tunnel_packets(window: Window, wiring: Wiring, call: Call, targets: Sequence[Target]) -> int:
    """Packets of the call's routes on the caller's own link, in the call's time."""
    return sum(passed(window, way, call) for way in routes(wiring, call, targets))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A proof before its result."""

    kind: str
    source: str
    to: str
    port: int
    family: Family
    grade: Grade
    control: str
    canaries: int
    number: int = 0

    @classmethod
    def of(cls, kind: str, call: Call, grade: Grade, control: str, canaries: int) -> _Draft:
        to = call.to.rpartition(":")[0] or call.to
        return cls(kind, call.source, to, call.port, call.family, grade, control, canaries, call.number)

    def held(self, packets: int, reason: str) -> Proof:
        if not self.control:
            return self.cannot_tell("nothing shows that the opposite would have been seen: no beacon or no twin")
        return self._proof(Result.HELD, packets, reason)

    def failed(self, reason: str) -> Proof:
        return self._proof(Result.FAILED, 0, reason)

    def cannot_tell(self, reason: str) -> Proof:
        return self._proof(Result.CANNOT_TELL, 0, reason)

    def _proof(self, result: Result, packets: int, reason: str) -> Proof:
        which = f"#{self.number}" if self.number else ""
        return Proof(
            id=f"{self.kind}:{self.source}->{self.to}:{self.port}/{self.family}{which}",
            kind=self.kind,
            source=self.source,
            to=self.to,
            port=self.port,
            family=self.family,
            grade=self.grade,
            packets=packets,
            canaries=self.canaries,
            control=self.control,
            result=result,
            reason=reason,
        )


def _reaches(grade: Grade, least: Grade) -> bool:
    order = list(Grade)  # best first
    return order.index(grade) <= order.index(least)


def _in_clear(window: Window, call: Call, ways: Iterable[Route]) -> str:
    """What shows that the call, or the tunnel it went through, was readable; empty where nothing does."""
    leaks = window.by_call.get(call.number, ())
    if leaks:
        return f"{leaks[0]}" + (f", and in {len(leaks) - 1} more places" if len(leaks) > 1 else "")
    for way in ways:
        if flow := not_tls(window, way):
            return f"{flow}: {flow.not_tls}"
        if link := on_application_port(window, way, call):
            return f"packets of its time on the application's own port were seen on {link}"
    return ""


def _doubt(window: Window, ways: Iterable[Route]) -> str:
    for way in ways:
        if finding := unread(window, way):
            return f"{finding}: its number was cut off"
        if flow := unfollowed(window, way):
            return _not_followed(window, flow)
    return ""


def _not_followed(window: Window, flow: Flow) -> str:
    why = f"bytes of {flow} were not seen, so its TLS records cannot be followed"
    if not window.lost_before_bytes:
        return why
    return (
        f"{why} ({window.lost_before_bytes} bytes were lost before the window)."
        " Make the call again in another window, or over a new connection"
    )


def _on_the_way(draft: _Draft, window: Window, call: Call, ways: Sequence[Route]) -> Proof:
    """Held where one route shows packets with payload on all its links: there and, if it was answered, back."""
    missing = "nobody said which pod it may have reached"
    answered = call.outcome in Outcome.OK
    for way in ways:
        seen = carried(window, way, call)
        silent = [link for link, (there, back) in seen.items() if not there or (answered and not back)]
        if not silent:
            packets = sum(there + back for there, back in seen.values())
            return draft.held(packets, f"{packets} packets on port {way.wire_port}: {', '.join(map(str, way.links))}")
        missing = f"no packet of it on port {way.wire_port} was seen on {silent[0]}"
    return draft.cannot_tell(missing)


def _twin_problem(call: Call, twin: Call, received: Mapping[int, int]) -> str:
    if (twin.to, twin.family) != (call.to, call.family) or twin.source == call.source:
        return f"call {twin.number} ({twin.source} -> {twin.to} ipv{twin.family}) is no twin of it"
    if twin.outcome not in Outcome.OK:
        return f"its twin, call {twin.number} of {twin.source}, ended in {twin.outcome}: then no refusal says anything"
    if not received.get(twin.number):
        return f"the bytes of its twin, call {twin.number} of {twin.source}, were not seen at the server either"
    return ""
