"""Runs pytest in a process of its own, on ``project/``; what became of each test there is read from its reports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).with_name("project")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Run:
    """A run of pytest that is over."""

    folder: Path
    exit_code: int
    output: str
    reports: list[dict[str, Any]] = field(default_factory=list)

    def of(self, test: str, when: str = "call") -> dict[str, Any]:
        """The report of one phase of a test."""
        found = [report for report in self.reports if (report["test"], report["when"]) == (test, when)]
        assert len(found) == 1, f"{test} has {len(found)} reports of its {when}; the run printed:\n{self.output}"
        return found[0]

    def artifacts(self) -> list[str]:
        """The folders that failed tests left."""
        folder = self.folder / "meshlab-artifacts"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def run_pytest(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Run:
    """``pytest arguments`` in ``folder``, without what this run's own environment says of meshlab."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESHLAB_", "PYTEST_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        env={**clean, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    written = folder / "reports.jsonl"
    lines = written.read_text("utf-8").splitlines() if written.exists() else []
    return Run(folder, done.returncode, ANSI.sub("", done.stdout + done.stderr), [json.loads(line) for line in lines])


def copy_project(folder: Path) -> Path:
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "behaviours.py").rename(folder / "test_behaviours.py")
    (folder / "reporting.py").rename(folder / "conftest.py")
    return folder


def run_project(folder: Path, *arguments: str) -> Run:
    """``pytest arguments`` on a copy of ``project/``, which is made in ``folder``."""
    return run_pytest(copy_project(folder / "project"), *arguments)
