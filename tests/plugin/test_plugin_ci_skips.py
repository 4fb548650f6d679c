"""``tests/conftest.py``: in CI a skip is a failure, unless its reason is allowed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from plugin_runs import run_pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
PYPROJECT = """
[tool.pytest.ini_options]
[tool.meshlab]
allowed_skips = ["nft is not installed"]
"""
TESTS = """
import pytest

def test_allowed():
    pytest.skip("nft is not installed here")

def test_not_allowed():
    pytest.skip("not today")

@pytest.mark.skip(reason="never")
def test_not_allowed_by_mark(): ...

@pytest.mark.xfail
def test_expected():
    assert False
"""
MODULE = """
import pytest

pytest.skip("no module today", allow_module_level=True)
"""


@pytest.mark.parametrize(
    ("ci", "counts"),
    [("true", "1 failed, 1 skipped, 1 xfailed, 2 errors"), ("", "4 skipped, 1 xfailed")],
    ids=["in CI", "at home"],
)
def test_a_skip_in_ci_needs_an_allowed_reason(tmp_path: Path, ci: str, counts: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    run = run_pytest(tmp_path, "--continue-on-collection-errors", env={"CI": ci})
    assert re.search(rf"= {counts} in ", run.output), run.output
    assert ("pyproject.toml does not allow there: not today" in run.output) is bool(ci)
