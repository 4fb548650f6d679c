"""What a row of the table of keys is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from meshlab.topology import shapes
from meshlab.topology.shapes import Shape


class Use(StrEnum):
    HONOURED = "honoured"
    INERT = "inert"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    use: Use
    shape: Shape | None = None
    """What a scalar must look like; ``None`` where only a mapping or a list may stand."""
    names: Shape | None = None
    """Of a ``*``: what its keys must look like."""
    required: bool = False
    why: str = ""
    whole: bool = False
    """A manifest stands here, which is judged by the table of its own kind."""
    unless: tuple[object, ...] = ()
    """Values with which a refused key changes nothing, and so may stand."""


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api_versions: tuple[str, ...]
    keys: Mapping[str, Key]


def honoured(
    shape: Shape | None = shapes.TEXT, *, required: bool = False, names: Shape | None = None, why: str = ""
) -> Key:
    return Key(use=Use.HONOURED, shape=shape, required=required, names=names, why=why)


def manifest(why: str) -> Key:
    return Key(use=Use.HONOURED, whole=True, why=why)


def inert(why: str) -> Key:
    return Key(use=Use.INERT, why=why)


def refused(why: str, *, unless: tuple[object, ...] = ()) -> Key:
    return Key(use=Use.REFUSED, why=why, unless=unless)


def each(names: str, key: Key) -> dict[str, Key]:
    return dict.fromkeys(names.split(), key)


def under(prefix: str, keys: Mapping[str, Key]) -> dict[str, Key]:
    return {f"{prefix}{path}": key for path, key in keys.items()}
