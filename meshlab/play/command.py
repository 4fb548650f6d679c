"""What ``meshlab replay``, ``fmt`` and ``repro`` do, apart from printing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlab.errors import Issue, TopologyError, UsageError
from meshlab.implementations import resolve, resolve_waypoint
from meshlab.lab.sources import find
from meshlab.play.bugfile import formatted
from meshlab.play.files import hazards, opened
from meshlab.play.replay import Played, Word, replay, steps_of
from meshlab.play.repro import pytest_file
from meshlab.testing.registry import accept


def play_file(
    name: str, runs: int, allow_commands: bool, artifacts: Path | None, say: Callable[[str], None], **settings: Any
) -> Played:
    """Play a file, unless it would run commands that nobody allowed; these are said first in any case.

    Raises:
        TopologyError: the file cannot be used.
        UsageError: an option names nothing.
    """
    source = opened(name)
    refuse_unknown(settings)
    found = hazards(source, [key for key in ("ztunnel", "waypoint") if settings.get(key)])
    if found and not allow_commands:
        why = "nothing was run: the file has commands or paths of its own; read them, then say --allow-commands"
        return Played(Word.CANNOT_RUN, reasons=(*map(str, found), why))
    for hazard in found:
        say(str(hazard))
    if not steps_of(source.topology):
        why = f"{name} expects nothing: it has neither spec.steps nor spec.expect"
        return Played(Word.CANNOT_RUN, reasons=(why,))
    return replay(source, runs, artifacts, **settings)


def refuse_unknown(settings: dict[str, Any]) -> None:
    if settings.get("ztunnel"):
        resolve(settings["ztunnel"])
    if settings.get("waypoint"):
        resolve_waypoint(settings["waypoint"])
    accept(settings.get("mutant"), settings.get("variant"))


def format_file(path: Path, *, write: bool) -> bool:
    """Whether the canonical form differs; it is written in place of the file, whole or not at all.

    Raises:
        TopologyError: the file is no topology, or cannot be read.
    """
    if not path.exists():
        raise UsageError(f"there is no file '{path}'")
    opened_path = (opened(str(path)).path or path).resolve()  # a link stays one
    text = opened_path.read_text(encoding="utf-8")
    canonical = formatted(text, str(path))
    if canonical == text:
        return False
    if write:
        beside = opened_path.with_name(f".{opened_path.name}.{os.getpid()}")
        beside.write_text(canonical, encoding="utf-8")
        beside.chmod(opened_path.stat().st_mode & 0o777)
        beside.replace(opened_path)
    return True


def write_pytest(name: str, output: Path | None) -> Path:
    """Write the test for a file; where it was written.

    Raises:
        UsageError: there is such a file already.
        TopologyError: the file expects nothing, or cannot be used.
    """
    source = opened(name)
    path = find(name)
    if not steps_of(source.topology):
        raise TopologyError([Issue(str(path), 1, 1, "it expects nothing: neither spec.steps nor spec.expect")])
    test_name, text = pytest_file(path.read_text(encoding="utf-8"), path.name)
    where = output or Path(test_name)
    try:
        with where.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"'{where}' is there already: take it away, or say --output") from None
    except OSError as error:
        raise UsageError(f"'{where}' cannot be written: {error.strerror}") from None
    return where
