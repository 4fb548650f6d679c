"""Looks for canaries in everything that a window holds: each packet for itself, and each stream put in order.

Buffers are searched whole (one ``find`` over megabytes); only where it hits is the packet looked up and searched again
for itself, so that what stands between packets (headers of the ring, old bytes in its padding) never counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from meshlab.proofs.canary import Hit, Search
from meshlab.proofs.flows import Finding
from meshlab.proofs.links import Wiring
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.streams import Stream


@dataclass(frozen=True, slots=True)
class Place:
    """Where a canary was found."""

    key: Key
    hit: Hit
    time_ns: int
    """Of the packet; of a stream's first bytes where only its segments together show it."""
    reassembled: bool


def places(search: Search, pieces: list[Piece], streams: list[tuple[Key, Stream]], *, raw: bool = False) -> list[Place]:
    """Every canary in every packet and stream, in all its forms (or only ``raw``)."""
    found = [place for piece in pieces for place in _in_packets(search, piece, raw)]
    known = {(place.key, place.hit.number, place.hit.encoding) for place in found}
    for key, stream in streams:
        if len(stream.chunks) < 2:  # one packet's payload, which was searched as a packet
            continue
        data = b"".join(stream.chunks)
        hits = search.raw(data) if raw else search.everywhere(data)
        found += [
            Place(key, hit, stream.data_times[0], reassembled=True)
            for hit in hits
            if (key, hit.number, hit.encoding) not in known
        ]
    return found


def _in_packets(search: Search, piece: Piece, raw: bool) -> Iterator[Place]:
    offsets = {hit.offset for hit in (search.raw if raw else search.plain)(piece.buffer)}
    if not raw:
        offsets.update(search.gzip_streams(piece.buffer))
    for index in sorted({index for offset in offsets if (index := piece.at(offset)) is not None}):
        frame = piece.frame(index)
        for hit in (search.raw if raw else search.everywhere)(frame):
            yield Place(piece.keys[index], hit, piece.packets[index].time_ns, reassembled=False)


def findings(found: list[Place], wiring: Wiring) -> tuple[Finding, ...]:
    """In the caller's words. A number that a packet's end cut off is left out where the stream shows it whole."""
    whole: dict[Key, bool] = defaultdict(bool)
    for place in found:
        whole[place.key] |= place.hit.number is not None
    return tuple(
        Finding(
            number=place.hit.number,
            encoding=place.hit.encoding,
            link=wiring.link(*place.key[:2]),
            outgoing=place.key[2],
            source=place.key[4],
            destination=place.key[5],
            source_port=place.key[6],
            destination_port=place.key[7],
            time_ns=place.time_ns,
            reassembled=place.reassembled,
        )
        for place in found
        if place.hit.number is not None or not whole[place.key]
    )
