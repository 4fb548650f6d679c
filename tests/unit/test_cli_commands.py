"""The command's exit codes, its JSON, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshlab import __version__
from meshlab.cli import main
from meshlab.errors import HostNotReadyError, LabLostError, MeshlabError, NotEnrolledError, UsageError
from meshlab.model.report import Cell, CheckReport
from meshlab.model.report import Result as Outcome
from meshlab.testing.registry import MUTANTS, VARIANTS

TOPOLOGY = """\
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: tiny}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1}
    shop/server: {node: node-2, ports: [8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
CELL = Cell(
    source="shop/client",
    to="shop/server",
    port=8080,
    family=4,
    expected="allow",
    oracle="allow",
    seen="allow",
    outcome="ok",
    rule="no policy applies",
    result=Outcome.HELD,
)


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TOPOLOGY)
    return path


Answer = Callable[..., CheckReport]


@pytest.fixture
def lab_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[dict[str, Any]]]:
    """Put a function in the place of a real lab: ``lab_that(answer)`` gives the list of what it is asked for."""

    def install(answer: Answer) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def run(topology: object, **options: Any) -> CheckReport:
            asked.append({"topology": topology, **options})
            return answer()

        module = ModuleType("meshlab.lab.proving.check")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "meshlab.lab.proving.check", module)
        return asked

    return install


def _report(*cells: Cell, **fields: Any) -> CheckReport:
    return CheckReport(topology="tiny", implementations={"node-1": "reference"}, cells=cells, **fields)


def _raise(error: BaseException) -> CheckReport:
    raise error


LabThat = Callable[[Answer], list[dict[str, Any]]]


def test_meshlab_alone_shows_its_commands() -> None:
    result = _run()
    for command in ("check", "validate", "doctor", "impls", "version"):
        assert command in result.output


@pytest.mark.parametrize("command", ["check", "validate", "doctor", "impls", "version"])
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: meshlab {command}" in result.output


def test_help_loads_nothing_heavy() -> None:
    script = "import sys; from meshlab.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    heavy = {"asyncio", "cryptography", "google", "grpc", "hypothesis", "rich", "ruamel", "scapy", "trustme"}
    assert ("click" in loaded, loaded & heavy) == (True, set())


def test_an_unknown_command_ends_2_with_the_choices() -> None:
    result = _run("chek")
    assert result.exit_code == 2
    assert ", ".join(main.commands) in result.stderr


def test_version_names_the_release() -> None:
    assert _run("version").output.startswith(f"meshlab {__version__} (Python ")


