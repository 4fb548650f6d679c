"""``--meshlab-reuse``: which tests get a lab that others have used, and cannot tell it. Of ``project/reusing.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_runs import Run, copy_project, run_pytest

FAIL = {"test_3_fails", "test_6_a_lab_is_given_back_and_the_test_fails"}


def _run(folder: Path, *arguments: str) -> Run:
    copy_project(folder)
    (folder / "reusing.py").rename(folder / "test_reusing.py")
    return run_pytest(folder, "test_reusing.py", *arguments)


def _roots(run: Run) -> list[str]:
    """The lab of each test, in order, as a letter."""
    reports = [report for report in run.reports if report["when"] == "call"]
    assert {report["test"] for report in reports if report["outcome"] == "failed"} == FAIL, run.output
    roots = [report["properties"]["root"] for report in reports]
    letters = dict(zip(dict.fromkeys(roots), "ABCDEFG", strict=False))
    return [letters[root] for root in roots]


@pytest.mark.parametrize(
    ("arguments", "labs"),
    [
        ((), "ABCDEFG"),
        (("--meshlab-reuse=2",), "AAABCBD"),
        (("--meshlab-reuse=1",), "AAABCDE"),
    ],
    ids=["without the option", "of two at most", "of one at most"],
)
def test_a_used_lab_serves_the_next_test_of_its_topology_unless_a_test_failed_on_it(
    tmp_path: Path, arguments: tuple[str, ...], labs: str
) -> None:
    run = _run(tmp_path / "project", *arguments)
    assert "".join(_roots(run)) == labs, run.output


def test_a_mutant_is_never_used_again(tmp_path: Path) -> None:
    run = _run(tmp_path / "project", "--meshlab-reuse=2", "--meshlab-mutant=drops-at-drain", "-k", "test_1 or test_2")
    assert len({report["properties"]["root"] for report in run.reports if report["when"] == "call"}) == 2, run.output


def test_a_number_that_is_none_is_refused_before_the_first_test(tmp_path: Path) -> None:
    run = _run(tmp_path / "project", "--meshlab-reuse=some")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert "--meshlab-reuse is a number of labs, such as 2, and not 'some'" in run.output
