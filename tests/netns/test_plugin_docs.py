"""Every Python block of the README and of ``docs/`` is run as it stands; blocks with tests by pytest, as tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from plugin_runs import run_pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"<!-- needs: (\S+) -->")
RUN_AS_SCRIPT = """
import runpy

def test_block():
    runpy.run_path({path!r})
"""


def test_every_python_block_runs(tmp_path: Path) -> None:
    written = [_write(folder, block) for folder, block in _blocks(tmp_path)]
    run = run_pytest(tmp_path, "--import-mode=importlib", "-p", "no:cacheprovider")
    assert run.exit_code == 0, run.output
    passed = re.search(r"(\d+) passed", run.output)
    assert passed
    assert int(passed[1]) >= len(written) > 8, run.output


def _blocks(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Each block, with a folder of its own in which the page's topology lies where the block asks for it."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for place, block in enumerate(PYTHON.findall(text)):
            folder = tmp_path / f"{page.stem}-{place}"
            folder.mkdir()
            for name in NEEDS.findall(text):
                (folder / name).write_text(YAML.findall(text)[0], encoding="utf-8")
            yield folder, block


def _write(folder: Path, block: str) -> Path:
    test = folder / "test_block.py"
    if "def test_" in block:
        test.write_text(block, encoding="utf-8")
    else:
        script = folder / "block.py"
        script.write_text(block, encoding="utf-8")
        test.write_text(RUN_AS_SCRIPT.format(path=str(script)), encoding="utf-8")
    return test
