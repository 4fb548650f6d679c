"""Names, indexes and MACs of links: unique in a lab, equal on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator

_NAME_BYTES = 15
"""IFNAMSIZ without its end."""
_ODD32 = 0x9E3779B1


def link_names(prefix: str, keys: Iterable[str], others: Collection[str] = ()) -> list[str]:
    """A name for each ``namespace/name`` or ``name``: eight bytes for people, and four of a hash to be unique.

    Args:
        others: names that are taken.
    """
    taken = set(others)
    names = []
    for key in keys:
        name = next(candidate for candidate in _candidates(prefix, key) if candidate not in taken)
        taken.add(name)
        names.append(name)
    return names


def _candidates(prefix: str, key: str) -> Iterator[str]:
    salt = 0
    while True:
        digest = hashlib.sha256(f"{key} {salt}".encode()).hexdigest()
        name = f"{prefix}-{key.rpartition('/')[2][:8]}-{digest[:4]}"
        assert len(name.encode()) <= _NAME_BYTES
        yield name
        salt += 1


def mac(index: int) -> str:
    """A unicast address of local administration; no two indexes have the same."""
    scrambled = index * _ODD32 % 2**32
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x6D, *scrambled.to_bytes(4, "big")))
