"""Beacons: frames with a known word in clear, which show that a leak on a link would have been seen.

Of each link and direction, at both ends of a window: a UDP datagram, and before it a TCP stream whose word is split
over two segments, the second first, the first sent twice. So they pass only where ring, parser, reassembly and search
work. They go to a MAC address that is nobody's: they are seen, and not answered. At the second end the families change
places.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from meshlab.model import Family
from meshlab.proofs import canary
from meshlab.proofs.links import LinkId
from meshlab.proofs.packets import RST, SYN, TCP, UDP
from meshlab.proofs.pieces import Key
from meshlab.proofs.search import Search

FOREIGN_MAC = bytes.fromhex("026d65736801")
_OWN_MAC = bytes.fromhex("026d65736802")
_ENDS: Mapping[int, tuple[bytes, bytes]] = {  # documentation addresses: RFC 5737, RFC 3849
    4: (ip_address("192.0.2.1").packed, ip_address("192.0.2.2").packed),
    6: (ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed),
}
_PAIRS = frozenset(_ENDS.values())
_DISCARD = 9
_PSH_ACK = 0x18
_ISN = 0xFFFFFFF0
"""So near the end that each stream's sequence numbers wrap."""


@dataclass(frozen=True, slots=True)
class Beacon:
    """One word for one link and direction."""

    number: int
    link: LinkId
    outgoing: bool
    """True: to be sent from the node's end of the link; False: from its other end."""
    protocol: int
    family: Family


@dataclass(frozen=True, slots=True)
class Beacons:
    """All beacons of a window."""

    secret: bytes
    """Another one than the calls'."""
    expected: Mapping[int, Beacon]

    def is_ours(self, number: int | None) -> bool:
        return number in self.expected

    def missing(self, heard: frozenset[tuple[int, int, int, bool]]) -> tuple[Beacon, ...]:
        """Those that were not seen (number, ring, ifindex, outgoing) where they were sent."""
        return tuple(
            beacon for beacon in self.expected.values() if (beacon.number, *beacon.link, beacon.outgoing) not in heard
        )

    def joined(self, other: Beacons) -> Beacons:
        """Those of both ends of a window."""
        return Beacons(self.secret, {**self.expected, **other.expected})

    def unheard(self, buffer: bytes, waiting: Iterable[int]) -> frozenset[int]:
        """Of the numbers ``waiting``, those that do not stand in the buffer: the flush barrier asks, no proof."""
        return frozenset(waiting) - {hit.number for hit in Search(self.secret).raw(buffer)}

    def last(self) -> frozenset[int]:
        """The numbers of the datagrams, each the last frame of its link and direction."""
        return frozenset(beacon.number for beacon in self.expected.values() if beacon.protocol == UDP)


def opening(secret: bytes, links: Sequence[LinkId], first: int) -> Beacons:
    """The beacons for the beginning of a window, numbered from ``first``, which no window of the lab has had."""
    return _beacons(secret, links, first, datagram=4, stream=6)


def closing(secret: bytes, links: Sequence[LinkId], first: int) -> Beacons:
    """The same for its end, with the families exchanged."""
    return _beacons(secret, links, first, datagram=6, stream=4)


def _beacons(secret: bytes, links: Sequence[LinkId], first: int, datagram: Family, stream: Family) -> Beacons:
    kinds: tuple[tuple[int, Family], ...] = ((TCP, stream), (UDP, datagram))
    every = [
        (link, outgoing, protocol, family) for link in links for outgoing in (True, False) for protocol, family in kinds
    ]
    return Beacons(secret, {number: Beacon(number, *what) for number, what in enumerate(every, first)})


def frames(beacon: Beacon, secret: bytes) -> list[bytes]:
    """The Ethernet frames to put on the link, in this order."""
    word = canary.beacon(secret, beacon.number)
    if beacon.protocol == UDP:
        return [_ethernet(beacon, struct.pack("!HHHH", _port(beacon), _DISCARD, 8 + len(word), 0) + word)]
    half = len(word) // 2
    first, second = _segment(beacon, _ISN + 1, word[:half]), _segment(beacon, _ISN + 1 + half, word[half:])
    return [
        _segment(beacon, _ISN, b"", SYN),
        second,
        first,
        first,
        _segment(beacon, _ISN + 1 + len(word), b"", RST),
    ]


def may_carry(key: Key) -> bool:
    """Whether a beacon may be in packets of this flow."""
    return key[4:6] in _PAIRS and key[7] == _DISCARD


def _port(beacon: Beacon) -> int:
    """One flow for each, so that all packets of a beacon are known by it."""
    return 1024 + beacon.number % 64000


def _segment(beacon: Beacon, seq: int, payload: bytes, flags: int = _PSH_ACK) -> bytes:
    head = struct.pack("!HHIIBBHHH", _port(beacon), _DISCARD, seq & 0xFFFFFFFF, 0, 5 << 4, flags, 65535, 0, 0)
    return _ethernet(beacon, head + payload)


def _ethernet(beacon: Beacon, packet: bytes) -> bytes:
    """Around a UDP or TCP packet whose checksum is still 0."""
    source, destination = _ENDS[beacon.family]
    pseudo = source + destination + struct.pack("!HH", beacon.protocol, len(packet))
    at = 6 if beacon.protocol == UDP else 16
    packet = packet[:at] + struct.pack("!H", _checksum(pseudo + packet)) + packet[at + 2 :]
    if beacon.family == 6:
        head = struct.pack("!IHBB16s16s", 6 << 28, len(packet), beacon.protocol, 64, source, destination)
        return FOREIGN_MAC + _OWN_MAC + b"\x86\xdd" + head + packet
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(packet), 0, 0, 64, beacon.protocol, 0, source, destination)
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return FOREIGN_MAC + _OWN_MAC + b"\x08\x00" + head + packet


def _checksum(data: bytes) -> int:
    """RFC 1071: the sum of 16-bit words with end-around carry is the remainder of the whole number by 2 ** 16 - 1."""
    return ~(int.from_bytes(data + b"\0" * (len(data) % 2)) % 0xFFFF) & 0xFFFF or 0xFFFF
