"""Opening a file that somebody else made: what in it would run a command or leave its folder is found first.

Such a file is not run before its reader has said so; and whatever stands in it, reading it costs little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from meshlab.errors import Issue, TopologyError
from meshlab.lab.sources import Source, find, read
from meshlab.topology.nodes import MAX_CHARACTERS, Map, Node, Scalar, Sequence, read_documents
from meshlab.topology.notes import Notes, Place

_COMMANDS = ("run", "command", "args")
_UTF8_BYTES = 4


def opened(name: str) -> Source:
    """The topology of a path or a shipped name, without reading more than a topology may have.

    Raises:
        TopologyError: it cannot be used; every reason with its place.
        UsageError: there is no such file or name.
    """
    path = find(name)
    size = path.stat().st_size
    if size > _UTF8_BYTES * MAX_CHARACTERS:
        raise TopologyError([Issue(str(path), 1, 1, f"{size} bytes; a topology has at most {MAX_CHARACTERS}")])
    source = read(name)
    if source.unrunnable:
        raise TopologyError(source.unrunnable)
    return source


def hazards(source: Source, instead: Collection[str] = ()) -> list[Issue]:
    """What of the file would run a command of its own, or use what lies outside its folder.

    Args:
        instead: the keys of ``spec.dataplane`` in whose place something else runs: what they say does no harm.
    """
    if source.path is None:
        return []
    notes = Notes(str(source.path))
    folder = source.path.resolve().parent
    for document in read_documents(source.path.read_text(encoding="utf-8"), notes):
        if document.text("kind") == "Lab":
            document = _without(document, instead)
        for place, what in _found(document, folder):
            notes.refuse(place, what)
    return sorted(notes.issues)


def _without(document: Map, keys: Collection[str]) -> Map:
    """A ``Lab`` without these keys of ``spec.dataplane``."""
    spec = document.map("spec")
    dataplane = spec.map("dataplane")
    kept = {name: node for name, node in dataplane.entries.items() if name not in keys}
    spec = replace(spec, entries={**spec.entries, "dataplane": replace(dataplane, entries=kept)})
    return replace(document, entries={**document.entries, "spec": spec})


def _found(node: Node, folder: Path) -> Iterator[tuple[Place, str]]:
    match node:
        case Sequence():
            for item in node.items:
                yield from _found(item, folder)
        case Map():
            for name, value in node.entries.items():
                yield from _said(name, value, folder)
                yield from _found(value, folder)
        case Scalar():
            pass


def _said(name: str, value: Node, folder: Path) -> Iterator[tuple[Place, str]]:
    if name in _COMMANDS and isinstance(value, Sequence) and value.items:
        words = [item.text for item in value.items if isinstance(item, Scalar)]
        yield value.place, f"{name}: {' '.join(words)}"
    if name in ("ztunnel", "waypoint") and isinstance(value, Scalar) and "/" in value.text:
        yield value.place, f"runs the program {value.text}"
    if name == "upgrade" and isinstance(value, Map):
        for ztunnel in value.entries.values():
            yield from _said("ztunnel", ztunnel, folder)
    if name == "mounts" and isinstance(value, Sequence):
        for item in value.items:
            if isinstance(item, Scalar) and not (folder / item.text).resolve().is_relative_to(folder):
                yield item.place, f"shows its pods {item.text}, which is outside its folder"
