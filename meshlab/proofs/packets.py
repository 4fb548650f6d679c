"""From what the recorder wrote to packets and their headers. Never copies a frame: a packet is a place in the buffer.

    buffer   record | record | ...
    record   kind u16, node u16, length u32 | a block of a TPACKET_V3 ring, verbatim      (kind BLOCK)
                                            | u64 how many bytes were not kept            (kind GAP)
    block    block_desc 48 bytes | tpacket3_hdr 48, sockaddr_ll 20, padding, frame | ...

Sources: Documentation/networking/packet_mmap.rst and include/uapi/linux/if_packet.h of Linux.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

RECORD = struct.Struct("<HHI")
"""What stands before each block: kind, the node's index, how many bytes follow."""
BLOCK = 1
GAP = 2
LOST = struct.Struct("<Q")

TCP = 6
UDP = 17
ICMP = 1
ICMPV6 = 58
NOT_IP = -1
"""``Header.protocol`` of ARP and the like, and of a frame that ends inside its own headers."""

FIN = 0x01
SYN = 0x02
RST = 0x04

_BLOCK_DESC = struct.Struct("=12xII")  # num_pkts, offset_to_first_pkt; block_status is before them
# tp_next_offset, tp_sec, tp_nsec, tp_snaplen, tp_len, tp_status, tp_mac, then sll_ifindex and sll_pkttype at 48
_PACKET = struct.Struct("=IIIIIxxxxH26xixxB")
_OUTGOING = 4  # PACKET_OUTGOING
_LEAST_BYTES = 48 + 20
"""Of a packet in a block: its header, and the link's address."""
_NUM_PKTS_AT = 12
_DESC_BYTES = 48
_LEAST_OF = {BLOCK: _DESC_BYTES, GAP: LOST.size}
"""How much a record of each kind has at least."""

_IPV4 = struct.Struct("!BxHxxHxBxx4s4s")
_IPV6 = struct.Struct("!xxxxHBx16s16s")
_TCP = struct.Struct("!HHIxxxxBB")
_PORTS = struct.Struct("!HH")
_CHAINED = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options: RFC 8200 4
_FRAGMENT = 44
_MORE, _OFFSET = 0x2000, 0x1FFF


class Packet(NamedTuple):
    """One packet where it passed one link."""

    node: int
    """Index of the ring that saw it."""
    ifindex: int
    outgoing: bool
    """As the node sees the link: towards the pod, or into the fabric."""
    time_ns: int
    start: int
    """The frame is ``buffer[start:end]``."""
    end: int
    whole: bool
    """The ring kept all of it."""


class Header(NamedTuple):
    """What the proofs read of a frame."""

    protocol: int
    source: bytes
    """Packed, 4 or 16 bytes; empty where the frame is not IP."""
    destination: bytes
    source_port: int
    """For ICMP its type."""
    destination_port: int
    """For ICMP its code."""
    seq: int
    flags: int
    payload: int
    """The payload is ``buffer[payload:end]``."""
    end: int
    fragment: bool = False
    """It is one of several fragments: its payload is that of IP, and it has no ports."""


_NOT_IP = Header(NOT_IP, b"", b"", 0, 0, 0, 0, 0, 0)


def recorded(buffer: bytes) -> Iterator[Packet]:
    """Every packet of a buffer of whole records, in the order in which the rings kept them.

    Raises:
        ValueError: something else than a recorder and a ring has written there.
    """
    unpack = _PACKET.unpack_from
    for kind, node, block, size in _records(buffer):
        if kind != BLOCK:
            continue
        count, first = _BLOCK_DESC.unpack_from(buffer, block)
        if count * _LEAST_BYTES > size:
            raise ValueError(f"{count} packets in a block of {size} bytes, at byte {block}")
        at, last = block + first, block + size
        try:
            for _ in range(count):
                step, sec, nsec, kept, length, mac, ifindex, pkttype = unpack(buffer, at)
                frame = at + mac
                end = frame + kept
                if end > last:
                    raise ValueError(f"a packet that ends behind its block, at byte {at}")
                time_ns = sec * 1_000_000_000 + nsec
                yield Packet(node, ifindex, pkttype == _OUTGOING, time_ns, frame, end, kept == length)
                at += step
        except struct.error as error:
            raise ValueError(f"a packet behind all blocks, at byte {at}") from error


