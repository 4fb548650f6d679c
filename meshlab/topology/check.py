"""One document beside the table of its kind: what is unknown, refused or of the wrong type is noted, the rest returned.

What comes back holds honoured keys only, each with a value of the right shape, so that the readers of the kinds need no
tests of their own for types. A document with issues comes back too, without the parts at fault: so that every issue of
a file is found in one go.
"""

from __future__ import annotations

from meshlab.topology.keys import KINDS, Branch, Use, parts, tree
from meshlab.topology.nodes import Map, Node, Scalar, Sequence, describe
from meshlab.topology.notes import Notes, Place, did_you_mean, listed, shown
from meshlab.topology.shapes import Shape


def check(kind: str, document: Map, notes: Notes) -> Map:
    """The honoured part of ``document``, which is of ``kind``; everything else is in ``notes``."""
    return _Walk(kind, notes).map(document, tree(kind), "")


def check_below(kind: str, row: str, document: Map, notes: Notes) -> Map:
    """As ``check``, of a part of a document that stands elsewhere and is judged by the rows below ``row``."""
    branch = tree(kind)
    for part in parts(row):
        branch = branch.children[part]
    return _Walk(kind, notes).map(document, branch, row)


def check_kind(document: Map, notes: Notes) -> str:
    """The kind of ``document`` where the lab has it in this apiVersion, else nothing and an issue."""
    kind, version = document.text("kind"), document.text("apiVersion")
    if not kind:
        notes.refuse(document.place, "a document needs apiVersion and kind")
    elif kind not in KINDS:
        choices = f"The supported kinds are {', '.join(KINDS)}."
        notes.refuse(document.at("kind"), f"kind {shown(kind)} is not supported. {choices}{did_you_mean(kind, KINDS)}")
    elif version not in KINDS[kind].api_versions:
        wanted = KINDS[kind].api_versions
        said = f"apiVersion {shown(version)}" if version else "no apiVersion"
        notes.refuse(document.at("apiVersion"), f"{said} for kind {kind}, which is {' or '.join(wanted)}")
    else:
        return kind
    return ""


class _Walk:
    def __init__(self, kind: str, notes: Notes) -> None:
        self._kind = kind
        self._notes = notes

    def map(self, node: Map, branch: Branch, path: str) -> Map:
        entries: dict[str, Node] = {}
        for name, value in node.entries.items():
            place = node.key_places[name]
            child = self._child(name, place, branch, path)
            if child is None:
                continue
            if name not in branch.children and _takes_map(child) and _is_empty(value):
                value = Map(value.place)  # `shop/client:` names a pod that has nothing to say
            kept = self._judged(value, child, f"{path}.{name}" if path else name, place)
            if kept is not None:
                entries[name] = kept
        self._require(node, branch, path)
        return Map(node.place, entries, node.key_places)

    def _child(self, name: str, place: Place, branch: Branch, path: str) -> Branch | None:
        if name in branch.children:
            return branch.children[name]
        wildcard = branch.children.get("*")
        if wildcard is None:
            choices = listed(key for key, child in branch.children.items() if _is_honoured(child))
            where = f"{path} of a {self._kind}" if path else f"a {self._kind}"
            self._notes.refuse(
                place, f"no key {shown(name)} in {where} ({choices}).{did_you_mean(name, branch.children)}"
            )
            return None
        names = wildcard.key.names if wildcard.key else None
        if names is not None and (fault := names.fault(Scalar(place, name, name))):
            self._notes.refuse(place, f"the key {fault}")
            return None
        return wildcard

    def _judged(self, value: Node, branch: Branch, path: str, place: Place) -> Node | None:
        key = branch.key
        if key is not None and key.use is Use.INERT:
            self._notes.ignore(place, f"{path} is not read: {key.why}")
            return None
        if key is not None and key.use is Use.REFUSED:
            if not (isinstance(value, Scalar) and value.value in (None, *key.unless)):
                self._notes.refuse(place, f"{path} is refused: {key.why}")
            return None
        return self._value(value, branch, path)

    def _value(self, value: Node, branch: Branch, path: str) -> Node | None:
        match value:
            case Map() if branch.key and branch.key.whole:
                return value
            case Sequence() if "[]" in branch.children:
                return self._sequence(value, branch.children["[]"], path)
            case Map() if _takes_map(branch):
                return self.map(value, branch, path)
            case Scalar(value=None):
                return None  # as the API server takes it: not given
            case Scalar() if branch.key and branch.key.shape:
                return self._scalar(value, branch.key.shape, path)
        self._notes.refuse(value.place, f"{path}: {describe(value)} must be {_wanted(branch)}.")
        return None

    def _sequence(self, value: Sequence, branch: Branch, path: str) -> Sequence:
        kept = []
        for number, item in enumerate(value.items):
            if _is_empty(item):
                self._notes.refuse(item.place, f"{path}[{number}]: empty must be {_wanted(branch)}.")
            elif (node := self._value(item, branch, f"{path}[{number}]")) is not None:
                kept.append(node)
        return Sequence(value.place, tuple(kept), whole=len(kept) == len(value.items))

    def _scalar(self, value: Scalar, shape: Shape, path: str) -> Scalar | None:
        fault = shape.fault(value)
        if fault:
            self._notes.refuse(value.place, f"{path}: {fault}")
        return None if fault else value

    def _require(self, node: Map, branch: Branch, path: str) -> None:
        for name, child in branch.children.items():
            if child.key and child.key.required and _is_empty(node.entries.get(name)):
                self._notes.refuse(node.place, f"{path or self._kind} needs the key '{name}'.")


def _takes_map(branch: Branch) -> bool:
    if branch.children:
        return "[]" not in branch.children
    return branch.key is not None and branch.key.shape is None


def _is_empty(node: Node | None) -> bool:
    return node is None or (isinstance(node, Scalar) and node.value is None)


def _is_honoured(branch: Branch) -> bool:
    """Whether anything at or below ``branch`` is."""
    if branch.key is not None:
        return branch.key.use is Use.HONOURED
    return any(_is_honoured(child) for child in branch.children.values())


def _wanted(branch: Branch) -> str:
    words = [branch.key.shape.words] if branch.key and branch.key.shape else []
    if "[]" in branch.children:
        words.append("a list")
    if _takes_map(branch):
        words.append("a mapping")
    return " or ".join(words)
