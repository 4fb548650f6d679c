"""Inflates what may be a compressed stream, as far as it goes, and says how it ended. Its work is bounded by a budget.

    begins like gzip --the bytes inflate to its end--> whole, and with it the members that follow at once
                     --the data ends before----------> cut
                     --the bytes do not inflate------> broken, or it only began like gzip: ``likely`` tells them apart

TLS records contain the three bytes of gzip's magic by chance, once in 16 MiB (2 ** -24 for each byte). A break is taken
for chance unless the header is one that compressors write (flags, level and system: 2 ** -13.5) and a few bytes came
out (one in 50 for random bytes, as a test measures). Together that is one false alarm in 8 TiB of ciphertext. What came
out is searched in any case.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import Enum, auto

from meshlab.proofs.unread import Budget

GZIP_MAGIC = b"\x1f\x8b\x08"
_GZIP_HEADER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
"""Flags without the reserved ones, any time, the levels of RFC 1952 2.3.1 and its systems."""
GZIP = 31
ZLIB = 15
DEFLATE = -15
PLAUSIBLE_BYTES = 16

_STEP_BYTES = 4096
_OUTPUT_BYTES = 1 << 18
_COPY_BYTES = 1024
"""What a copy of an inflater's state costs, as if so many bytes were inflated."""


class End(Enum):
    """How a compressed stream ended."""

    BROKEN = auto()
    CUT = auto()
    WHOLE = auto()
    TOO_LARGE = auto()
    """The budget was used up."""


@dataclass(frozen=True, slots=True)
class Inflated:
    """What came out of a compressed stream."""

    text: bytes
    end: End
    likely: bool
    """It is no chance: the header is one that compressors write, and where it broke a few bytes had come out."""
    next: int
    """Where to look further: behind the stream, or, where it broke or is chance, just behind its beginning."""


def inflate(data: bytes, at: int, budget: Budget, wbits: int = GZIP) -> Inflated:
    """Inflate the stream that begins at ``at``; members of gzip that follow each other are one stream."""
    out = bytearray()
    view = memoryview(data)
    behind = at
    while True:
        end, behind = _member(view, behind, out, budget, wbits)
        if end is not End.WHOLE or wbits != GZIP or data[behind : behind + 3] != GZIP_MAGIC:
            break
    likely = wbits != GZIP or _GZIP_HEADER.match(data, at) is not None
    if end is End.BROKEN and wbits == GZIP:
        likely &= len(out) >= PLAUSIBLE_BYTES
    return Inflated(bytes(out), end, likely, at + 1 if end is End.BROKEN or not likely else behind)


def _member(data: memoryview, at: int, out: bytearray, budget: Budget, wbits: int) -> tuple[End, int]:
    """Inflate one member into ``out``; return how it ended, and where."""
    inflater = zlib.decompressobj(wbits=wbits)
    while at < len(data):
        if budget.used_up:
            return End.TOO_LARGE, at
        before, known = inflater.copy(), len(out)
        step = data[at : at + _STEP_BYTES]
        try:
            if not _feed(inflater, step, out, budget):
                return End.TOO_LARGE, at
        except zlib.error:
            del out[known:]
            return (End.BROKEN if _salvage(before, step, out, budget) else End.TOO_LARGE), at
        at += len(step)
        if inflater.eof:
            return End.WHOLE, at - len(inflater.unused_data)
    return End.CUT, at


def _feed(inflater: zlib._Decompress, data: memoryview, out: bytearray, budget: Budget) -> bool:
    """Inflate ``data`` into ``out``; False where the budget does not suffice for it."""
    waiting: memoryview | bytes = data
    enough = budget.take(_COPY_BYTES + len(data))
    while waiting and enough:
        text = inflater.decompress(waiting, _OUTPUT_BYTES)
        out += text
        enough = budget.take(len(text) - len(inflater.unused_data))
        waiting = inflater.unconsumed_tail
    return enough


def _salvage(inflater: zlib._Decompress, data: memoryview, out: bytearray, budget: Budget) -> bool:
    """Inflate ``data`` up to the byte at which it breaks, by halving what is left of it."""
    enough, size = True, len(data)
    while size > 1 and enough:
        size = (size + 1) // 2
        trial, known = inflater.copy(), len(out)
        try:
            enough = _feed(trial, data[:size], out, budget)
            inflater, data = trial, data[size:]
        except zlib.error:
            del out[known:]
    return enough
