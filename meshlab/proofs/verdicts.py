"""What a window proves about a call: held, failed or cannot-tell, with the reason as a sentence.

A proof never passes on what it could not see. It asks for the opposite first; then for what shows that the opposite
would have been seen (beacons, no drops, the twin's bytes); then for the call's own packets on the links it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshlab.model import Call, Family, Path
from meshlab.model.ambient import HBONE_PORT
from meshlab.model.report import Grade, Proof
from meshlab.proofs.cohorts import Together, alone
from meshlab.proofs.draft import Draft
from meshlab.proofs.flows import Flow
from meshlab.proofs.links import Link, Wiring
from meshlab.proofs.packets import ICMP, ICMPV6
from meshlab.proofs.route import (
    Route,
    carried,
    exposed_session,
    hops,
    not_tls,
    on_application_port,
    routes,
    tunnelled_bytes,
    unfollowed,
)
from meshlab.proofs.traffic import Traffic
from meshlab.proofs.window import Window

_NEVER_NS = 1 << 63


def encrypted(
    window: Window, wiring: Wiring, call: Call, paths: Sequence[Path], together: Together | None = None
) -> Proof:
    """No byte of the call in plaintext on any link, and its packets, all TLS records, on the way between the two pods.

    For calls between enrolled pods; a refused call holds too, where its tunnel was seen.

    Args:
        together: by leg, the calls that passed the same two pods at the same time; the call alone, if not given. The
            tunnel must have carried the bytes of all of them.
    """
    draft = Draft.of("encrypted", call, Grade.WIRE, window.control, 1)
    ways = routes(wiring, call, paths)
    plain = [site.pod for hop in hops(ways) for site in (hop.source, hop.destination) if not site.enrolled]
    if plain:
        return draft.cannot_tell(f"{plain[0]} is not in the mesh: its traffic is rightly in plaintext")
    if opposite := _in_clear(window, call, ways):
        return draft.failed(opposite)
    if doubt := window.blind or _doubt(window, ways):
        return draft.cannot_tell(doubt)
    return _on_the_way(draft, window, call, ways, together)


def path(window: Window, wiring: Wiring, call: Call, paths: Sequence[Path], together: Together | None = None) -> Proof:
    """The call's packets on each link between the two pods, there and back, on the port that they should use there.

    That is 15008 where both pods are enrolled, and else the application's own.

    Args:
        together: as of ``encrypted``.
    """
    draft = Draft.of("path", call, Grade.WIRE, window.control, 0)
    if window.blind:
        return draft.cannot_tell(window.blind)
    ways = routes(wiring, call, paths)
    for hop in hops(ways):
        if hop.tunnelled and (link := on_application_port(window, hop, call)):
            return draft.failed(f"packets of its time on the application's own port were seen on {link}")
    return _on_the_way(draft, window, call, ways, together)


def nothing_in_clear(
    window: Window, wiring: Wiring, link: Link, family: Family, calls: Sequence[Call], until_ns: int = _NEVER_NS
) -> Proof:
    """On this link all packets between addresses of enrolled pods are TCP 15008 (ICMP is listed), their payload TLS.

    Args:
        calls: those between enrolled pods, the refused ones too: none of their canaries may stand on the link. A canary
            of which nobody knows the call may not either, whatever addresses the packet has.
        until_ns: until when ``wiring`` says who is enrolled.
    """
    ours = _between_enrolled(window, wiring, link, family, until_ns)
    icmp = [flow for flow in ours if flow.protocol in {ICMP, ICMPV6}]
    others = [flow for flow in ours if flow.protocol not in {ICMP, ICMPV6}]
    draft = Draft("nothing-in-clear", "*", str(link), HBONE_PORT, family, Grade.WIRE, window.control, len(calls))
    numbers = [*(call.number for call in calls), None]
    leaks = (finding for number in numbers for finding in window.by_call.get(number, ()) if finding.link == link)
    if leak := next(leaks, None):
        return draft.failed(str(leak))
    if leaked := next((one for one in window.exposed if one.flow.link == link), None):
        return draft.failed(str(leaked))
    if wrong := next((flow for flow in others if not flow.is_hbone), None):
        return draft.failed(f"not on 15008: {wrong}")
    traffic = Traffic(others)
    if clear := traffic.not_tls:
        return draft.failed(f"{clear}: {clear.not_tls}")
    if window.blind:
        return draft.cannot_tell(window.blind)
    if traffic.unfollowed:
        return draft.cannot_tell(_not_followed(window, traffic.unfollowed))
    if not any(flow.data for flow in others):
        return draft.cannot_tell("no packet between enrolled pods that carries a byte was seen there")
    packets = sum(len(flow.times) for flow in others)
    return draft.held(packets, "; ".join(f"beside it, {len(flow.times)} packets of {flow}" for flow in icmp))


def _between_enrolled(window: Window, wiring: Wiring, link: Link, family: Family, until_ns: int) -> list[Flow]:
    """The flows on ``link`` whose connections began while both their ends were enrolled."""
    size = 4 if family == 4 else 16
    since = {address: since_ns for address, since_ns in wiring.members_since().items() if len(address) == size}
    return [
        flow
        for flow in window.by_link.get(link, ())
        if {flow.source, flow.destination} <= since.keys()
        and flow.began_ns < until_ns
        and max(since[flow.source], since[flow.destination]) <= window.began_ns(flow)
    ]


def links_to_prove(
    window: Window,
    wiring: Wiring,
    family: Family,
    calls: Iterable[tuple[Call, Sequence[Path]]],
    until_ns: int = _NEVER_NS,
) -> list[Link]:
    """The links of which ``nothing_in_clear`` has something to say for this family, sorted.

    These are the links that the calls, each with its paths, should have crossed; those on which enrolled pods were
    seen to talk; and those with a canary of which nobody knows the call, or with what gives a session's secrets away.
    """
    crossed = {link for call, paths in calls for hop in hops(routes(wiring, call, paths)) for link in hop.links}
    talked = {link for link in window.by_link if _between_enrolled(window, wiring, link, family, until_ns)}
    exposing = {one.flow.link for one in window.exposed}
    return sorted(crossed | talked | exposing | {finding.link for finding in window.by_call.get(None, ())})


def _in_clear(window: Window, call: Call, ways: Sequence[Route]) -> str:
    """What shows that the call, or the tunnel it went through, was readable; empty where nothing does."""
    leaks = window.by_call.get(call.number, ())
    if leaks:
        return f"{leaks[0]}" + (f", and in {len(leaks) - 1} more places" if len(leaks) > 1 else "")
    for hop in hops(ways):
        if leaked := exposed_session(window, hop):
            return str(leaked)
        if flow := not_tls(window, hop):
            return f"{flow}: {flow.not_tls}"
        if link := on_application_port(window, hop, call):
            return f"packets of its time on the application's own port were seen on {link}"
    return ""


def _doubt(window: Window, ways: Sequence[Route]) -> str:
    unread = window.by_call.get(None, ())
    if unread:
        return f"{unread[0]}: its number cannot be read, so it may be this call's"
    for hop in hops(ways):
        if flow := unfollowed(window, hop):
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


def _on_the_way(draft: Draft, window: Window, call: Call, ways: Sequence[Route], together: Together | None) -> Proof:
    """Held where one route shows packets with payload on all links of its hops: there and, if it was answered, back.

    Of several ways that a call may have gone, what one has carried may be another call's: the others are looked at too.
    """
    missing = "nobody said which pod it may have reached"
    another_way, answered = "", call.answered
    for way in ways:
        seen = [(hop, carried(window, hop, call)) for hop in way]
        silent = [
            (hop, link)
            for hop, on in seen
            for link, (there, back) in on.items()
            if not there or (answered and not back)
        ]
        if silent:
            missing = f"no packet of it on port {silent[0][0].wire_port} was seen on {silent[0][1]}"
            continue
        too_few = _too_few_bytes(window, way, call, together or {}) if answered else ""
        if not too_few:
            packets = sum(there + back for _, on in seen for there, back in on.values())
            return draft.held(packets, f"{packets} packets {_places(way)}")
        another_way = another_way or too_few
    return draft.failed(another_way) if another_way else draft.cannot_tell(missing)


def _too_few_bytes(window: Window, way: Route, call: Call, together: Together) -> str:
    """Why one call of a cohort at least took another way; empty where each tunnel carried enough for all."""
    for hop in way:
        cohort = together.get((hop.source.pod, hop.destination.pod)) or alone(call)
        for link in hop.links if hop.tunnelled else ():
            there, back = tunnelled_bytes(window, hop, link, cohort)
            if there < cohort.there_bytes or back < cohort.back_bytes:
                return (
                    f"{cohort.calls} calls of that time sent {cohort.there_bytes} bytes and got {cohort.back_bytes},"
                    f" and port {hop.wire_port} carried {there} and {back} on {link}: one of them went another way"
                )
    return ""


def _places(way: Route) -> str:
    """Where packets of a route were seen: ``on port 15008: node-1:shop/client, node-2:shop/server``."""
    return "; then ".join(f"on port {hop.wire_port}: {', '.join(map(str, hop.links))}" for hop in way)
