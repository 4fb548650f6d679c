"""Looks for canaries in everything that a window holds: each packet for itself, and each stream put in order.

Buffers are searched whole (one ``find`` over megabytes); only where it hits is the packet looked up and searched again
for itself, so that what stands between packets (headers of the ring, old bytes in its padding) never counts. Layers
(gzip, chunks) are taken off streams, and off datagrams; a single segment of a stream would only look broken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

from meshlab.proofs.canary import LONGEST_BYTES
from meshlab.proofs.flows import Finding
from meshlab.proofs.forms import Form
from meshlab.proofs.inflating import GZIP_MAGIC
from meshlab.proofs.links import Wiring
from meshlab.proofs.packets import NOT_IP, TCP
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.search import Hit, Search, offsets
from meshlab.proofs.streams import Stream

Streams = Sequence[tuple[Key, Stream]]
PacketTexts = dict[tuple[bytes, bool], list[tuple[Piece, int]]]
"""A text that packets hold, and whether it is a segment of TCP -> the packets that hold it."""
_HOP_BYTES = 26
"""What routers change of a frame is among its first bytes: MAC addresses, IPv6's hop limit, IPv4's TTL and checksum."""
_REACH_BYTES = 8 * LONGEST_BYTES
"""More than a word takes in any form: with line breaks, with separators, or with 30 bits for each character."""


class HasNeedle(Protocol):
    """Something that is found by searching for some bytes."""

    @property
    def needle(self) -> bytes: ...


T = TypeVar("T", bound=HasNeedle)


class Place(NamedTuple):
    """Where a canary was found."""

    key: Key
    hit: Hit
    time_ns: int
    """Of the packet; of a stream's first bytes where only its segments together show it."""
    reassembled: bool


def places(search: Search, texts: PacketTexts, streams: Streams) -> list[Place]:
    """Find every canary in every packet and stream, in all its forms.

    A segment may cut a word's number off. Its stream shows whose the word is, so only what the stream finds without a
    number is left without one.
    """
    found = [*_in_packets(search, texts)]
    known = {(place.key, place.hit.number, place.hit.encoding) for place in found if place.hit.number is not None}
    hit_keys = {place.key for place in found}
    followed = {key for key, stream in streams if len(stream.chunks) > 1 and not stream.pending}
    found = [place for place in found if place.hit.number is not None or place.key not in followed]
    followed_bytes = [(key, stream, b"".join(stream.chunks)) for key, stream in streams if stream.chunks]
    # Of a stream with hits in its packets all is read again: whose a word is, the packet before may say.
    across = [_across(stream, data, key in hit_keys) for key, stream, data in followed_bytes]
    forms = standing(search.forms, across)
    read: dict[tuple[bytes, tuple[Form, ...]], list[Hit]] = {}
    for (key, stream, data), text in zip(followed_bytes, across, strict=True):
        what = data, forms[text]
        if what not in read:
            read[what] = search.everywhere(data, among=forms[text])
        found += [
            Place(key, hit, stream.data_times[0], reassembled=len(stream.chunks) > 1)
            for hit in read[what]
            if (key, hit.number, hit.encoding) not in known
        ]
    return found


def _across(stream: Stream, data: bytes, whole: bool) -> bytes:
    """Return the part of a stream's ``data`` that can hold a word which no single packet shows; or all of it.

    Each packet has been searched for itself, so nothing is left to search of a stream that is a single packet.
    """
    if len(stream.chunks) == 1:
        return b""
    return data if whole else _seams(stream.chunks)


def _seams(chunks: Sequence[bytes]) -> bytes:
    """What of a stream can hold a word that lies in several of its packets. Each packet was searched for itself."""
    return b"".join(
        chunk if len(chunk) <= 2 * _REACH_BYTES else chunk[:_REACH_BYTES] + b"\0" + chunk[-_REACH_BYTES:]
        for chunk in chunks
    )


def standing(needles: Iterable[T], texts: Iterable[bytes]) -> dict[bytes, tuple[T, ...]]:
    """Of each text the needles (or forms that have one) that stand in it, found in one pass over all texts.

    What a call sends passes up to four links unchanged, so that many texts are the same: each is searched once.
    """
    found: dict[bytes, list[T]] = {text: [] for text in texts}
    each = [*found]
    starts = list(accumulate((len(text) for text in each), initial=0))
    whole = b"".join(each)
    for one in needles:
        for place in sorted({bisect_right(starts, offset) - 1 for offset in offsets(whole, one.needle)}):
            found[each[place]].append(one)
    return {text: tuple(of) for text, of in found.items()}


def raw_places(search: Search, pieces: Sequence[Piece], streams: Streams, wanted: Callable[[Key], bool]) -> list[Place]:
    """Find every word, as it is, in the packets and streams of the ``wanted`` flows."""
    found = [
        Place(piece.keys[index], hit, piece.packets[index].time_ns, reassembled=False)
        for piece in pieces
        for index in piece.indexes(search.raw_offsets(piece.buffer))
        if wanted(piece.keys[index])
        for hit in search.raw(piece.frame(index))
    ]
    for key, stream in streams:
        if len(stream.chunks) > 1 and wanted(key):
            found += [
                Place(key, hit, stream.data_times[0], reassembled=True)
                for hit in search.raw(b"".join(stream.chunks))
                if hit.number is not None
            ]
    return found


def _in_packets(search: Search, texts: PacketTexts) -> Iterator[Place]:
    forms = standing(search.forms, (text for text, _ in texts))
    for (text, segment), packets in texts.items():
        if segment and forms[text]:
            hits = search.plain(text, forms[text])
        elif not segment and (forms[text] or GZIP_MAGIC in text):
            hits = search.everywhere(text, more_follows=False)
        else:
            continue
        for piece, index in packets:
            for hit in hits:
                yield Place(piece.keys[index], hit, piece.packets[index].time_ns, reassembled=False)


def packet_texts(pieces: Sequence[Piece]) -> PacketTexts:
    """Collect the texts of all packets, each once, however many links it has passed."""
    passed: PacketTexts = {}
    for piece in pieces:
        for index in piece.searched:
            if index not in piece.joined:
                packet = piece.packets[index]
                protocol = piece.keys[index][3]
                start = packet.start if protocol == NOT_IP else packet.start + _HOP_BYTES
                passed.setdefault((piece.buffer[start : packet.end], protocol == TCP), []).append((piece, index))
    return passed


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
