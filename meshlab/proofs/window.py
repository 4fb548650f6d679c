"""What was seen between the two ends of a capture window. Facts only: ``verdicts`` draws the conclusions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from meshlab.proofs.beacon import Beacon, Beacons
from meshlab.proofs.exposed import Exposed
from meshlab.proofs.flows import Finding, Flow, beginnings
from meshlab.proofs.links import Link, Site
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.traffic import Traffic
from meshlab.proofs.unread import Unread

_Place = tuple[Link, bool, int, bytes, bytes, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A closed window."""

    flows: tuple[Flow, ...]
    """Beacons left out."""
    findings: tuple[Finding, ...]
    exposed: tuple[Exposed, ...] = ()
    """TLS sessions whose secrets were on a link."""
    drops: Mapping[str, int]
    """By node, where a ring lost packets."""
    lost_bytes: int
    """What the recorder could not keep: the window was beyond its bound."""
    lost_before_bytes: int = 0
    """What the recorder could not keep before the window, since the lab stands: connections of that time may have
    holes, which new ones have not."""
    cut_packets: int
    """Packets of which only a part was kept."""
    unread: Mapping[Unread, int]
    """What the search could not read, counted by reason."""
    beacons: Beacons
    missing: tuple[Beacon, ...]
    pieces: tuple[Piece, ...] = field(repr=False)
    """The packets themselves."""
    beacon_keys: frozenset[Key] = field(repr=False)

    @cached_property
    def size_bytes(self) -> int:
        return sum(len(piece.buffer) for piece in self.pieces)

    @cached_property
    def by_call(self) -> Mapping[int | None, tuple[Finding, ...]]:
        """The findings of each call's number."""
        found: dict[int | None, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.number, []).append(finding)
        return {number: tuple(of) for number, of in found.items()}

    @cached_property
    def by_link(self) -> Mapping[Link, tuple[Flow, ...]]:
        """The flows of each link."""
        flows: dict[Link, list[Flow]] = {}
        for flow in self.flows:
            flows.setdefault(flow.link, []).append(flow)
        return {link: tuple(of) for link, of in flows.items()}

    @cached_property
    def by_ends(self) -> Mapping[tuple[Link, bytes, bytes], Traffic]:
        """The flows on a link from one address to another."""
        flows: dict[tuple[Link, bytes, bytes], list[Flow]] = {}
        for flow in self.flows:
            flows.setdefault((flow.link, flow.source, flow.destination), []).append(flow)
        return {ends: Traffic(of) for ends, of in flows.items()}

    def between(self, link: Link, source: Site, destination: Site) -> tuple[Traffic, ...]:
        """The traffic on a link from one pod to another, of both families. Asked for many calls, looked up once.

        By their addresses: a pod that is created again has others.
        """
        pair = (link, source.addresses, destination.addresses)
        known = self._between.get(pair)
        if known is None:
            ends = ((link, one, other) for one in source.addresses for other in destination.addresses)
            known = self._between[pair] = tuple(self.by_ends[end] for end in ends if end in self.by_ends)
        return known

    def began_ns(self, flow: Flow) -> int:
        """When the first packet of the flow's connection was seen, on any link.

        A flow may begin later on one of them: the end of a connection whose other pod has gone sends again to the pod
        that has come to its address.
        """
        return self._beginnings.get(_place(flow), flow.began_ns)

    @cached_property
    def _beginnings(self) -> dict[_Place, int]:
        return {_place(flow): began_ns for flow, began_ns in beginnings(self.flows)}

    @cached_property
    def _between(self) -> dict[tuple[Link, frozenset[bytes], frozenset[bytes]], tuple[Traffic, ...]]:
        return {}

    def frames(self) -> Iterator[tuple[tuple[int, int], bool, int, bytes]]:
        """Link, whether outgoing, time and frame of every packet, beacons left out."""
        for piece in self.pieces:
            for index, (packet, key) in enumerate(zip(piece.packets, piece.keys, strict=True)):
                if key not in self.beacon_keys:
                    yield (packet.node, packet.ifindex), packet.outgoing, packet.time_ns, piece.frame(index)

    @cached_property
    def control(self) -> str:
        """What shows that a leak would have been seen; empty where something is missing."""
        if self.blind or not self.beacons.expected:
            return ""
        links = {(beacon.link, beacon.outgoing) for beacon in self.beacons.expected.values()}
        return f"{len(self.beacons.expected)} beacons seen in clear on {len(links)} links and directions, 0 drops"

    @cached_property
    def blind(self) -> str:
        """Why the window may not have seen everything; empty where it did."""
        if self.lost_bytes:
            return (
                f"the window is larger than its bound: {self.size_bytes} bytes kept, {self.lost_bytes} not."
                " Make fewer calls in one window, or prove bulk by hash"
            )
        if self.drops:
            return "the capture lost packets: " + ", ".join(f"{n} on {node}" for node, n in sorted(self.drops.items()))
        if self.cut_packets:
            return f"{self.cut_packets} packets were kept in part only"
        if self.unread:
            counted = (f"{count} {reason}" for reason, count in sorted(self.unread.items()) if count)
            return f"a canary could have been missed in {', in '.join(counted)}"
        if self.missing:
            return f"{len(self.missing)} of {len(self.beacons.expected)} beacons were not seen"
        return ""


def _place(flow: Flow) -> _Place:
    """What tells a flow from every other one of its window."""
    return (*flow[:7], flow.began_ns)
