"""A body while it arrives: every byte is counted and hashed, and only the first of them are kept.

Whoever sends a body decides how long it is, so that whoever receives it decides how much of it stays in memory.
"""

from __future__ import annotations

import hashlib


class Body:
    """The bytes that have come so far."""

    __slots__ = ("_hash", "keeps", "kept", "size")

    def __init__(self, keeps: int) -> None:
        self.keeps = keeps
        """How many bytes are kept at most."""
        self.kept = bytearray()
        """The first ``keeps`` bytes."""
        self.size = 0
        """How many bytes have come."""
        self._hash = hashlib.sha256()

    @property
    def is_whole(self) -> bool:
        """Whether every byte that has come is still here."""
        return self.size == len(self.kept)

    @property
    def sha256(self) -> str:
        """The hash of all bytes that have come, in hexadecimal."""
        return self._hash.hexdigest()

    def add(self, data: bytes | bytearray) -> None:
        """Take the next bytes."""
        self.size += len(data)
        self._hash.update(data)
        if len(self.kept) < self.keeps:
            self.kept += data[: self.keeps - len(self.kept)]
