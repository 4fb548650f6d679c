"""A downstream project with a ``MeshMachine``: ``tests/plugin/project/machine.py``, run by pytest."""

from __future__ import annotations

from pathlib import Path

from plugin_runs import Run, copy_project, run_pytest

from meshlab.topology import load


def _run(tmp_path: Path, *arguments: str) -> Run:
    folder = copy_project(tmp_path / "project")
    (folder / "machine.py").rename(folder / "test_machine.py")
    return run_pytest(folder, "test_machine.py", *arguments)


def test_a_right_proxy_holds_whatever_happens_on_a_shared_lab_and_on_labs_of_their_own(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.exit_code == 0, run.output
    assert "3 passed" in run.output


def test_a_wrong_proxy_is_told_with_a_file_that_replays(tmp_path: Path) -> None:
    run = _run(tmp_path, "--meshlab-mutant=ignores-deny", "-k", "test_a_shared_lab")
    report = run.of("test_a_shared_lab")
    assert report["outcome"] == "failed"
    assert "the policies deny it" in report["text"]
    told = report["text"].partition("as a file for `meshlab replay`:\n")[2]
    lines = [line.removeprefix("E").strip("\n") for line in told.splitlines()]
    indent = len(lines[0]) - len(lines[0].lstrip())
    text = "\n".join(line[indent:] for line in lines).partition("\n\n")[0]
    assert load(text, "told").steps
