"""A topology file as a pytest test that fails as the file does. Pure: text in, text out."""

from __future__ import annotations

import re

from meshlab.play.bugfile import SUFFIX
from meshlab.play.replay import RUNS

_TEST = '''"""Made from {name} by `meshlab repro --pytest`: it fails as the file does."""

import pytest

from meshlab.play.replay import steps_hold

TOPOLOGY = """\\
{text}"""


@pytest.mark.meshlab(TOPOLOGY)
def test_{function}(lab):
    steps_hold(lab, runs={runs})
'''


def pytest_file(text: str, name: str) -> tuple[str, str]:
    """Name and text of a test file for the topology ``text`` of the file ``name``."""
    stem = name.removesuffix(SUFFIX).removesuffix(".yaml").removesuffix(".yml")
    function = re.sub(r"\W+", "_", stem).strip("_").lower() or "steps"
    text += "" if text.endswith("\n") else "\n"
    return f"test_{function}.py", _TEST.format(name=_quoted(name), text=_quoted(text), function=function, runs=RUNS)


def _quoted(text: str) -> str:
    """As it stands between three quotes: Python reads each line break of a source as \\n."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').replace("\r", "\\r").replace("\0", "\\x00")
