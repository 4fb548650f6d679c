"""The plug-in costs nothing to those who do not use it: no time, and no packages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from plugin_runs import run_pytest

HEAVY = (
    "cryptography",
    "google.protobuf",
    "grpc",
    "h2",
    "hypothesis",
    "pydantic",
    "pyroute2",
    "ruamel",
    "scapy",
    "trustme",
)
ASKS = """
import sys

def pytest_unconfigure():
    print("loaded:", *sorted(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""
IMPORT_BUDGET_MS = 30


def test_collecting_loads_none_of_the_heavy_packages(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(ASKS.format(heavy=HEAVY))
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n\n@pytest.mark.meshlab('two-nodes')\ndef test_mine(lab, lab_factory): ...\n"
    )
    without = "no:hypothesispytest"  # Hypothesis loads itself when pytest ends
    arguments = ("--collect-only", "-q", "-p", without, "--meshlab-ztunnel=reference", "--meshlab-mutant=ignores-deny")
    run = run_pytest(tmp_path, *arguments)
    assert "1 test collected" in run.output
    assert re.findall(r"^loaded:(.*)$", run.output, re.MULTILINE) == [""]


def test_importing_the_plugin_costs_at_most_30_ms() -> None:
    """Best of three: another process may have had the processor."""
    assert min(_import_ms() for _ in range(3)) <= IMPORT_BUDGET_MS


def _import_ms() -> float:
    """What pytest itself has loaded by then does not count."""
    code = "import pytest; import meshlab.pytest_plugin"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    _, cumulative_us, name = done.stderr.splitlines()[-1].split("|")
    assert name.strip() == "meshlab.pytest_plugin"
    return int(cumulative_us) / 1000
