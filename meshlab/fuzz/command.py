"""What ``meshlab fuzz``, ``replay``, ``fmt`` and ``repro`` do, apart from printing."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlab.errors import Issue, TopologyError, UsageError
from meshlab.implementations import resolve
from meshlab.lab.proving.evidence import writable
from meshlab.lab.sources import find
from meshlab.play.bugfile import formatted
from meshlab.play.files import hazards, opened
from meshlab.play.replay import Played, Word, replay, steps_of
from meshlab.play.repro import pytest_file
from meshlab.testing.registry import accept

if TYPE_CHECKING:
    from meshlab.fuzz.run import Plan

CORPUS = Path(".meshlab") / "corpus"
_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600}
_DEFAULT_S = 60.0
_MOST_WORKERS = 8


def seconds_of(text: str) -> float:
    """``90``, ``30s``, ``10m``, ``2h``.

    Raises:
        UsageError: it is none of these.
    """
    found = _TIME.fullmatch(text)
    if not found or not float(found[1]):
        raise UsageError(f"'{text}' is no time: 90, 30s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def plan_of(
    topology: str,
    *,
    duration: str | None,
    examples: int | None,
    seed: int | None,
    failures: int,
    workers: int | None,
    corpus: Path | None,
    artifacts: Path,
    histories: bool = False,
    **settings: Any,
) -> Plan:
    """What the options of ``meshlab fuzz`` come to.

    Raises:
        UsageError: an option names nothing, or the extra is not installed.
    """
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(CORPUS.parent / "hypothesis"))  # also for workers
    try:
        from meshlab.fuzz.campaign import Limits
        from meshlab.fuzz.run import Plan
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'meshlab[fuzz]'") from None
    source = opened(topology)
    _refuse_unknown(settings)
    if not any(pod.ports for pod in source.topology.mesh.pods) or len(source.topology.mesh.pods) < 2:
        raise UsageError(f"nobody can be called in '{source.topology.name}': a pod declares no port, or is alone")
    for folder in (artifacts, corpus or CORPUS):
        writable(folder)
    seconds = None if duration is None and examples is not None else _DEFAULT_S
    return Plan(
        source=source,
        settings=settings,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        corpus=corpus or CORPUS,
        artifacts=artifacts,
        limits=Limits(
            examples=examples, seconds=seconds_of(duration) if duration is not None else seconds, failures=failures
        ),
        workers=workers or min(_MOST_WORKERS, os.cpu_count() or 1),
        histories=histories,
    )


def play_file(
    name: str, runs: int, allow_commands: bool, artifacts: Path | None, say: Callable[[str], None], **settings: Any
) -> Played:
    """Play a file, unless it would run commands that nobody allowed; these are said first in any case.

    Raises:
        TopologyError: the file cannot be used.
        UsageError: an option names nothing.
    """
    source = opened(name)
    _refuse_unknown(settings)
    found = hazards(source, settings.get("ztunnel"))
    if found and not allow_commands:
        why = "nothing was run: the file has commands or paths of its own; read them, then say --allow-commands"
        return Played(Word.CANNOT_RUN, reasons=(*map(str, found), why))
    for hazard in found:
        say(str(hazard))
    if not steps_of(source.topology):
        why = f"{name} expects nothing: it has neither spec.steps nor spec.expect"
        return Played(Word.CANNOT_RUN, reasons=(why,))
    return replay(source, runs, artifacts, **settings)


def _refuse_unknown(settings: dict[str, Any]) -> None:
    if settings.get("ztunnel"):
        resolve(settings["ztunnel"])
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
