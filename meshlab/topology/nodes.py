"""YAML 1.2 text -> a tree whose every value and key knows its line and column.

ruamel.yaml parses; the tree is built here from its events, because only so are duplicate keys, alias bombs and deep
nesting seen *before* they cost anything. Scalars follow the YAML 1.2 core schema: ``yes`` and ``0777`` are no booleans
and no octals, as Kubernetes users sadly learnt.

Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from meshlab.errors import TopologyError
from meshlab.topology.notes import START, Notes, Place, shown

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 64
"""Far above any manifest; the parser's cost grows with the square of the depth."""
MAX_ALIASED_NODES = 10_000

_CORE_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "map", "seq"))
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MOST_DIGITS = 18

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Scalar:
    place: Place
    value: Value
    text: str
    """As written, without quotes."""


@dataclass(frozen=True, slots=True)
class Sequence:
    place: Place
    items: tuple[Node, ...] = ()
    whole: bool = True
    """Whether ``check`` left every entry in it."""


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping; the getters are for maps that ``check`` has already judged, and so take the types on trust."""

    place: Place
    entries: Mapping[str, Node] = field(default_factory=dict)
    key_places: Mapping[str, Place] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def map(self, key: str) -> Map:
        """The mapping under ``key``, empty where there is none."""
        node = self.entries.get(key)
        return node if isinstance(node, Map) else Map(self.place)

    def items(self, key: str) -> tuple[Node, ...]:
        """The entries of the list under ``key``, none where there is no list."""
        node = self.entries.get(key)
        return node.items if isinstance(node, Sequence) else ()

    def maps(self, key: str) -> tuple[Map, ...]:
        return tuple(item for item in self.items(key) if isinstance(item, Map))

    def value(self, key: str) -> Value:
        node = self.entries.get(key)
        return node.value if isinstance(node, Scalar) else None

    def text(self, key: str, default: str = "") -> str:
        node = self.entries.get(key)
        return node.text if isinstance(node, Scalar) else default

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(item.text for item in self.items(key) if isinstance(item, Scalar))

    def strings(self, key: str) -> dict[str, str]:
        """The mapping under ``key`` as it stands: labels, annotations, an environment."""
        entries = self.map(key).entries.items()
        return {name: node.text for name, node in entries if isinstance(node, Scalar)}

    def at(self, key: str) -> Place:
        """The place of the value under ``key``, of the mapping itself where there is none."""
        node = self.entries.get(key)
        return self.place if node is None else node.place


Node = Scalar | Sequence | Map


def read_documents(text: str, notes: Notes) -> list[Map]:
    """The mappings among the documents of ``text``; empty documents are skipped, others noted as issues.

    Raises:
        TopologyError: the text is not YAML, or larger than the bounds above once its aliases are expanded.
    """
    if len(text) > MAX_CHARACTERS:
        _stop(notes, START, f"{len(text)} characters; a topology has at most {MAX_CHARACTERS}")
    documents: list[Map] = []
    for node in _Composer(_events(text, notes), notes).documents():
        if isinstance(node, Map):
            documents.append(node)
        elif isinstance(node, Sequence) or node.value is not None:
            notes.refuse(node.place, f"a document is a mapping with apiVersion and kind, not {describe(node)}")
    return documents


def describe(node: Node) -> str:
    """What a message calls ``node``."""
    match node:
        case Map():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar(value=None):
            return "empty"
        case Scalar(value=str()):
            return shown(node.text)
        case Scalar():
            return shown(node.text).strip("'")


def _events(text: str, notes: Notes) -> Iterator[Any]:
    """What ruamel.yaml finds. Of its exceptions only some have a base of their own: ``%YAML 1.3`` is an assertion."""
    last = START
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            last = _place(event.end_mark)
            yield event
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _stop(notes, _place(mark), f"not YAML: {error.problem or error.context}")
    except ReaderError as error:
        _stop(notes, _place_of(text, int(error.position)), "not YAML: a character that YAML does not allow")
    except (
        YAMLError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        ValueError,
    ) as error:
        _stop(notes, last, f"not YAML: behind this place: {error}")


def _stop(notes: Notes, place: Place, message: str) -> NoReturn:
    raise TopologyError([*notes.issues, notes.at(place, message)])


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else START


def _place_of(text: str, position: int) -> Place:
    before = text[:position]
    return Place(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    size: int


class _Composer:
    """Events of one stream -> nodes. An alias is the node itself, shared; ``size`` counts what it stands for."""

    def __init__(self, events: Iterator[Any], notes: Notes) -> None:
        self._events = events
        self._notes = notes
        self._anchors: dict[str, _Anchored | None] = {}
        self._aliased = 0

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._anchors = {}
                yield self._node(next(self._events), 0)[0]

    def _node(self, event: Any, depth: int) -> tuple[Node, int]:
        place = _place(event.start_mark)
        if depth > MAX_DEPTH:
            _stop(self._notes, place, f"nested deeper than {MAX_DEPTH}")
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, place)
        self._check_tag(event, place)
        if event.anchor:
            self._anchors[event.anchor] = None
        node, size = self._content(event, place, depth)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(node, size)
        return node, size

    def _content(self, event: Any, place: Place, depth: int) -> tuple[Node, int]:
        if isinstance(event, ScalarEvent):
            return Scalar(place, _resolve(event), event.value), 1
        if isinstance(event, SequenceStartEvent):
            return self._sequence(place, depth)
        assert isinstance(event, MappingStartEvent)
        return self._map(place, depth)

    def _sequence(self, place: Place, depth: int) -> tuple[Node, int]:
        items, total = [], 1
        while not isinstance(event := next(self._events), SequenceEndEvent):
            node, size = self._node(event, depth + 1)
            items.append(node)
            total += size
        return Sequence(place, tuple(items)), total

    def _map(self, place: Place, depth: int) -> tuple[Node, int]:
        entries: dict[str, Node] = {}
        places: dict[str, Place] = {}
        total = 1
        while not isinstance(event := next(self._events), MappingEndEvent):
            key, key_size = self._node(event, depth + 1)
            value, size = self._node(next(self._events), depth + 1)
            total += key_size + size
            if not isinstance(key, Scalar):
                self._notes.refuse(key.place, f"a key is a word, not {describe(key)}")
            elif key.text in entries:
                self._notes.refuse(key.place, f"the key {shown(key.text)} is already on line {places[key.text].line}")
            else:
                entries[key.text] = value
                places[key.text] = key.place
        return Map(place, entries, places), total

    def _alias(self, name: str, place: Place) -> tuple[Node, int]:
        anchored = self._anchors.get(name)
        if anchored is None:
            inside = name in self._anchors
            _stop(self._notes, place, f"the alias *{name} is inside its own anchor" if inside else f"no anchor &{name}")
        self._aliased += anchored.size
        if self._aliased > MAX_ALIASED_NODES:
            _stop(self._notes, place, f"aliases stand for more than {MAX_ALIASED_NODES} values")
        return anchored.node, anchored.size

    def _check_tag(self, event: Any, place: Place) -> None:
        tag = event.ctag
        if tag is not None and str(tag) not in ("!", *_CORE_TAGS):
            self._notes.refuse(place, f"the tag {tag} means nothing here: write the value without it")


def _resolve(event: Any) -> Value:
    tagged = event.ctag is not None and str(event.ctag) in _CORE_TAGS
    if str(event.ctag) == "tag:yaml.org,2002:str" or not (event.implicit[0] or tagged):
        return str(event.value)
    return _core_schema(str(event.value))


def _core_schema(text: str) -> Value:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) <= _MOST_DIGITS:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text
