"""Puts IP datagrams together that were seen in fragments, in whatever order and however often these came.

    fragment --> waits for the others --all are there--> a frame as if it had never been cut
                                      --too many wait, or two disagree--> counted, never put together

Sources: RFC 791 3.2, RFC 8200 4.5. Fragments that overlap and agree are taken; Linux drops all that overlap.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlab.proofs.packets import Header, Packet
from meshlab.proofs.pieces import Key, Piece

_MOST_DATAGRAMS = 256
_MOST_BYTES = 65535
_ETHERNET_BYTES = 14
_IPV6_BYTES = 40
_MORE_4, _OFFSET_4 = 0x2000, 0x1FFF
_MORE_6, _OFFSET_6 = 0x1, 0xFFF8

_Id = tuple[Key, bytes]
"""The fragments' common key, and the identification of their datagram."""


class Fragment(NamedTuple):
    """One fragment, and where it was kept."""

    packet: Packet
    key: Key
    head: Header
    piece: Piece
    place: int
    """Of the packet in the piece."""


class _Said(NamedTuple):
    """What the header says."""

    ident: bytes
    offset: int
    more: bool
    """Others follow."""


@dataclass(slots=True)
class _Datagram:
    data: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    """A 1 for each byte of ``data`` that came."""
    came: int = 0
    """How many bytes of it came."""
    size: int = -1
    """Of all of it, once the last fragment came."""
    disagrees: bool = False
    kept: list[Fragment] = field(default_factory=list)
    """Those that came in this window."""

    @property
    def whole(self) -> bool:
        return self.came == self.size and not self.disagrees

    def agrees(self, offset: int, data: bytes) -> bool:
        return self.data[offset : offset + len(data)] == data

    def add(self, offset: int, data: bytes, more: bool) -> None:
        end = offset + len(data)
        self.disagrees |= end > _MOST_BYTES or (not more and self.size not in {-1, end})
        if self.disagrees:
            return
        self.size = self.size if more else end
        for buffer in (self.data, self.seen):
            buffer.extend(bytes(max(0, end - len(buffer))))
        known = self.seen.count(1, offset, end)
        if known:
            ours, seen = self.data[offset:end], self.seen[offset:end]
            self.disagrees |= any(known and one != other for known, one, other in zip(seen, ours, data, strict=True))
        self.data[offset:end] = data
        self.seen[offset:end] = b"\1" * len(data)
        self.came += len(data) - known
        self.disagrees |= -1 < self.size < len(self.data)


class Fragments:
    """The datagrams of one lab of which fragments were seen. Bounded: the oldest is given up first."""

    def __init__(self) -> None:
        self._datagrams: dict[_Id, _Datagram] = {}
        self._missed: list[list[Fragment]] = []
        """Of this window, by datagram."""

    def begin(self) -> None:
        """Begin a window. What waits since before it may still become whole, but is not missed."""
        self._missed.clear()

    def take(self, fragment: Fragment, *, keep: bool) -> bytes | None:
        """Take the next fragment; return the whole frame if it was the last one that was missing.

        Args:
            fragment: of any datagram.
            keep: a window is open, so it is missed if the others do not come.
        """
        buffer, head = fragment.piece.buffer, fragment.head
        said = _said(buffer, fragment)
        data = buffer[head.payload : head.end]
        datagram = self._datagram((fragment.key, said.ident), said.offset, data)
        if datagram.whole:  # a late copy
            fragment.piece.joined.add(fragment.place)
            return None
        if keep:
            datagram.kept.append(fragment)
        datagram.add(said.offset, data, said.more)
        if not datagram.whole:
            return None
        for kept in datagram.kept:
            kept.piece.joined.add(kept.place)
        datagram.kept.clear()
        return _frame(buffer, fragment, bytes(datagram.data))

    def end(self) -> list[list[Fragment]]:
        """End a window: the fragments of each datagram that did not become whole in it. All is forgotten."""
        missed = [*self._missed, *(datagram.kept for datagram in self._datagrams.values() if datagram.kept)]
        self._datagrams, self._missed = {}, []
        return missed

    def _datagram(self, which: _Id, offset: int, data: bytes) -> _Datagram:
        """The one that the fragment belongs to: a new one of the same identification, where the known one is whole."""
        known = self._datagrams.get(which)
        if known is None or (known.whole and not known.agrees(offset, data)):
            self._datagrams.pop(which, None)
            known = self._datagrams[which] = _Datagram()
            if len(self._datagrams) > _MOST_DATAGRAMS:
                oldest = self._datagrams.pop(next(iter(self._datagrams)))
                if oldest.kept:
                    self._missed.append(oldest.kept)
        return known


def _said(buffer: bytes, fragment: Fragment) -> _Said:
    if len(fragment.head.source) == 4:
        ident, bits = struct.unpack_from("!2sH", buffer, fragment.packet.start + _ETHERNET_BYTES + 4)
        return _Said(ident, (bits & _OFFSET_4) * 8, bool(bits & _MORE_4))
    bits, ident = struct.unpack_from("!H4s", buffer, fragment.head.payload - 6)  # the fragment header is the last one
    return _Said(ident, bits & _OFFSET_6, bool(bits & _MORE_6))


def _frame(buffer: bytes, fragment: Fragment, payload: bytes) -> bytes:
    """The datagram in one frame, without options. Checksums are those of the fragment, which nobody looks at."""
    start, head = fragment.packet.start + _ETHERNET_BYTES, fragment.head
    ethernet = buffer[fragment.packet.start : start]
    if len(head.source) == 4:
        size = 20 + len(payload) if 20 + len(payload) <= _MOST_BYTES else 0  # 0: up to the frame's end
        fixed = bytes([0x45, 0]) + struct.pack("!H", size) + bytes(4) + buffer[start + 8 : start + 20]
    else:
        fixed = buffer[start : start + 4] + struct.pack("!HB", len(payload), head.protocol)
        fixed += buffer[start + 7 : start + _IPV6_BYTES]
    return ethernet + fixed + payload
