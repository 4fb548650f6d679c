"""What ``meshlab fuzz`` does, apart from printing."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlab.errors import UsageError
from meshlab.lab.proving.evidence import writable
from meshlab.play.command import refuse_unknown
from meshlab.play.files import opened

if TYPE_CHECKING:
    from meshlab.fuzz.plan import Plan

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
        from meshlab.fuzz.plan import Plan
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'meshlab[fuzz]'") from None
    source = opened(topology)
    refuse_unknown(settings)
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
