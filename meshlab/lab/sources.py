"""Where a topology comes from: a path that exists, YAML text, or the name of a shipped one."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from meshlab import topology
from meshlab.errors import Issue, TopologyError, UsageError
from meshlab.model import Topology
from meshlab.topology.notes import shown

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Source:
    """A topology and the file it was read from."""

    topology: Topology
    path: Path | None
    """``None`` for YAML text."""
    unrunnable: tuple[Issue, ...] = ()
    """Images without a program: the file is valid, and cannot run as it stands."""
    inert: tuple[Issue, ...] = ()
    """Keys that were read over, since they have no part in traffic."""
    warnings: tuple[Issue, ...] = ()
    """What of the file has no effect, and what the lab adds to it."""


def shipped() -> dict[str, Path]:
    """The topologies that come with meshlab, by name: in the wheel, or beside the package in a checkout.

    One in a folder has the folder in its name: ``pitfalls/node-reboots``.
    """
    for folder in (_PACKAGE / "topologies", _PACKAGE.parent / "topologies"):
        if folder.is_dir():
            paths = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*/*.yaml"))
            return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {}


def find(name: str, folder: Path | None = None) -> Path:
    """The file behind a path or a shipped name.

    Args:
        folder: where a relative path starts; the working folder, if not given.

    Raises:
        UsageError: there is none; the message lists the shipped names.
    """
    path = (folder or Path()) / name
    if _is_file(path):
        return path
    names = shipped()
    if name in names:
        return names[name]
    close = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"no file {shown(str(path))}, and no shipped topology of that name ({', '.join(names)}).{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name may be
        return False


def read(text_or_name: str, folder: Path | None = None) -> Source:
    """Load a topology from YAML text, a path (relative to ``folder``), or a shipped name.

    Raises:
        TopologyError: it cannot be used; every reason with its place.
        UsageError: there is no such file or name.
    """
    if "\n" in text_or_name:
        return _source(text_or_name, "<text>", None)
    path = find(text_or_name, folder)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError([Issue(str(path), 1, 1, f"cannot be read: {error}")]) from error
    return _source(text, str(path), path)


def _source(text: str, name: str, path: Path | None) -> Source:
    reading = topology.read(text, name)
    return Source(reading.topology, path, reading.unrunnable, reading.inert, reading.warnings)
