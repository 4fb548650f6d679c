"""What a window keeps: buffers, and where in them the packets are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from meshlab.proofs.packets import TCP, Header, Packet

Key = tuple[int, int, bool, int, bytes, bytes, int, int]
"""Ring, ifindex, outgoing, protocol, source, destination, source port, destination port."""

_BARE_BYTES = {4: 14 + 20 + 20 + 12, 16: 14 + 40 + 20 + 12}
"""By the size of its addresses: the frame of a TCP segment with no payload and no option but timestamps."""


@dataclass(slots=True)
class Piece:
    """A buffer of the open window, and the packets in it."""

    buffer: bytes
    packets: list[Packet] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    joined: set[int] = field(default_factory=set)
    """Packets that are fragments of a datagram which was put together, and is searched in their stead."""
    searched: list[int] = field(default_factory=list)
    """Packets that are more than a bare segment of TCP, and so have room for a word."""

    def add(self, packet: Packet, key: Key, head: Header) -> None:
        if head.payload < head.end or head.protocol != TCP or packet.end - packet.start > _BARE_BYTES[len(head.source)]:
            self.searched.append(len(self.packets))
        self.packets.append(packet)
        self.keys.append(key)

    @property
    def cut(self) -> int:
        """Packets of which the ring kept only a part."""
        return sum(not packet.whole for packet in self.packets)

    def at(self, offset: int) -> int | None:
        """Which packet holds the byte at ``offset``."""
        index = bisect_right(self.packets, offset, key=_start) - 1
        return index if index >= 0 and offset < self.packets[index].end else None

    def indexes(self, offsets: Iterable[int]) -> list[int]:
        """Which packets hold these bytes, fragments of what was put together left out."""
        return sorted({index for offset in offsets if (index := self.at(offset)) is not None} - self.joined)

    def frame(self, index: int) -> bytes:
        packet = self.packets[index]
        return self.buffer[packet.start : packet.end]


_start = attrgetter("start")
