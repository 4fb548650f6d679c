"""What a parser of the benchmark is, and how its seeds and growing inputs are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shape = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """One way in."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], tuple[bytes, ...]]
    documented: tuple[type[Exception], ...] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """What an input of so many units looks like."""
    unit: int = 2000
    """Units of the smallest input whose time is measured."""
    share: float = 1.0
    """How many inputs it gets, beside the others: the slow ones get fewer."""


def repeated(head: bytes, piece: bytes, tail: bytes = b"") -> Shape:
    return lambda size: head + piece * size + tail


def numbered(head: str, line: Callable[[int], str], tail: str = "") -> Shape:
    return lambda size: (head + "".join(map(line, range(size))) + tail).encode()


_PIECE_BYTES = 16 * 1024


def pieces(data: bytes) -> list[bytes]:
    """As a socket hands them out."""
    return [data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES)]
