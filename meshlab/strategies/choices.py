"""Choices read off one drawn string of bytes: how every strategy here is made.

Nested strategies were tried first: Hypothesis varies those by copying parts of one example into the next, and of 2,000
examples only 830 had different policies. Read off one string, two bytes a choice, all differ. Zeros, to which
Hypothesis shrinks and which follow the end, take the first of each, so the first of each is the simplest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices:
    """One example's choices, in order."""

    def __init__(self, data: bytes) -> None:
        self._numbers = iter([data[at] << 8 | data[at + 1] for at in range(0, len(data) - 1, 2)])

    def __repr__(self) -> str:
        """Short: what was made of them is what a message shows."""
        return "<choices>"

    def number(self) -> int:
        """0 to 65535."""
        return next(self._numbers, 0)

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.number() % len(values)]

    def several(self, make: Callable[[], T], least: int = 1) -> tuple[T, ...]:
        """One, two, or ``least``."""
        return tuple(make() for _ in range(self.one_of((1, least, 2))))

    def up_to(self, most: int, make: Callable[[], T]) -> tuple[T, ...]:
        """At least one, unless ``most`` is 0."""
        return tuple(make() for _ in range(self.one_of(range(1, most + 1)))) if most else ()

    def rarely(self) -> bool:
        """One time in sixteen."""
        return self.one_of(range(16)) == 15


def drawn(make: Callable[[Choices], T], choices: int) -> st.SearchStrategy[T]:
    """What ``make`` makes of up to ``choices`` choices. Messages show what was made, not the bytes."""

    @st.composite
    def made(draw: st.DrawFn) -> T:
        return make(Choices(draw(st.binary(min_size=2 * choices, max_size=2 * choices))))

    return made()
