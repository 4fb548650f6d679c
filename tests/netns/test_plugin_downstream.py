"""``fixtures/downstream``: a proxy project of somebody else's, whose tests use the plug-in."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from plugin_runs import run_pytest

DOWNSTREAM = Path(__file__).parents[2] / "fixtures" / "downstream"


def test_a_downstream_project_passes_with_four_workers(tmp_path: Path) -> None:
    folder = shutil.copytree(DOWNSTREAM, tmp_path / "acme", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    run = run_pytest(folder, "-n", "4", "-p", "no:cacheprovider")
    assert run.exit_code == 0, run.output
    assert re.search(r"^=+ 8 passed in ", run.output, re.MULTILINE), run.output
    assert run.artifacts() == []
