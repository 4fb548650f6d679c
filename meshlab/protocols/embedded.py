"""Protobuf descriptors that a program carries inside itself, as every C++ program with generated messages does.

A ``FileDescriptorProto`` lies in such a binary as it was serialized: its first field is its own name, which ends in
``.proto``. Where it ends nothing says, so its fields are read one after the other until one is none of its own.

Source: https://protobuf.dev/programming-guides/encoding/ and google/protobuf/descriptor.proto
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_START = re.compile(rb"\x0a([\x01-\x7f])([a-zA-Z0-9_./-]{1,120}?\.proto)", re.DOTALL)
_LENGTHS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 12})
"""Fields of a file that are texts or messages."""
_NUMBERS = frozenset({10, 11, 14})
"""Fields that are numbers, or packed lists of them."""


def files_in(data: bytes) -> Iterator[bytes]:
    """Yield each serialized ``FileDescriptorProto`` in a binary."""
    place = 0
    while match := _START.search(data, place):
        place = match.start() + 1
        if match[1][0] == len(match[2]):
            end = _end(data, match.start())
            yield data[match.start() : end]
            place = end


def _end(data: bytes, place: int) -> int:
    """Where the fields of a file that begins at ``place`` end."""
    seen_name = False
    while place < len(data):
        key, after = _varint(data, place)
        field, kind = key >> 3, key & 7
        if kind == 2 and field in _LENGTHS | _NUMBERS:
            size, after = _varint(data, after)
            after += size
        elif kind == 0 and field in _NUMBERS:
            _, after = _varint(data, after)
        else:
            return place
        if field == 1 and seen_name:
            return place  # the next file
        seen_name = True
        if after > len(data):
            return place
        place = after
    return place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            return 0, place
    return value, place
