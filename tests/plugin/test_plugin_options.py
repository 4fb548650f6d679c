"""Options: what they do to tests, how they are told apart from files, and what is said of a wrong one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plugin_runs import copy_project, run_project, run_pytest


def test_two_ztunnels_run_each_test_twice(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "project")
    binary = folder / "other-ztunnel"
    binary.write_text(f"#!/bin/sh\nexec {sys.executable} -m meshlab.ztunnel\n")
    binary.chmod(0o755)
    ztunnels = ("--meshlab-ztunnel=reference", "--meshlab-ztunnel=other=./other-ztunnel")
    run = run_pytest(folder, *ztunnels, "-k", "test_a_path_starts")
    assert run.exit_code == 0, run.output
    passed = {report["test"] for report in run.reports if (report["when"], report["outcome"]) == ("call", "passed")}
    test = "test_a_path_starts_at_the_tests_folder"
    assert passed == {f"{test}[reference]", f"{test}[other]"}


def test_a_mutant_makes_a_proof_of_encryption_fail(tmp_path: Path) -> None:
    run = run_project(tmp_path, "--meshlab-mutant=leaks-plaintext", "-k", "test_a_policy_holds")
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
def test_a_name_that_is_none_is_refused_before_the_first_test(tmp_path: Path, option: str, message: str) -> None:
    run = run_project(tmp_path, option)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert message in run.output
    assert "Traceback" not in run.output


def test_command_line_goes_before_environment_before_ini_file(tmp_path: Path) -> None:
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
