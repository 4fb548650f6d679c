"""Options: what they do to tests, how they are told apart from files, and what is said of a wrong one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Project = Callable[..., Any]


def test_two_ztunnels_run_each_test_twice(project: Project, tmp_path: Path) -> None:
    binary = tmp_path / "project" / "other-ztunnel"
    binary.write_text(f"#!/bin/sh\nexec {sys.executable} -m meshlab.ztunnel\n")
    binary.chmod(0o755)
    tests = ("test_a_path_starts_at_the_tests_folder", "test_a_property_with_a_lab_for_each_example")
    run = project("--meshlab-ztunnel=reference", "--meshlab-ztunnel=other=./other-ztunnel", "-k", " or ".join(tests))
    assert run.exit_code == 0, run.output
    passed = {report["test"] for report in run.reports if (report["when"], report["outcome"]) == ("call", "passed")}
    assert passed == {f"{test}[{ztunnel}]" for test in tests for ztunnel in ("reference", "other")}


def test_a_mutant_makes_a_proof_of_encryption_fail(project: Project) -> None:
    run = project("--meshlab-mutant=leaks-plaintext", "-k", "test_a_policy_holds")
    report = run.of("test_a_policy_holds")
    assert report["outcome"] == "failed"
    assert "ProofFailedError: encrypted:shop/client->server.shop:8080/4" in report["text"]
    assert report["meshlab"].endswith(
        "again: pytest test_behaviours.py::test_a_policy_holds --meshlab-mutant=leaks-plaintext"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--meshlab-ztunnel=referense",
            "ztunnel 'referense' is none of none, reference, and not a path, which has a slash.",
        ),
        ("--meshlab-ztunnel=./ztunnel", "does not exist"),
        ("--meshlab-mutant=leaks-plain", "Did you mean 'leaks-plaintext'?"),
        ("--meshlab-variant=pooling", "Did you mean 'no-pooling'?"),
    ],
)
def test_a_name_that_is_none_is_refused_before_the_first_test(project: Project, option: str, message: str) -> None:
    run = project(option)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert message in run.output
    assert "Traceback" not in run.output


def test_command_line_goes_before_environment_before_ini_file(tmp_path: Path, run_pytest: Callable[..., Any]) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmeshlab_topology = ini\nmeshlab_artifacts = ini\nmeshlab_mutant = ignores-deny\n"
    )
    (tmp_path / "conftest.py").write_text(
        "from meshlab.pytest_plugin import asked\n\n"
        "def pytest_report_header(config):\n"
        "    return [f'{name}: {asked(config, name)[0]}' for name in ('topology', 'artifacts', 'mutant', 'ztunnel')]\n"
    )
    env = {"MESHLAB_TOPOLOGY": "env", "MESHLAB_ARTIFACTS": "env", "MESHLAB_ZTUNNEL": "none:reference"}
    run = run_pytest(tmp_path, "--meshlab-topology=line", env=env)
    assert (
        "topology: ['line']\nartifacts: ['env']\nmutant: ['ignores-deny']\nztunnel: ['none', 'reference']" in run.output
    )