def lost_bytes(buffer: bytes) -> int:
    """How many bytes the recorder could not keep, by its own word.

    Raises:
        ValueError: as ``recorded``.
    """
    return sum(LOST.unpack_from(buffer, start)[0] for kind, _, start, _ in _records(buffer) if kind == GAP)


def outgoing_only(block: bytes) -> bytes:
    """The block without what arrived: what a ring that taps one direction only would have kept."""
    count, first = _BLOCK_DESC.unpack_from(block)
    kept, at = [], first
    for number in range(count):
        step = struct.unpack_from("=I", block, at)[0] if number < count - 1 else len(block) - at
        if _PACKET.unpack_from(block, at)[-1] == _OUTGOING:
            kept.append(block[at : at + step])
        at += step
    desc = bytearray(block[:_DESC_BYTES])
    struct.pack_into("=II", desc, _NUM_PKTS_AT, len(kept), _DESC_BYTES)
    return b"".join([bytes(desc), *kept])


def _records(buffer: bytes) -> Iterator[tuple[int, int, int, int]]:
    at = 0
    while at < len(buffer):
        kind, node, length = RECORD.unpack(buffer[at : at + RECORD.size].ljust(RECORD.size, b"\0"))
        start = at + RECORD.size
        if start + length > len(buffer) or length < _LEAST_OF.get(kind, sys.maxsize):
            raise ValueError(f"no record of kind {kind} and {length} bytes, at byte {at}")
        yield kind, node, start, length
        at = start + length


def parse(buffer: bytes, start: int, end: int) -> Header:
    """The headers of the Ethernet frame ``buffer[start:end]``.

    A fragment has its protocol and addresses, and ports 0. VLAN tags are not read (veths have none).
    """
    if end - start < 34:
        return _NOT_IP
    kind = buffer[start + 12] << 8 | buffer[start + 13]
    at = start + 14
    if kind == 0x0800:
        head, total, fragment, protocol, source, destination = _IPV4.unpack_from(buffer, at)
        # A length of 0 is a segment that the card (here: nobody) would still cut into packets.
        end = min(end, at + total) if total else end
        at += (head & 15) * 4
        fragment &= _MORE | _OFFSET
    elif kind == 0x86DD and end - start >= 54:
        length, protocol, source, destination = _IPV6.unpack_from(buffer, at)
        at += 40
        end = min(end, at + length) if length else end
        protocol, at, fragment = _extensions(buffer, protocol, at, end)
    else:
        return _NOT_IP
    if fragment:
        return Header(protocol, source, destination, 0, 0, 0, 0, min(at, end), end, True)
    return _transport(buffer, protocol, source, destination, at, end)


def _extensions(buffer: bytes, protocol: int, at: int, end: int) -> tuple[int, int, int]:
    """Skip IPv6 extension headers: what follows them, where, and the fragment's offset and whether more follow."""
    fragment = 0
    while at + 8 <= end and (protocol in _CHAINED or protocol == _FRAGMENT) and not fragment:
        if protocol == _FRAGMENT:
            fragment = (buffer[at + 2] << 8 | buffer[at + 3]) & ~0x6  # two reserved bits
            protocol, at = buffer[at], at + 8
        else:
            protocol, at = buffer[at], at + 8 + buffer[at + 1] * 8
    return protocol, at, fragment


def _transport(buffer: bytes, protocol: int, source: bytes, destination: bytes, at: int, end: int) -> Header:
    if protocol == TCP and at + 20 <= end:
        source_port, destination_port, seq, offset, flags = _TCP.unpack_from(buffer, at)
        payload = min(at + (offset >> 4) * 4, end)
        return Header(protocol, source, destination, source_port, destination_port, seq, flags, payload, end)
    if protocol == UDP and at + 8 <= end:
        source_port, destination_port = _PORTS.unpack_from(buffer, at)
        return Header(protocol, source, destination, source_port, destination_port, 0, 0, at + 8, end)
    if protocol in {ICMP, ICMPV6} and at + 4 <= end:
        return Header(protocol, source, destination, buffer[at], buffer[at + 1], 0, 0, at + 4, end)
    return Header(protocol, source, destination, 0, 0, 0, 0, min(at, end), end)
