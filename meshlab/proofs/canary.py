"""The words that calls carry, and the search for them in whatever form they may leak.

    canary   mlc-<32 hex digits, the lab's>-<number of the call>.
             \\_______ prefix ________/

One search finds all calls: it looks for the prefix, then reads the number behind it. A canary has only characters whose
base64 never contains ``+`` or ``/``, so the standard and the URL-safe alphabet write it alike.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFIX_BYTES = 36
RAW = "raw"
HEX = "hex"
GZIP = "gzip"

_NUMBER = re.compile(rb"-(\d{1,18})\.")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+")
_GZIP_MAGIC = b"\x1f\x8b\x08"
_INFLATE_STEP = 4096
_INFLATE_BYTES = 64 << 20
"""A stream that inflates beyond this is searched up to here, and says so."""
_TAIL_BYTES = 24
"""Enough for the longest number."""


def canary_prefix(secret: bytes) -> bytes:
    """What all canaries of a lab begin with, from its 16 random bytes."""
    if len(secret) != 16:
        raise ValueError(f"a canary's secret has 16 bytes, not {len(secret)}")
    return b"mlc-" + secret.hex().encode()


def canary(prefix: bytes, number: int) -> bytes:
    """The canary of the call ``number``."""
    return prefix + b"-%d." % number


@dataclass(frozen=True, slots=True)
class Hit:
    """A canary in some bytes."""

    number: int | None
    """``None``: the bytes end inside the number."""
    encoding: str
    offset: int


@dataclass(slots=True)
class Search:
    """Looks for all canaries of one prefix."""

    prefix: bytes
    cut_short: int = 0
    """How many gzip streams were larger inflated than what is searched."""
    _alignments: list[tuple[int, int, bytes]] = field(init=False)

    def __post_init__(self) -> None:
        self._alignments = [_aligned(self.prefix, pad) for pad in range(3)]

    def raw(self, data: bytes) -> Iterator[Hit]:
        """Only as it is."""
        for at in _places(data, self.prefix):
            yield Hit(_number(data[at + len(self.prefix) : at + len(self.prefix) + _TAIL_BYTES]), RAW, at)

    def plain(self, data: bytes) -> Iterator[Hit]:
        """As it is, in hex of either case, and in base64 at each of its three alignments."""
        yield from self.raw(data)
        for needle in (self.prefix.hex().encode(), self.prefix.hex().upper().encode()):
            for at in _places(data, needle):
                yield Hit(_number(_from_hex(data, at + len(needle))), HEX, at)
        for pad, skipped, needle in self._alignments:
            for at in _places(data, needle):
                text = _from_base64(data, at, skipped)
                yield Hit(_number(text[pad + len(self.prefix) :]), f"base64+{pad}", at)

    def gzip_streams(self, data: bytes) -> list[int]:
        """Where a gzip stream seems to begin."""
        return list(_places(data, _GZIP_MAGIC))

    def inflated(self, data: bytes, at: int) -> Iterator[Hit]:
        """In what the gzip stream that begins at ``at`` holds."""
        text = inflate(data[at:], _INFLATE_BYTES + 1)
        self.cut_short += len(text) > _INFLATE_BYTES
        for hit in self.plain(text):
            yield Hit(hit.number, GZIP if hit.encoding == RAW else f"{GZIP}+{hit.encoding}", at)

    def everywhere(self, data: bytes) -> Iterator[Hit]:
        """In every form at once."""
        yield from self.plain(data)
        for at in self.gzip_streams(data):
            yield from self.inflated(data, at)


def inflate(data: bytes, limit: int) -> bytes:
    """What can be inflated of a gzip stream, up to the byte at which it breaks (chunked HTTP breaks it)."""
    inflater = zlib.decompressobj(wbits=31)
    out = bytearray()
    for at in range(0, len(data), _INFLATE_STEP):
        before = inflater.copy()
        try:
            out += inflater.decompress(data[at : at + _INFLATE_STEP], limit - len(out))
        except zlib.error:
            out += _salvage(before, data[at : at + _INFLATE_STEP])
            break
        if inflater.eof or len(out) >= limit:
            break
    return bytes(out)


def _salvage(inflater: zlib._Decompress, data: bytes) -> bytes:
    out = bytearray()
    for byte in range(len(data)):
        try:
            out += inflater.decompress(data[byte : byte + 1])
        except zlib.error:
            break
    return bytes(out)


def _places(data: bytes, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


def _number(tail: bytes) -> int | None:
    found = _NUMBER.match(tail)
    return int(found[1]) if found else None


def _from_hex(data: bytes, at: int) -> bytes:
    found = _HEX.match(data, at, at + 2 * _TAIL_BYTES)
    return bytes.fromhex(found[0].decode()) if found else b""


def _aligned(prefix: bytes, pad: int) -> tuple[int, int, bytes]:
    """The characters that are the same whatever stands before (``pad`` bytes) and behind the prefix."""
    skipped = -(-pad * 8 // 6)
    sure = (pad + len(prefix)) * 8 // 6
    return pad, skipped, base64.b64encode(bytes(pad) + prefix)[skipped:sure]


def _from_base64(data: bytes, at: int, skipped: int) -> bytes:
    found = _BASE64.match(data, at, at + (PREFIX_BYTES + _TAIL_BYTES) * 4 // 3)
    text = b"A" * skipped + (found[0] if found else b"")
    whole = len(text) // 4 * 4
    rest = text[whole:]
    # Two or three characters of a last group still hold one or two bytes.
    return base64.b64decode(text[:whole] + (rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""))
