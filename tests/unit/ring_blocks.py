"""Blocks as a TPACKET_V3 ring hands them out, for tests without a kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from meshlab.proofs.packets import BLOCK, GAP, LOST, RECORD

_MAC_AT = 82


def block(packets: Iterable[tuple[int, bool, int, bytes]], *, stale: bytes = b"") -> bytes:
    """Ifindex, whether outgoing, time, frame; ``stale`` is what an older packet left in the padding."""
    parts = [_packet(*packet, stale) for packet in packets]
    linked = [struct.pack("=I", 0 if part is parts[-1] else len(part)) + part[4:] for part in parts]
    body = b"".join(linked)
    return struct.pack("=IIIIIIQIIII", 3, 0, 1, len(parts), 48, 48 + len(body), 0, 0, 0, 0, 0) + body


def record(node: int, data: bytes) -> bytes:
    return RECORD.pack(BLOCK, node, len(data)) + data


def gap(node: int, lost: int) -> bytes:
    return RECORD.pack(GAP, node, LOST.size) + LOST.pack(lost)


def _packet(ifindex: int, outgoing: bool, time_ns: int, frame: bytes, stale: bytes) -> bytes:
    sec, nsec = divmod(time_ns, 10**9)
    head = struct.pack("=IIIIIIHH", 0, sec, nsec, len(frame), len(frame), 1, _MAC_AT, _MAC_AT + 14)
    address = struct.pack("=HHiHBB8x", 17, 8, ifindex, 1, 4 if outgoing else 3, 6)
    whole = (head.ljust(48, b"\0") + address).ljust(_MAC_AT, b"\0") + frame
    padding = -len(whole) % 16
    return whole + (stale + bytes(padding))[:padding]
