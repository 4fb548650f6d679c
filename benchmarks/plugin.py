"""What the pytest plug-in costs those who do not use it: its import, and what a collection has loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Report, median

BOUND_MS = 30.0
HEAVY = (
    "cryptography",
    "google.protobuf",
    "grpc",
    "h2",
    "hypothesis",
    "pydantic",
    "pyroute2",
    "rich",
    "ruamel",
    "scapy",
)
_COLLECT = """
import json, sys, pytest
pytest.main(["--collect-only", "-q", "-p", "meshlab.pytest_plugin"])
print(json.dumps(sorted(sys.modules)))
"""
_TEST = "import pytest\n\n\n@pytest.mark.meshlab('quickstart')\ndef test_it(lab): ...\n"


def run(rounds: int = 5) -> Report:
    """Measure both."""
    import_ms = median(_import_ms() for _ in range(rounds))
    loaded = loaded_by_collection()
    heavy = [name for name in HEAVY if name in loaded]
    return Report(
        name="plugin",
        promise=f"the plug-in's import costs at most {BOUND_MS:g} ms, and a collection loads nothing heavy",
        held=import_ms <= BOUND_MS and not heavy,
        figures={"import_ms": import_ms, "heavy_packages": len(heavy)},
        lines=(
            f"import beside pytest, by -X importtime: {import_ms:.1f} ms (median of {rounds})",
            f"heavy packages loaded by --collect-only: {', '.join(heavy) or 'none'}",
        ),
    )


def import_ms(report: str, module: str) -> float:
    """What ``-X importtime`` says that ``module`` cost, with all that it was the first to import."""
    found = re.findall(rf"^import time:\s+\d+ \|\s+(\d+) \|\s+{re.escape(module)}$", report, re.MULTILINE)
    return int(found[-1]) / 1000


def loaded_by_collection() -> frozenset[str]:
    """The modules that are there when a test which asks for a lab was collected."""
    with TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text(_TEST)
        # No other plug-in: hypothesis' own would load hypothesis.
        env = {"PYTHONPATH": _path(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        argv = [sys.executable, "-c", _COLLECT]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True, env=env)
    if "1 test collected" not in done.stdout:
        raise RuntimeError(f"nothing was collected:\n{done.stdout}{done.stderr}")
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


def _import_ms() -> float:
    argv = [sys.executable, "-X", "importtime", "-c", "import pytest; import meshlab.pytest_plugin"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return import_ms(done.stderr, "meshlab") + import_ms(done.stderr, "meshlab.pytest_plugin")


def _path() -> str:
    """Where this meshlab is, also when it is not installed."""
    return str(Path(__file__).resolve().parents[1])
