"""Looks for canaries in everything that a window holds: each packet for itself, and each stream put in order.

Buffers are searched whole (one ``find`` over megabytes); only where it hits is the packet looked up and searched again
for itself, so that what stands between packets (headers of the ring, old bytes in its padding) never counts. Layers
(gzip, chunks) are taken off streams, and off datagrams; a single segment of a stream would only look broken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from meshlab.proofs.canary import LONGEST_BYTES
from meshlab.proofs.flows import Finding
from meshlab.proofs.forms import Form
from meshlab.proofs.links import Wiring
from meshlab.proofs.packets import TCP
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.search import Hit, Search
from meshlab.proofs.streams import Stream

Streams = Sequence[tuple[Key, Stream]]
_REACH_BYTES = 8 * LONGEST_BYTES
"""More than a word takes in any form: with line breaks, with separators, or with 30 bits for each character."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a canary was found."""

    key: Key
    hit: Hit
    time_ns: int
    """Of the packet; of a stream's first bytes where only its segments together show it."""
    reassembled: bool


def places(search: Search, pieces: Sequence[Piece], streams: Streams) -> list[Place]:
    """Find every canary in every packet and stream, in all its forms.

    A segment may cut a word's number off. Its stream shows whose the word is, so only what the stream finds without a
    number is left without one.
    """
    found = [place for piece in pieces for place in _in_packets(search, piece)]
    known = {(place.key, place.hit.number, place.hit.encoding) for place in found if place.hit.number is not None}
    hit_keys = {place.key for place in found}
    followed = {key for key, stream in streams if stream.chunks and not stream.pending}
    found = [place for place in found if place.hit.number is not None or place.key not in followed]
    followed_bytes = [(key, stream, b"".join(stream.chunks)) for key, stream in streams if stream.chunks]
    # Of a stream with hits in its packets all is read again: whose a word is, the packet before may say.
    among = _forms_of(
        search, [data if key in hit_keys else _seams(stream.chunks) for key, stream, data in followed_bytes]
    )
    for (key, stream, data), forms in zip(followed_bytes, among, strict=True):
        several = len(stream.chunks) > 1
        # The payload of one packet was searched as a packet.
        hits = search.everywhere(data, among=forms if several or key in hit_keys else ())
        found += [
            Place(key, hit, stream.data_times[0], reassembled=several)
            for hit in hits
            if (key, hit.number, hit.encoding) not in known
        ]
    return found


def _seams(chunks: Sequence[bytes]) -> bytes:
    """What of a stream can hold a word that lies in several of its packets. Each packet was searched for itself."""
    return b"".join(
        chunk if len(chunk) <= 2 * _REACH_BYTES else chunk[:_REACH_BYTES] + b"\0" + chunk[-_REACH_BYTES:]
        for chunk in chunks
    )


def _forms_of(search: Search, texts: Sequence[bytes]) -> list[list[Form]]:
    """Of each text the forms whose needles stand in it, found in one pass over all texts."""
    starts = list(accumulate((len(text) for text in texts), initial=0))
    found: list[list[Form]] = [[] for _ in texts]
    for form, offsets in search.offsets(b"".join(texts)):
        if form is not None:
            for place in sorted({bisect_right(starts, offset) - 1 for offset in offsets}):
                found[place].append(form)
    return found


def raw_places(search: Search, pieces: Sequence[Piece], streams: Streams) -> list[Place]:
    """Find every word in every packet and stream, as it is."""
    found = [
        Place(piece.keys[index], hit, piece.packets[index].time_ns, reassembled=False)
        for piece in pieces
        for index in piece.indexes(search.raw_offsets(piece.buffer))
        for hit in search.raw(piece.frame(index))
    ]
    for key, stream in streams:
        if len(stream.chunks) > 1:
            found += [
                Place(key, hit, stream.data_times[0], reassembled=True)
                for hit in search.raw(b"".join(stream.chunks))
                if hit.number is not None
            ]
    return found


def _in_packets(search: Search, piece: Piece) -> Iterator[Place]:
    wanted: dict[int, list[Form]] = {}
    for form, offsets in search.offsets(piece.buffer):
        for index in piece.indexes(offsets):
            wanted.setdefault(index, []).extend([form] if form else [])
    for index, among in sorted(wanted.items(), key=lambda one: one[0]):
        frame, key = piece.frame(index), piece.keys[index]
        for hit in search.plain(frame, among) if key[3] == TCP else search.everywhere(frame, more_follows=False):
            yield Place(key, hit, piece.packets[index].time_ns, reassembled=False)


def findings(found: Iterable[Place], wiring: Wiring) -> tuple[Finding, ...]:
    """Say in the caller's words where the canaries were found."""
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
    )
