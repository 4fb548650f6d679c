"""No module of meshlab imports itself by a detour: not at its top, not in a function, not for type checkers only.

import-linter looks at rooms (``lint-imports``), and the rooms of ``lab`` may know each other. This looks at modules.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest


def circle(package: str) -> list[str]:
    """Return modules each of which imports the next, and the last of which is the first; nothing if there are none."""
    graph = grimp.build_graph(package, cache_dir=None)
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_module_is_in_an_import_circle() -> None:
    assert circle("meshlab") == []


IMPORT = "from circular import first"


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(IMPORT, id="at the top"),
        pytest.param(f"def late() -> None:\n    {IMPORT}", id="in a function"),
        pytest.param(f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {IMPORT}", id="for type checkers"),
    ],
)
def test_a_circle_would_be_seen(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "circular"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text("from circular import second")
    (folder / "second.py").write_text(written)
    monkeypatch.syspath_prepend(tmp_path)
    first, second = "circular.first", "circular.second"
    assert circle("circular") in ([first, second, first], [second, first, second])