@pytest.mark.parametrize(
    ("results", "code"),
    [
        pytest.param((Outcome.HELD,), 0, id="all held"),
        pytest.param((Outcome.HELD, Outcome.FAILED), 1, id="one failed"),
        pytest.param((Outcome.CANNOT_TELL,), 4, id="cannot tell"),
        pytest.param((), 5, id="nothing to run"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_check_ends_as_its_report_says(
    tiny: Path, lab_that: LabThat, results: tuple[Outcome, ...], code: int, form: tuple[str, ...]
) -> None:
    lab_that(lambda: _report(*(replace(CELL, result=result) for result in results)))
    assert _run("check", tiny, *form).exit_code == code


def test_check_prints_json_and_nothing_else_on_stdout(tiny: Path, lab_that: LabThat) -> None:
    report = _report(CELL, artifacts="out")
    lab_that(lambda: report)
    assert json.loads(_run("check", tiny, "--json").stdout) == report.to_json()


def test_check_hands_every_option_to_the_lab(tiny: Path, lab_that: LabThat, tmp_path: Path) -> None:
    (asked,) = [lab_that(lambda: _report(CELL))]
    result = _run(
        *("check", tiny, "--ztunnel", "istio=./z", "--mutant", "m", "--variant", "v", "--artifacts", tmp_path / "a"),
        *("--record", tmp_path / "r", "--ready-timeout", "2.5"),
        *("--ztunnel-at", "node-1=reference", "--ztunnel-at", "node-2=istio=./old"),
        *("--waypoint", "envoy"),
    )
    assert result.exit_code == 0, result.output
    (options,) = asked
    assert options.pop("topology").name == "tiny"
    assert callable(options.pop("progress"))
    assert callable(options.pop("play"))
    assert options == {
        "source_path": tiny,
        "ztunnel": "istio=./z",
        "ztunnel_at": {"node-1": "reference", "node-2": "istio=./old"},
        "waypoint": "envoy",
        "mutant": "m",
        "variant": "v",
        "artifacts": tmp_path / "a",
        "record": tmp_path / "r",
        "ready_timeout_s": 2.5,
    }


def test_progress_is_silent_where_stderr_is_no_terminal(tiny: Path, lab_that: LabThat) -> None:
    asked = lab_that(lambda: asked[0]["progress"]("building") or _report(CELL))
    assert _run("check", tiny).stderr == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no mutant 'x'"), 2),
        (HostNotReadyError("sudo sysctl user.max_user_namespaces=10000"), 3),
        (NotEnrolledError("shop/client stayed pending"), 1),
        (LabLostError("netd is gone"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MeshlabError) else None,
)
def test_an_error_is_one_message_on_stderr_and_an_exit_code(
    tiny: Path, lab_that: LabThat, error: MeshlabError, code: int
) -> None:
    lab_that(lambda: _raise(error))
    result = _run("check", tiny)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"{error}\n")


def test_ctrl_c_ends_130(tiny: Path, lab_that: LabThat) -> None:
    lab_that(lambda: _raise(KeyboardInterrupt()))
    assert _run("check", tiny).exit_code == 130


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_ready_timeout_is_a_number_above_zero(tiny: Path, seconds: str) -> None:
    assert _run("check", tiny, f"--ready-timeout={seconds}").exit_code == 2


@pytest.mark.parametrize("command", ["check", "validate"])
def test_a_topology_that_is_no_file_and_no_shipped_name_ends_2(command: str) -> None:
    result = _run(command, "no-such-topology")
    assert result.exit_code == 2
    assert "no-such-topology" in result.stderr


@pytest.mark.parametrize("command", ["check", "validate"])
def test_a_folder_is_no_topology(command: str, tmp_path: Path) -> None:
    assert _run(command, tmp_path).exit_code == 2


@pytest.mark.parametrize("command", ["check", "validate"])
def test_a_misspelt_key_ends_2_with_its_place_and_the_nearest(command: str, tiny: Path) -> None:
    tiny.write_text(TOPOLOGY.replace("nodes:", "nodez:"))
    result = _run(command, tiny)
    assert result.exit_code == 2
    assert f"{tiny}:5:3: " in result.stderr
    assert "Did you mean 'nodes'?" in result.stderr


def test_validate_counts_what_a_file_comes_to(tiny: Path) -> None:
    result = _run("validate", tiny)
    assert result.exit_code == 0
    assert result.stdout == "tiny: 2 nodes, 2 pods, 2 enrolled, 0 services, 0 policies, 2 cells, 0 denied\n"


def test_validate_as_json_has_every_issue_with_its_place(tiny: Path) -> None:
    tiny.write_text(TOPOLOGY.replace("nodes:", "nodez:").replace("ports:", "portz:"))
    result = _run("validate", tiny, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 2
    assert answer["valid"] is False
    assert [(issue["line"], issue["source"]) for issue in answer["issues"]] == [(5, str(tiny)), (8, str(tiny))]


IMAGE = """\
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  nodeName: node-1
  priority: 3
  containers: [{name: web, image: example.org/no-such-image:1}]
"""


def test_an_image_without_a_program_is_a_warning_of_validate_and_an_error_of_check(
    tiny: Path, lab_that: LabThat
) -> None:
    asked = lab_that(lambda: _report(CELL))
    tiny.write_text(TOPOLOGY + IMAGE)
    validated, checked = _run("validate", tiny), _run("check", tiny)
    assert (validated.exit_code, checked.exit_code, asked) == (0, 2, [])
    for result in (validated, checked):
        assert "example.org/no-such-image:1" in result.stderr


def test_validate_lists_inert_keys_only_when_asked(tiny: Path) -> None:
    tiny.write_text(TOPOLOGY + IMAGE)
    assert "priority" not in _run("validate", tiny).stdout
    assert f"{tiny}:19:3: " in _run("validate", "-v", tiny).stdout
    assert any("priority" in key["message"] for key in json.loads(_run("validate", tiny, "--json").stdout)["inert"])


def test_impls_lists_everything_that_an_option_takes() -> None:
    listed = json.loads(_run("impls", "--json").stdout)
    assert [row["name"] for row in listed["implementations"]][:2] == ["reference", "none"]
    assert {row["name"]: row["breaks"] for row in listed["mutants"]} == {m.name: m.breaks for m in MUTANTS.values()}
    assert {row["name"] for row in listed["variants"]} == set(VARIANTS)


def test_impls_for_people_names_each_as_well() -> None:
    text = _run("impls").output
    for name in ("reference", "none", *MUTANTS, *VARIANTS):
        assert name in text


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["check", "quickstart", "--mutant", "ignores-deny", "--variant", "no-pooling"], "are both a ztunnel"),
        (["check", "quickstart", "--mutant", "no-pooling"], "'no-pooling' is no mutant: say --variant no-pooling"),
        (["replay", "quickstart", "--variant", "ignores-deny"], "'ignores-deny' is no variant: say --mutant ignores"),
        (["fuzz", "quickstart", "--mutant", "ignores-deny", "--variant", "no-pooling"], "are both a ztunnel"),
        (["check", "quickstart", "--artifacts", "/dev/null"], "'/dev/null' is no folder that can be written"),
        (["check", "quickstart", "--record", "/dev/null/x"], "'/dev/null/x' is no folder that can be written"),
        (["replay", "quickstart", "--artifacts", "/dev/null"], "'/dev/null' is no folder that can be written"),
        (["fuzz", "quickstart", "--artifacts", "/dev/null"], "'/dev/null' is no folder that can be written"),
        (["fuzz", "quickstart", "--corpus", "/dev/null"], "'/dev/null' is no folder that can be written"),
        (["bundle", "quickstart", "--output", "/dev/null/x"], "'/dev/null/x' is no folder that can be written"),
        (["fuzz", "quickstart", "--failures", "0"], "0 is not in the range"),
        (["fmt", "quickstart"], "there is no file 'quickstart'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    command: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert list(tmp_path.iterdir()) == []


def test_fuzzing_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "hypothesis" or "meshlab.fuzz" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    result = CliRunner().invoke(main, ["fuzz", "quickstart"])
    assert (result.exit_code, "pip install 'meshlab[fuzz]'" in result.output) == (2, True), result.output


def test_validate_warns_of_a_service_that_nobody_stands_behind(tiny: Path) -> None:
    service = "{apiVersion: v1, kind: Service, metadata: {name: none, namespace: shop}, spec: {ports: [{port: 80}]}}"
    tiny.write_text(f"{tiny.read_text()}\n---\n{service}\n")
    result = _run("validate", tiny)
    assert result.exit_code == 0
    assert "nobody stands behind Service 'none.shop': it has no selector, and no Endpoints" in result.stderr
    (warning,) = json.loads(_run("validate", tiny, "--json").stdout)["warnings"]
    assert "none.shop" in warning["message"]
