"""However the printing or saving of a command ends, its exit code is its own, and nobody sees a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

MESHLAB = f"{sys.executable} -m meshlab"


@pytest.fixture(autouse=True)
def _streams_with_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everybody has them whose environment does not say otherwise."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def _sh(script: str, folder: Path, *, within_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a script of bash's; ``$M`` is the command."""
    environment = {**os.environ, "M": MESHLAB}
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(("mutant", "code"), [("", 0), ("--mutant ignores-deny", 1)])
def test_a_reader_that_is_gone_changes_no_exit_code(tmp_path: Path, mutant: str, code: int) -> None:
    done = _sh(f"$M check two-nodes {mutant} | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("two-nodes")


@pytest.mark.parametrize("command", ["check two-nodes", "impls --json", "version"])
def test_what_a_full_disk_does_not_take_comes_on_stderr(tmp_path: Path, command: str) -> None:
    whole = _sh(f"$M {command}", tmp_path)
    done = _sh(f"$M {command} > /dev/full", tmp_path)
    assert (done.returncode, whole.returncode) == (0, 0)
    first, _, rest = done.stderr.partition("\n")
    assert first == "stdout cannot be written (No space left on device); this was to go there:"
    assert rest.splitlines()[0] == whole.stdout.splitlines()[0]
    assert rest.count("\n") == whole.stdout.count("\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [("version", 0), ("check nope", 2), ("--help", 3)],
    ids=str,
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_where_neither_stdout_nor_stderr_takes_anything_the_exit_code_still_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert _sh(f"$M {command} > /dev/full 2>&1", tmp_path).returncode == code


@pytest.mark.parametrize(
    ("closed", "mutant", "code"), [("2>&-", "", 0), (">&-", "", 0), ("<&- >&- 2>&-", "--mutant ignores-deny", 1)]
)
def test_a_closed_stream_changes_no_exit_code(tmp_path: Path, closed: str, mutant: str, code: int) -> None:
    assert _sh(f"$M check two-nodes {mutant} {closed}", tmp_path).returncode == code


@pytest.mark.parametrize("command", ["check two-nodes", "fuzz two-nodes", "validate two-nodes"])
def test_a_working_folder_that_was_removed_is_said_and_ends_2(tmp_path: Path, command: str) -> None:
    done = _sh(f"mkdir gone; cd gone; rmdir ../gone; $M {command}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the folder that this is run in has been removed: `cd` into one that is there\n"


def _on_a_small_disk(script: str, folder: Path, kb: int) -> subprocess.CompletedProcess[str]:
    """Run a script with a tmpfs on ``$D`` that holds ``kb``; no namespace of users where the caller is root."""
    disk = folder / "disk"
    disk.mkdir()
    inner = f"D={disk}\nmount -t tmpfs -o size={kb}k small $D || exit 99\n{script}"
    flags = "-m" if os.geteuid() == 0 else "-rm"
    return _sh(f"unshare {flags} bash -c '{inner}'", folder)


@pytest.mark.parametrize(("mutant", "code"), [("", 0), ("--mutant ignores-deny", 1)])
def test_artifacts_on_a_full_disk_cost_files_and_neither_report_nor_exit_code(
    tmp_path: Path, mutant: str, code: int
) -> None:
    script = f"$M check two-nodes {mutant} --artifacts $D/out; code=$?; find $D/out -type f >&2; exit $code"
    done = _on_a_small_disk(script, tmp_path, 32)
    assert done.returncode == code
    assert re.search(r"not saved: \S+/out/capture\.pcapng: No space left on device", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("failed: " if code else "held: ")
    assert f"{tmp_path}/disk/out/topology.yaml" in done.stderr, "what could be saved is there"
    assert "capture" not in done.stderr, "and nothing in part"


def test_a_conversation_on_a_full_disk_costs_files_and_not_the_report(tmp_path: Path) -> None:
    done = _on_a_small_disk("$M check two-nodes --record $D/out", tmp_path, 4)
    assert done.returncode == 0
    assert re.search(r"not saved: \S+/out/conversation\.jsonl: No space left on device", done.stdout)


def test_a_bundle_on_a_full_disk_costs_files_and_not_the_result(tmp_path: Path) -> None:
    done = _on_a_small_disk("$M bundle two-nodes -o $D/b; code=$?; find $D -type f >&2; exit $code", tmp_path, 32)
    assert done.returncode == 0
    assert re.search(r"not saved: \S+/b/capture\.pcapng: No space left on device", done.stdout)
    assert "held: " in done.stdout
    assert f"{tmp_path}/disk/b/at-the-end.yaml" in done.stderr
    assert not re.search(r"\.part$", done.stderr, re.MULTILINE)


def test_a_failure_that_a_full_disk_does_not_take_is_printed(tmp_path: Path) -> None:
    script = "head -c 8K /dev/zero > $D/full; $M fuzz two-nodes --mutant ignores-deny --for 30 --failures 1 --workers 1"
    done = _on_a_small_disk(f"{script} --artifacts $D/a --corpus {tmp_path}/c", tmp_path, 8)
    assert done.returncode == 1
    assert "the file could not be written (No space left on device). This was to be in it:" in done.stdout
    assert "kind: Lab" in done.stdout


def test_the_seconds_of_a_check_are_not_more_than_it_took(tmp_path: Path) -> None:
    done = _sh("time $M check two-nodes", tmp_path)
    took = re.search(r"real\s+(\d+)m([\d.,]+)s", done.stderr)
    said = re.search(r"; ([\d.]+) s$", done.stdout.splitlines()[-1])
    assert took is not None
    assert said is not None
    assert float(said[1]) <= int(took[1]) * 60 + float(took[2].replace(",", "."))


def test_three_times_ctrl_c_end_in_one_word(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "meshlab", "fuzz", "two-nodes", "--for", "60", "--workers", "1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=tmp_path, start_new_session=True, **streams) as fuzzing:  # type: ignore[call-overload]
        assert fuzzing.stderr.readline().startswith(b"seed ")
        for _ in range(3):
            fuzzing.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                fuzzing.wait(0.2)
        _, said = fuzzing.communicate(timeout=60)
    assert (fuzzing.returncode, said) == (130, b"interrupted\n")


@pytest.mark.parametrize(("limit", "code"), [(32, 3), (256, 0)])
def test_doctor_and_check_agree_on_what_a_limit_of_descriptors_allows(tmp_path: Path, limit: int, code: int) -> None:
    doctor = _sh(f"ulimit -n {limit}; $M doctor", tmp_path)
    check = _sh(f"ulimit -n {limit}; $M check two-nodes", tmp_path)
    assert (doctor.returncode, check.returncode) == (code, code)
