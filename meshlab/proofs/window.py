"""What was seen between the two ends of a capture window. Facts only: ``verdicts`` draws the conclusions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address

from meshlab.proofs.beacon import Beacon, Beacons
from meshlab.proofs.links import Link
from meshlab.proofs.packets import ICMP, ICMPV6, TCP, UDP
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.streams import HBONE_PORT

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One direction of one connection (or of datagrams) on one link."""

    link: Link
    outgoing: bool
    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    payload_bytes: int
    times: tuple[int, ...]
    """Of its packets, in ns."""
    data_times: tuple[int, ...]
    """Of those that carried something."""
    from_birth: bool
    """Its first byte was seen; else nobody knows where its TLS records begin."""
    hole: bool
    """Bytes are missing between others that were seen."""
    not_tls: str
    """On 15008: why its bytes are not TLS records; empty where they are."""

    @property
    def is_hbone(self) -> bool:
        return self.protocol == TCP and HBONE_PORT in {self.source_port, self.destination_port}

    def passed(self, started_ns: int, ended_ns: int) -> int:
        """How many of its packets are of this time."""
        return _within(self.times, started_ns, ended_ns)

    def carried(self, started_ns: int, ended_ns: int) -> int:
        """How many of its packets with payload are of this time."""
        return _within(self.data_times, started_ns, ended_ns)

    def __str__(self) -> str:
        name = _PROTOCOLS.get(self.protocol, f"protocol {self.protocol}")
        source, destination = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        return f"{name} {source} -> {destination} on {self.link}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A call's canary, readable on a link."""

    number: int | None
    """The call's; ``None`` where its digits were cut off."""
    encoding: str
    """``raw``, ``hex``, ``base64+0`` to ``+2`` (bytes before it in its group), ``gzip``, ``gzip+hex`` ..."""
    link: Link
    outgoing: bool
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    time_ns: int
    reassembled: bool
    """Only the segments together show it."""

    def __str__(self) -> str:
        source, destination = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        how = f"{self.encoding}, over several segments" if self.reassembled else self.encoding
        return f"canary of call {self.number} in clear ({how}) on {self.link}: {source} -> {destination}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A closed window."""

    flows: tuple[Flow, ...]
    """Beacons left out."""
    findings: tuple[Finding, ...]
    drops: Mapping[str, int]
    """By node, where a ring lost packets."""
    lost_bytes: int
    """What the recorder could not keep: the window was beyond its bound."""
    cut_packets: int
    """Packets of which only a part was kept."""
    cut_gzip: int
    """Gzip streams of which only a part was searched."""
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
    def by_ends(self) -> Mapping[tuple[Link, bytes, bytes], tuple[Flow, ...]]:
        """The flows on a link from one address to another."""
        flows: dict[tuple[Link, bytes, bytes], list[Flow]] = {}
        for flow in self.flows:
            flows.setdefault((flow.link, flow.source, flow.destination), []).append(flow)
        return {ends: tuple(of) for ends, of in flows.items()}

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
        if self.cut_gzip:
            return f"{self.cut_gzip} gzip streams were too large to be searched whole"
        if self.missing:
            return f"{len(self.missing)} of {len(self.beacons.expected)} beacons were not seen"
        return ""


def _within(times: tuple[int, ...], started_ns: int, ended_ns: int) -> int:
    return bisect_right(times, ended_ns) - bisect_left(times, started_ns)


def _end(address: bytes, port: int) -> str:
    if not address:
        return "not IP"
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"
