"""From what the user wrote to a node proxy: ``reference | none | entry point | [NAME=]PATH`` (a slash makes a path)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from meshlab.errors import UsageError
from meshlab.implementations.choice import Choice
from meshlab.implementations.protocol import API_VERSION, NodeProxy
from meshlab.implementations.ztunnel import Binary, Reference

GROUP = "meshlab.ztunnel"
REFERENCE = "reference"
NONE = "none"
_LONGEST_SHOWN = 80


def resolve(text: str, installed: Iterable[EntryPoint] | None = None) -> Choice:
    """The node proxy that ``text`` names.

    Args:
        text: what ``--ztunnel`` or ``spec.dataplane.ztunnel`` says.
        installed: the entry points to look in; those of this environment, if not given.

    Raises:
        UsageError: it names nothing that can be started; the message lists the choices.
    """
    label, equals, rest = text.partition("=")
    name, path = (label, rest) if equals and "/" not in label else ("", text)
    if "/" in path:
        return _binary(name, path)
    if equals:
        raise UsageError(
            f"ztunnel '{text}': after '{label}=' comes a path with a slash, such as {label}=./{rest or 'ztunnel'}"
        )
    if text == NONE:
        return Choice(NONE, None)
    if text == REFERENCE:
        return Choice(REFERENCE, Reference())
    points = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    if text not in points:
        raise UsageError(_unknown(text, sorted({REFERENCE, NONE, *points})))
    return Choice(text, _load(points[text]))


def available(installed: Iterable[EntryPoint] | None = None) -> tuple[Choice, ...]:
    """Every node proxy that has a name here: the built-in ones, then the entry points', by name.

    Raises:
        UsageError: an entry point cannot be loaded.
    """
    points = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    others = sorted(points.keys() - {REFERENCE, NONE})
    built_in = (Choice(REFERENCE, Reference()), Choice(NONE, None))
    return (*built_in, *(Choice(name, _load(points[name])) for name in others))


def _binary(name: str, path: str) -> Choice:
    try:
        binary = Path(path).expanduser().absolute()
        is_folder = binary.is_dir()
    except (OSError, RuntimeError) as error:  # longer than a name may be; a home of nobody's
        raise UsageError(f"ztunnel {_shown(path)} is not a path here: {error}") from None
    name = name or binary.name
    if is_folder:
        raise UsageError(f"ztunnel '{path}' is a folder; give the executable in it")
    if not binary.exists():
        raise UsageError(f"ztunnel '{path}' does not exist.{_did_you_mean(binary.name, _siblings(binary))}")
    if not os.access(binary, os.X_OK):
        raise UsageError(f"ztunnel '{path}' is not executable: chmod +x {path}")
    return Choice(name, Binary(name, binary))


def _siblings(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return []


def _unknown(text: str, choices: list[str]) -> str:
    a_file = f" There is a file of that name here: ./{text}" if text in _siblings(Path(text).absolute()) else ""
    return (
        f"ztunnel {_shown(text)} is none of {', '.join(choices)}, and not a path, which has a slash."
        f"{_did_you_mean(text, choices)}{a_file}"
    )


def _did_you_mean(value: str, choices: list[str]) -> str:
    close = get_close_matches(value, choices, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _shown(text: str) -> str:
    """``text`` in quotes, cut where it would fill the screen."""
    return f"'{text}'" if len(text) <= _LONGEST_SHOWN else f"'{text[:_LONGEST_SHOWN]}...'"


def _load(point: EntryPoint) -> NodeProxy:
    where = f"ztunnel '{point.name}' (entry point {point.value})"
    try:
        plugin = point.load()
    except Exception as error:  # a stranger's module may raise anything at import
        raise UsageError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    missing = [name for name in ("api_version", "describe", "launch") if not hasattr(plugin, name)]
    if missing:
        raise UsageError(f"{where} has no {', '.join(missing)}: see docs/how-to/plug-in-your-ztunnel.md")
    if plugin.api_version != API_VERSION:
        raise UsageError(f"{where} is for api_version {plugin.api_version}; this meshlab speaks {API_VERSION}")
    return cast("NodeProxy", plugin)
