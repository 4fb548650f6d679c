"""The forms in which a secret may leak: what to look for in each, and how to read what stands before it.

A form's *needle* is what all canaries of a lab have in common when they are written in that form: one ``find`` over
megabytes is the whole search. The number stands before the needle, so it is read backwards from there.

    form            needle                                            read back by
    raw             the half                                          nothing
    raw             mlc-, where the end was cut off                   (the number stands behind it)
    hex             its hex digits; also with ``:``, space or ``-``   pairs of digits
    base64          the characters that depend on the half alone      whole groups of four, line breaks taken out
    huffman         the bytes that depend on the half alone           bits

Base64, with one byte ``x`` in its group before the half ``9f86...``: the groups are ``x9f 86d 081 ...``, of four
characters each. The first group's characters 0 and 1 hold bits of ``x``, so the needle begins at its character 2. The
half has no byte whose base64 contains ``+`` or ``/``, so the standard and the URL-safe alphabet write it alike.

Huffman is the code of HPACK and QPACK (RFC 7541 appendix B): 5 to 30 bits a character, so that the half may begin at
any of the 8 bits of a byte.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from meshlab.proofs.canary import CANARY, HALF_BYTES, HEAD_BYTES, LONGEST_BYTES, MOST_DIGITS

RAW = "raw"
HEX = "hex"
BASE64 = "base64"
HUFFMAN = "huffman"

Reader = Callable[[bytes, int], int | None]
"""Reads the number that belongs to the needle which was found in the data at this offset."""

_BEFORE_BYTES = HEAD_BYTES + HALF_BYTES
"""What can stand between the beginning of a word and its second half."""
_CUT_DIGITS = 4
"""As much of the secret must be left of a word that was cut off at its end: 2 ** -80 that random bytes look like it."""
_HEX_PAIRS = re.compile(rb"(?:[0-9a-fA-F]{2}[ :-]?)*\Z")
_LINE_BREAKS = re.compile(rb"\\[rn]|[\r\n]")
"""Also as JSON writes them."""
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]*\Z")
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """One needle, and how to read the number that belongs to it."""

    name: str
    needle: bytes
    number: Reader
    alone: bool = True
    """The needle is a finding also where its number cannot be read."""


def forms(secret: bytes) -> tuple[Form, ...]:
    """Return every form of the words with this secret."""
    half = secret[:HALF_BYTES]
    aligned = (*(_base64(half, pad) for pad in range(3)), *(_huffman(half, offset) for offset in range(8)))
    return (raw(secret), _cut(half), *_hex(half), *aligned)


def raw(secret: bytes) -> Form:
    """Return the form of words that are written as they are."""
    half = secret[:HALF_BYTES]
    number = _ends_with_number(half)
    return Form(RAW, half, lambda data, at: number(data[max(0, at - _BEFORE_BYTES) : at]))


def _cut(half: bytes) -> Form:
    """The end is missing, and not even one half is whole."""
    pattern = re.compile(rb"mlc-([0-9]{1,18})-" + half[:_CUT_DIGITS])

    def read(data: bytes, at: int) -> int | None:
        found = pattern.match(data, at, at + LONGEST_BYTES)
        return int(found[1]) if found else None

    return Form(RAW, CANARY, read, alone=False)


def _ends_with_number(half: bytes) -> Callable[[bytes], int | None]:
    """Read the number at the end of what stands before a half, be it the first or the second one."""
    pattern = re.compile(rb"ml[bc]-([0-9]{1,18})-(?:%s)?\Z" % half)

    def number(text: bytes) -> int | None:
        found = pattern.search(text)
        return int(found[1]) if found else None

    return number


def _hex(half: bytes) -> Iterator[Form]:
    number = _ends_with_number(half)

    def read(data: bytes, at: int) -> int | None:
        found = _HEX_PAIRS.search(data, max(0, at - 3 * _BEFORE_BYTES), at)
        return number(bytes.fromhex(re.sub(rb"[ :-]", b"", found[0]).decode())) if found else None

    for separator in ("", ":", " ", "-"):  # the hex of a half has no letters, and so no case
        text = half.hex(separator) if separator else half.hex()
        yield Form(HEX, text.encode(), read)


def _base64(half: bytes, pad: int) -> Form:
    skipped = -(-pad * 8 // 6)
    sure = (pad + len(half)) * 8 // 6
    needle = base64.b64encode(bytes(pad) + half)[skipped:sure]
    number = _ends_with_number(half)

    def read(data: bytes, at: int) -> int | None:
        """Decode whole groups up to the one in which the needle begins."""
        near = _LINE_BREAKS.sub(b"", data[max(0, at - 4 * _BEFORE_BYTES) : at])
        found = _BASE64_RUN.search(near)
        run = found[0] if found else b""
        if len(run) < skipped:
            return None
        text = run[(len(run) - skipped) % 4 :].translate(_STANDARD)
        return number(base64.b64decode(text + needle[: 4 - skipped])[: len(text) // 4 * 3 + pad])

    return Form(BASE64, needle, read)


def _bits(text: bytes) -> str:
    """Return the Huffman code of a text."""
    return "".join(f"{REQUEST_CODES[byte]:0{REQUEST_CODES_LENGTH[byte]}b}" for byte in text)


_DIGITS = {_bits(b"%d" % digit): str(digit) for digit in range(10)}
_ONE_DIGIT = re.compile("|".join(_DIGITS))
_HEAD_BITS = len(_bits(CANARY)) + max(map(len, _DIGITS)) * MOST_DIGITS + len(_bits(b"-"))


def _huffman(half: bytes, offset: int) -> Form:
    """Where the half begins ``offset`` bits into a byte."""
    bits = _bits(half)
    begun = -offset % 8  # bits of the half in the byte that it shares with what stands before
    whole = (len(bits) - begun) // 8
    needle = int(bits[begun : begun + 8 * whole], 2).to_bytes(whole, "big")
    pattern = re.compile(f"{_bits(CANARY)}((?:{'|'.join(_DIGITS)}){{1,{MOST_DIGITS}}}){_bits(b'-')}(?:{bits})?\\Z")
    longest = (_HEAD_BITS + len(bits) + 7) // 8 + 1

    def read(data: bytes, at: int) -> int | None:
        before = data[max(0, at - longest) : at]
        text = f"{int.from_bytes(before, 'big'):0{8 * len(before)}b}" if before else ""
        found = pattern.search(text[: len(text) - begun])
        return int("".join(_DIGITS[code] for code in _ONE_DIGIT.findall(found[1]))) if found else None

    return Form(HUFFMAN, needle, read)
