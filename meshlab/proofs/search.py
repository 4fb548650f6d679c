"""Looks for all words with one secret in bytes, in every form (``forms``) and behind every layer that it can take off.

    bytes --as they are--> forms
          --HTTP bodies, chunks put together--> bytes      the layers are named in ``Hit.encoding``: chunked+gzip+base64
          --gzip, zlib, deflate---------------> bytes

What it could not read is counted in ``unread``. Its work is linear: ``Budget``, and at most four layers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from meshlab.proofs.forms import RAW, Form, forms, raw
from meshlab.proofs.http_bodies import Body, bodies
from meshlab.proofs.inflating import DEFLATE, GZIP_MAGIC, ZLIB, End, Inflated, inflate
from meshlab.proofs.unread import Budget, Unread

_MOST_LAYERS = 4
_GZIP = frozenset({"gzip", "x-gzip"})
"""Content codings that are found by their magic, wherever they stand."""
_DEFLATE = "deflate"
_CHUNKED = "chunked"


class Hit(NamedTuple):
    """A word in some bytes."""

    number: int | None
    """``None``: what was left of the word does not say it."""
    encoding: str
    offset: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer holds that stands at ``start`` of some bytes."""

    name: str
    text: bytes
    start: int
    end: int
    more_follows: bool


@dataclass(slots=True)
class Search:
    """See the module."""

    secret: bytes
    budget: Budget = field(default_factory=Budget)
    unread: Counter[Unread] = field(default_factory=Counter)
    _raw: Form = field(init=False)
    _forms: tuple[Form, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._raw = raw(self.secret)
        self._forms = forms(self.secret)

    def begin(self, captured_bytes: int) -> None:
        """Forget what was not read, and take the budget of a window with so many bytes."""
        self.budget = Budget.of(captured_bytes)
        self.unread.clear()

    @property
    def forms(self) -> Sequence[Form]:
        """Every form that is looked for."""
        return self._forms

    def raw_offsets(self, data: bytes) -> set[int]:
        """Where in a buffer words stand as they are."""
        return set(offsets(data, self._raw.needle))

    def raw(self, data: bytes) -> list[Hit]:
        """Find words as they are, and in no other form."""
        return _once(_hits(self._raw, data))

    def plain(self, data: bytes, among: Iterable[Form] | None = None) -> list[Hit]:
        """Find words in every form, or in those ``among`` which the data was found to have, behind no layer."""
        return _once(hit for form in (self._forms if among is None else among) for hit in _hits(form, data))

    def everywhere(
        self, data: bytes, *, more_follows: bool = True, among: Iterable[Form] | None = None, depth: int = 0
    ) -> list[Hit]:
        """Find words in every form and behind every layer, each number once in each form.

        Args:
            more_follows: where the bytes end inside a layer, the rest of it comes later, or never; else it was missed.
            among: as of ``plain``, for what stands in no layer.
            depth: how many layers were taken off so far.
        """
        hits = self.plain(data, among)
        inside: list[Hit] = []
        read: list[tuple[int, int]] = []
        for layer in self._layers(data, more_follows):
            if depth == _MOST_LAYERS:
                self.unread[Unread.TOO_LARGE] += 1
                break
            found = self.everywhere(layer.text, more_follows=layer.more_follows, depth=depth + 1)
            inside += [Hit(hit.number, _named(layer.name, hit.encoding), layer.start) for hit in found]
            if layer.name == _CHUNKED and None not in {hit.number for hit in found}:
                read.append((layer.start, layer.end))
        hits = _once(hit for hit in hits if hit.number is not None or not _within(read, hit.offset))
        known = {hit.number for hit in hits}
        return hits + _once(hit for hit in inside if hit.number not in known)

    def _layers(self, data: bytes, more_follows: bool) -> Iterator[Layer]:
        outside = 0
        for body in bodies(data):
            yield from self._streams(data, outside, body.start, more_follows)
            outside = body.end
            yield from self._of_body(body, more_follows and not body.complete)
        yield from self._streams(data, outside, len(data), more_follows)

    def _of_body(self, body: Body, more_follows: bool) -> Iterator[Layer]:
        self.unread[Unread.CHUNKS] += body.broken
        self.unread[Unread.CODING] += bool(body.coding - _GZIP - {_DEFLATE})
        if _DEFLATE in body.coding and body.text:
            # RFC 9110 8.4.1.2: zlib's format is meant by it, and some senders leave the wrapper out.
            inflated = inflate(body.text, 0, self.budget, ZLIB)
            if inflated.end is End.BROKEN and not inflated.text:
                inflated = inflate(body.text, 0, self.budget, DEFLATE)
            self._count(inflated, more_follows)
            yield Layer(_DEFLATE, inflated.text, body.start, body.end, more_follows and inflated.end is End.CUT)
        elif body.chunked:
            yield Layer(_CHUNKED, body.text, body.start, body.end, more_follows)
        else:
            for layer in self._streams(body.text, 0, len(body.text), more_follows):
                yield replace(layer, start=body.start + layer.start, end=body.end)

    def _streams(self, data: bytes, start: int, end: int, more_follows: bool) -> Iterator[Layer]:
        """Every gzip stream that begins in ``data[start:end]``."""
        at = data.find(GZIP_MAGIC, start, end)
        while at >= 0:
            inflated = inflate(data, at, self.budget)
            self._count(inflated, more_follows)
            if inflated.text:
                yield Layer("gzip", inflated.text, at, at, more_follows and inflated.end is End.CUT)
            if inflated.end is End.TOO_LARGE:
                return
            at = data.find(GZIP_MAGIC, inflated.next, end)

    def _count(self, inflated: Inflated, more_follows: bool) -> None:
        self.unread[Unread.TOO_LARGE] += inflated.end is End.TOO_LARGE
        missed = inflated.end is End.BROKEN or (inflated.end is End.CUT and not more_follows)
        self.unread[Unread.BROKEN] += missed and inflated.likely


def _named(layer: str, encoding: str) -> str:
    return layer if encoding == RAW else f"{layer}+{encoding}"


def _within(ranges: Sequence[tuple[int, int]], offset: int) -> bool:
    """Whether one of the ranges, which are sorted and do not overlap, holds the offset."""
    index = bisect_right(ranges, offset, key=lambda some: some[0]) - 1
    return index >= 0 and offset < ranges[index][1]


def _once(hits: Iterable[Hit]) -> list[Hit]:
    """Each number in each form once: a word has two halves, and may stand there several times."""
    return list({(hit.number, hit.encoding): hit for hit in hits}.values())


def _hits(form: Form, data: bytes) -> Iterator[Hit]:
    for at in offsets(data, form.needle):
        number = form.number(data, at)
        if form.alone or number is not None:
            yield Hit(number, form.name, at)


def offsets(data: bytes, needle: bytes) -> Iterator[int]:
    """Find every place at which the needle stands."""
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)
