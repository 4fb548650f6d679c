"""Plain values -> YAML that reads as they are, whatever is in a text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from meshlab.topology.nodes import Map, Node, Sequence

_WIDTH = 120


class _Representer(SafeRepresenter):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        """Double quotes round anything unusual.

        In single ones the emitter loses U+0085 as the end of a line, and ``[?a]``, ``{:a: b}`` read otherwise.
        """
        style = None if data.isprintable() and not data.startswith(("?", ":")) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def write(documents: Iterable[dict[str, Any]]) -> str:
    """The documents of one text, in order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = None
    yaml.width = _WIDTH
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order of pods and images matters
    stream = io.StringIO()
    yaml.dump_all(list(documents), stream)
    return stream.getvalue()


def given(**values: Any) -> dict[str, Any]:
    """``values`` without the empty ones."""
    return {name: value for name, value in values.items() if value}


def headed(kind: str, version: str, name: str, namespace: str, **metadata: Any) -> dict[str, Any]:
    """The head of a manifest: everything but what the object is about."""
    about = {"name": name, "namespace": namespace, **given(**metadata)}
    return {"apiVersion": version, "kind": kind, "metadata": about}


def plain(node: Node) -> Any:
    """``node`` as ``write`` takes it."""
    if isinstance(node, Map):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return node.value
