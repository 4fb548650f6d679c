"""What a failed test leaves: a folder named after it, and the lines that say what is in it and where to look first."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlab.lab import Lab

_CALLS_SHOWN = 5
_LONGEST_NAME = 120


def save_failure(lab: Lab, artifacts: Path, test: str, place: int = 1) -> tuple[Path, str]:
    """Save what ``lab`` saw in a folder of ``artifacts``; that folder, and the paragraph of the report about it.

    Args:
        test: node id of the test, after which the folder is named.
        place: of the lab, where a test has several.
    """
    told = lab.told(_CALLS_SHOWN)
    folder = _fresh(artifacts, _folder_name(test) + (f"-{place}" if place > 1 else ""))
    try:
        lab.save(folder)
    except Exception as error:  # the test's own failure must stay the headline
        told.append(f"what the lab saw could not be saved in {folder}: {type(error).__name__}: {error}")
    else:
        told.append(f"captures, logs, rules and configuration: {_from_here(folder)}")
    return folder, "\n".join(told)


def _fresh(artifacts: Path, name: str) -> Path:
    """An empty folder, without what an earlier run of the same test left in it."""
    try:
        shutil.rmtree(artifacts / name, ignore_errors=True)
        (artifacts / name).mkdir(parents=True)
    except OSError:  # a checkout that is mounted read-only
        return Path(tempfile.mkdtemp(prefix="meshlab-")) / name
    return artifacts / name


def _folder_name(test: str) -> str:
    name = re.sub(r"[^\w.=-]+", "-", test).strip("-")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"


def _from_here(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
