"""What the README shows as printed is printed, line by line; numbers may differ, but not how many are counted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SHOWN = re.findall(r"<!-- output: (meshlab [^\n]*) -->\n```text\n(.*?)```", README, re.DOTALL)

WHERE = re.compile(r"canary of call \d+ in clear|more places|^\.\.\.$")
"""Where a leak is seen first depends on which link was read first."""
NUMBER = re.compile(r"\d++(?! (?:cells|of them|proofs|beacons|links|drops))")
"""What differs from run to run. How many cells, proofs and beacons there are does not."""


@pytest.mark.parametrize(("command", "text"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_readme_shows_what_is_printed(command: str, text: str, tmp_path: Path) -> None:
    argv = [str(Path(sys.executable).with_name("meshlab")), *shlex.split(command)[1:]]
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    printed = {_without_numbers(line) for line in done.stdout.splitlines()}
    shown = [line for line in text.splitlines() if not WHERE.search(line)]
    assert [line for line in shown if _without_numbers(line) not in printed] == [], done.stdout
    if "FAILED" in text:
        assert any("canary of call # in clear (raw) on node-#:" in line for line in printed)
    assert done.returncode == (1 if "FAILED" in text else 0)


def _without_numbers(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


def test_the_readme_shows_a_check_that_holds_and_one_that_fails() -> None:
    assert [command for command, _ in SHOWN] == [
        "meshlab check quickstart",
        "meshlab check quickstart --mutant leaks-plaintext",
    ]
