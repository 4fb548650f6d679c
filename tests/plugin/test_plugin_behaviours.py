"""What the plug-in does with tests that hold, fail, or cannot run: ``project/`` is run once with ``-n 2``."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from plugin_runs import Run, copy_project, run_pytest


@pytest.fixture(scope="session")
def behaviours(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """The run, made once also where the tests about it are spread over workers."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    result = base / "behaviours.json"
    with _locked(base / "behaviours.lock"):
        if not result.exists():
            run = run_pytest(copy_project(base / "behaviours"), "-n", "2")
            result.write_text(json.dumps({**asdict(run), "folder": str(run.folder)}), encoding="utf-8")
    read = json.loads(result.read_text("utf-8"))
    return Run(**{**read, "folder": Path(read["folder"])})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    "test",
    [
        "test_a_policy_holds",
        "test_a_path_starts_at_the_tests_folder",
        "test_yaml_text",
        "test_no_marker_means_the_ini_files_topology",
        "test_a_property_with_a_lab_for_each_example",
        "test_an_error_that_is_expected_leaves_nothing",
        "test_a_shared_lab_lives",
    ],
)
def test_a_test_that_holds_passes(behaviours: Run, test: str) -> None:
    assert [behaviours.of(test, when)["outcome"] for when in ("setup", "call", "teardown")] == ["passed"] * 3


def test_only_failed_tests_leave_something(behaviours: Run) -> None:
    failed = [
        "test_a_denial_without_a_twin",
        "test_a_property_fails",
        "test_a_shared_lab_is_saved_too",
        "test_an_assertion_fails",
        "test_the_ztunnel_is_killed",
        "test_the_ztunnel_is_killed_and_a_call_fails",
    ]
    assert behaviours.artifacts() == [f"test_behaviours.py-{test}" for test in failed]


def test_a_failed_test_says_where_to_look_and_how_to_see_it_again(behaviours: Run) -> None:
    report = behaviours.of("test_an_assertion_fails")
    assert report["outcome"] == "failed"
    assert report["meshlab"].splitlines() == [
        "call 1: shop/intruder -> server.shop:8080 over IPv4: ok 200; the policies allow it (no policy applies "
        "(at shop/server))",
        "captures, logs, rules and configuration: meshlab-artifacts/test_behaviours.py-test_an_assertion_fails",
        "again: pytest test_behaviours.py::test_an_assertion_fails",
    ]


def test_a_failed_test_leaves_captures_logs_rules_and_configuration(behaviours: Run) -> None:
    folder = behaviours.folder / "meshlab-artifacts" / "test_behaviours.py-test_an_assertion_fails"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "calls.txt",
        "capture.pcapng",
        "control-plane.json",
        "logs/agent@node-1.log",
        "logs/agent@node-2.log",
        "logs/control-plane.log",
        "logs/echo@node-1.log",
        "logs/echo@node-2.log",
        "logs/ztunnel@node-1.log",
        "logs/ztunnel@node-2.log",
        "rules/shop_client.nft",
        "rules/shop_intruder.nft",
        "rules/shop_server.nft",
        "topology.yaml",
    ]
    assert b"shop/server" in (folder / "capture.pcapng").read_bytes(), "links are named after pods"
    assert "no-intruders" not in (folder / "topology.yaml").read_text("utf-8"), "it was deleted before the failure"


def test_the_folder_is_a_property_of_the_report(behaviours: Run) -> None:
    folder = behaviours.of("test_an_assertion_fails")["properties"]["meshlab_artifacts"]
    assert folder == str(behaviours.folder / "meshlab-artifacts" / "test_behaviours.py-test_an_assertion_fails")


def test_a_killed_ztunnel_fails_the_test_that_was_running_and_nothing_else(behaviours: Run) -> None:
    report = behaviours.of("test_the_ztunnel_is_killed")
    assert report["outcome"] == "failed"
    assert report["text"].splitlines()[1] == "the lab's audit found: ztunnel@node-1 ended: killed by SIGKILL"
    assert behaviours.of("test_the_ztunnel_is_killed", "teardown")["outcome"] == "passed"


def test_a_failure_names_the_ztunnel_that_was_killed_meanwhile(behaviours: Run) -> None:
    text = behaviours.of("test_the_ztunnel_is_killed_and_a_call_fails")["text"]
    assert "AssertionError: assert <Outcome.CONNECT_REFUSED: 2> is <Outcome.OK: 1>" in text
    assert "the lab's audit found: ztunnel@node-1 ended: killed by SIGKILL" in text


def test_a_denial_without_a_twin_cannot_be_told(behaviours: Run) -> None:
    text = behaviours.of("test_a_denial_without_a_twin")["text"]
    assert "CannotTellError" in text
    assert "twin" in text.splitlines()[-3]
    assert "meshlab/lab" not in text, "the trace ends at the line of the test"


def test_a_failed_property_leaves_its_last_example_only(behaviours: Run) -> None:
    assert behaviours.of("test_a_property_fails")["meshlab"].count("captures, logs, rules and configuration") == 1


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("test_a_misspelt_key", "<text>:6:3: no key 'nodez' in spec of a Lab"),
        ("test_a_misspelt_name", "Did you mean 'two-nodes'?"),
        ("test_an_image_without_a_program", '"docker.io/acme/proxy*": {run: [PROGRAM, ARGUMENT]}'),
        ("test_a_misspelt_setting", "a lab has no setting 'ready_timeout' ("),
        ("test_no_ztunnel", "shop/client: no node proxy was asked for"),
        ("test_a_host_that_can_hold_no_lab[in CI]", "a lab cannot run here, and CI=true: user namespaces are off here"),
    ],
)
def test_what_cannot_run_is_said_without_a_trace(behaviours: Run, test: str, message: str) -> None:
    report = behaviours.of(test, "setup")
    assert report["outcome"] == "failed"
    assert message in report["text"]
    assert len(report["text"].splitlines()) <= 2


def test_what_the_factory_cannot_run_is_said_at_the_line_of_the_test(behaviours: Run) -> None:
    text = behaviours.of("test_a_misspelt_name_given_to_the_factory")["text"]
    assert "Did you mean 'two-nodes'?" in text
    assert text.count("\ntest_behaviours.py:") == 1
    assert "pytest_plugin.py" not in text
    assert "meshlab/lab" not in text


@pytest.mark.parametrize(
    ("host", "reason"),
    [("at home", "user namespaces are off here: run as root"), ("in CI, and allowed", "this kernel is too old")],
)
def test_where_no_lab_can_be_a_test_is_skipped_with_the_fix(behaviours: Run, host: str, reason: str) -> None:
    report = behaviours.of(f"test_a_host_that_can_hold_no_lab[{host}]", "setup")
    assert report["outcome"] == "skipped"
    assert reason in report["text"]


def test_pytest_says_what_it_thinks_of_the_whole(behaviours: Run) -> None:
    assert behaviours.exit_code == 1
    assert "7 failed, 7 passed, 2 skipped, 1 xfailed, 6 errors" in behaviours.output
