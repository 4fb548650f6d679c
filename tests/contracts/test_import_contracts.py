"""Each import contract is shown to fail when it is broken: one that cannot fail keeps nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BREAKS = {
    "imports point down": ("model/call.py", "import meshlab.kernel.netd"),
    "ztunnel and translate never see the oracle": ("translate/values.py", "import meshlab.oracle"),
    "the core does no I/O": ("oracle/matching.py", "import socket"),
    "only the edge talks to the kernel": ("lab/calls/names.py", "import ctypes"),
    "only the fuzz extra imports hypothesis": ("lab/calls/names.py", "import hypothesis"),
    "no two rooms import each other, nor do two modules of a room": ("pki/issuer.py", "import meshlab.pki.authority"),
}
"""Contract -> a file and the line that breaks it there."""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache"], cwd=root, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to be broken."""
    shutil.copytree(ROOT / "meshlab", tmp_path / "meshlab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_holds_as_it_stands(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("KEPT") == len(BREAKS)


@pytest.mark.parametrize("contract", sorted(BREAKS))
def test_a_broken_contract_is_noticed(copy: Path, contract: str) -> None:
    name, line = BREAKS[contract]
    path = copy / "meshlab" / name
    path.write_text(path.read_text().replace("from __future__ import annotations\n", f"{line}\n", 1))
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout
