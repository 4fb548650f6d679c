"""What a search could not read, counted by reason; and the bounds on its work, which are such a reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_FREE_BYTES = 64 << 20
_FOR_EACH_BYTE = 4


class Unread(StrEnum):
    """Why something was not read, as the end of a sentence that begins with how many."""

    FRAGMENTS = "IP packets of which fragments are missing or contradict each other"
    HOLES = "TCP streams with bytes missing in their middle"
    BROKEN = "compressed streams that break off in their middle"
    TOO_LARGE = "compressed streams that are larger, or more, than what is searched"
    CHUNKS = "HTTP bodies whose chunks cannot be put together"
    CODING = "HTTP bodies in a content coding other than gzip and deflate"


@dataclass(slots=True)
class Budget:
    """How much may be inflated: so many bytes in all, so that the work is linear in what was captured."""

    left: int = _FREE_BYTES

    @classmethod
    def of(cls, captured_bytes: int) -> Budget:
        """The budget of a window with so many bytes."""
        return cls(_FREE_BYTES + _FOR_EACH_BYTE * captured_bytes)

    @property
    def used_up(self) -> bool:
        return self.left < 0

    def take(self, wanted: int) -> bool:
        """Take from what is left; False where it does not suffice."""
        self.left -= wanted
        return not self.used_up
