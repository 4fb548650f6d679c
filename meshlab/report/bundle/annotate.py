"""Which calls a flow carried, said in a comment on its first packet. Pure.

A tunnel carries many calls, and who wrote which of its bytes only its keys would say: so a tunnel's comment lists every
call between its two pods in its time. A flow in clear is one call's, where its client port is that call's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshlab.model import Call
from meshlab.model.ambient import HBONE_PORT
from meshlab.model.report import Cell
from meshlab.proofs.links import Link
from meshlab.proofs.packets import TCP, parse
from meshlab.proofs.route import Hop

Frame = tuple[Link, bool, int, bytes]
"""Link, whether the node sent it there, time in ns, frame."""
_MOST_CALLS = 40
_End = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Told:
    """A call, what was expected of it, and the legs that it may have gone, as packets pass them."""

    call: Call
    cell: Cell
    hops: tuple[Hop, ...]

    @property
    def sentence(self) -> str:
        cell, call = self.cell, self.call
        return (
            f"call {call.number}: {call.source} -> {call.to} over IPv{call.family}:"
            f" expected {cell.expected}, seen {call.outcome}; {cell.rule}"
        )


@dataclass(slots=True)
class FlowOfFrames:
    """One connection on one link."""

    link: Link
    client: _End
    server: _End
    places: list[int] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0


def flows(frames: Sequence[Frame], told: Sequence[Told]) -> list[FlowOfFrames]:
    """The TCP connections that may have carried one of these calls, in the order of their first packets."""
    ways = {(*ends, port) for one in told for hop in one.hops for ends in _ends(hop) for port in _ports(hop)}
    found: dict[tuple[Link, _End, _End], FlowOfFrames] = {}
    for place, (link, _, time_ns, frame) in enumerate(frames):
        head = parse(frame, 0, len(frame))
        source, destination = (head.source, head.source_port), (head.destination, head.destination_port)
        if head.protocol != TCP:
            continue
        if (head.source, *destination) in ways:
            client, server = source, destination
        elif (head.destination, *source) in ways:
            client, server = destination, source
        else:
            continue
        flow = found.setdefault((link, client, server), FlowOfFrames(link, client, server, [], time_ns))
        flow.places.append(place)
        flow.last_ns = time_ns
    return list(found.values())


def carried(flow: FlowOfFrames, told: Sequence[Told]) -> list[Told]:
    """The calls that this connection carried, as far as it can be told."""
    possible = [one for one in told if _in_time(flow, one.call) and any(_is_on(flow, hop) for hop in one.hops)]
    own = [one for one in possible if one.call.source_port == flow.client[1]]
    return own if own and flow.server[1] != HBONE_PORT else possible


def comments(frames: Sequence[Frame], told: Sequence[Told]) -> dict[int, str]:
    """By the frame's place in ``frames``, which are in the order of time: one for each flow on each link."""
    return {flow.places[0]: _comment(flow, on_it) for flow in flows(frames, told) if (on_it := carried(flow, told))}


def _comment(flow: FlowOfFrames, told: Sequence[Told]) -> str:
    hop = next(hop for one in told for hop in one.hops if _is_on(flow, hop))
    how = "HBONE" if flow.server[1] == HBONE_PORT else "in clear"
    lines = [f"{hop.source.pod} -> {hop.destination.pod}, {how}, seen on {flow.link}"]
    lines += [one.sentence for one in told[:_MOST_CALLS]]
    if len(told) > _MOST_CALLS:
        lines.append(f"and {len(told) - _MOST_CALLS} more calls")
    return "\n".join(lines)


def _ends(hop: Hop) -> list[tuple[bytes, bytes]]:
    return [
        (source, destination)
        for source in hop.source.addresses
        for destination in hop.destination.addresses
        if len(source) == len(destination)
    ]


def _ports(hop: Hop) -> set[int]:
    """Where it should be, and where it is when it leaks."""
    return {hop.wire_port, hop.port}


def _is_on(flow: FlowOfFrames, hop: Hop) -> bool:
    return (
        flow.server[1] in _ports(hop)
        and flow.client[0] in hop.source.addresses
        and flow.server[0] in hop.destination.addresses
    )


def _in_time(flow: FlowOfFrames, call: Call) -> bool:
    is_of_family = len(flow.client[0]) == (4 if call.family == 4 else 16)
    return is_of_family and call.started_ns <= flow.last_ns and flow.first_ns <= call.ended_ns
