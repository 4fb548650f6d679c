"""One direction of a connection as it was seen on one link, and a canary as it was found there."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from operator import attrgetter
from typing import NamedTuple

from meshlab.model.ambient import HBONE_PORT
from meshlab.proofs.links import Link
from meshlab.proofs.packets import ICMP, ICMPV6, TCP, UDP

_Ends = frozenset[tuple[bytes, int]]
_SAME_NS = 5_000_000_000
"""A packet that comes so soon after another of its two ends belongs to the same connection: ports are not used again
sooner. What Linux sends again may be the first packet on a link: that of a pod which has come to the address."""
_PROTOCOLS = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


class Flow(NamedTuple):
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
    data: tuple[tuple[int, int], ...]
    """Time and bytes of each that carried something."""
    from_birth: bool
    """Its first byte was seen; else nobody knows where its TLS records begin."""
    hole: bool
    """Bytes are missing between others that were seen."""
    not_tls: str
    """On 15008: why its bytes are not TLS records; empty where they are."""
    no_certificate: str = ""
    """On 15008: why its client cannot have shown a certificate; empty where it may have."""
    began_ns: int = 0
    """When its first packet was seen, in the window or before it."""

    @property
    def is_hbone(self) -> bool:
        return self.protocol == TCP and HBONE_PORT in {self.source_port, self.destination_port}

    def __str__(self) -> str:
        name = _PROTOCOLS.get(self.protocol, f"protocol {self.protocol}")
        source, destination = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        return f"{name} {source} -> {destination} on {self.link}"


class Finding(NamedTuple):
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


def _end(address: bytes, port: int) -> str:
    if not address:
        return "not IP"
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"


def beginnings(flows: Iterable[Flow]) -> Iterator[tuple[Flow, int]]:
    """Each flow of TCP, and when the first packet of its connection was seen, on any link and in either direction."""
    by_ends: dict[_Ends, list[Flow]] = defaultdict(list)
    for flow in flows:
        if flow.protocol == TCP:
            by_ends[_ends(flow)].append(flow)
    for some in by_ends.values():
        began_ns = 0
        times = sorted(time_ns for flow in some for time_ns in (flow.began_ns, *flow.times))
        for flow in sorted(some, key=attrgetter("began_ns")):
            at = bisect_left(times, flow.began_ns)
            if at == 0 or flow.began_ns - times[at - 1] > _SAME_NS:
                began_ns = flow.began_ns
            yield flow, began_ns


def _ends(flow: Flow) -> _Ends:
    return frozenset({(flow.source, flow.source_port), (flow.destination, flow.destination_port)})
