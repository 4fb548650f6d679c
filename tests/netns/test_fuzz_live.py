"""Fuzzing a live lab: what is right is left alone, what is broken is found, made small, and played again."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from meshlab.cli import main
from meshlab.errors import CannotTellError, ProofFailedError
from meshlab.fuzz.campaign import Campaign, Limits
from meshlab.fuzz.plan import Plan
from meshlab.fuzz.properties import (
    identity_is_owned,
    never_the_old_policy,
    nothing_in_clear,
    verdict_equals_oracle,
)
from meshlab.fuzz.reporter import Reporter
from meshlab.fuzz.tally import Tally
from meshlab.lab import Lab
from meshlab.lab.sources import read
from meshlab.model import CallStep, Mesh
from meshlab.play.bench import Bench, with_outsider
from meshlab.play.replay import steps_hold
from meshlab.strategies import policies
from meshlab.topology import dump, load

if TYPE_CHECKING:
    LabFactory = Callable[..., AbstractContextManager[Lab]]

DEADLINE_S = 60.0
MESH = read("quickstart").topology.mesh
_few = settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _fuzz(*args: str) -> tuple[int, dict[str, Any]]:
    result = _run("fuzz", "quickstart", "--workers", "1", "--json", *args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


# -- campaigns


def test_the_reference_gets_every_verdict_right() -> None:
    code, report = _fuzz("--examples", "30", "--seed", "1")
    assert (code, report["failures"], report["examples"]) == (0, [], 30)
    assert 0.3 <= report["allow_share"] <= 0.7
    assert report["calls"] > 30 * 16
    assert not Path("meshlab-artifacts").exists()


def test_a_broken_proxy_is_found_and_its_small_file_replays() -> None:
    code, report = _fuzz("--mutant", "ignores-deny", "--seed", "1", "--for", "30s", "--failures", "1")
    assert code == 1
    (failure,) = report["failures"]
    assert failure["result"] == "failed"
    topology = load(Path(failure["file"]).read_text(), failure["file"])
    assert len(topology.mesh.pods) <= 3
    assert len(topology.steps) <= 4
    assert topology.ztunnel == "reference"
    assert sum(isinstance(step, CallStep) for step in topology.steps) >= 1
    broken, right = _run("replay", failure["file"], "--mutant", "ignores-deny"), _run("replay", failure["file"])
    assert (broken.exit_code, broken.output.split(":")[0]) == (1, "FAILED")
    assert (right.exit_code, right.output.split(":")[0]) == (0, "FIXED")


@pytest.mark.parametrize(
    ("mutant", "kept"),
    [
        pytest.param("verdict-cached-by-4-tuple", "replace:", id="the policies before"),
        pytest.param("one-verdict-for-a-tunnel", "call:", id="the calls before"),
        pytest.param("calls-services-in-clear", "server.shop:80", id="the service"),
    ],
)
def test_what_a_failure_hangs_on_is_told_with_it(mutant: str, kept: str) -> None:
    _, report = _fuzz("--mutant", mutant, "--seed", "1", "--for", "60s", "--failures", "1")
    (failure,) = report["failures"]
    text = Path(failure["file"]).read_text()
    topology = load(text, failure["file"])
    assert kept in text
    assert (len(topology.mesh.pods) <= 3, len(topology.steps) <= 4) == (True, True), text
    assert _run("replay", failure["file"], "--mutant", mutant).exit_code == 1
    assert _run("replay", failure["file"]).exit_code == 0


def test_a_proxy_that_fails_at_times_is_called_flaky_with_its_rate() -> None:
    mutant = "sometimes-ignores-deny"
    code, report = _fuzz("--mutant", mutant, "--seed", "2", "--for", "30s", "--failures", "1")
    (failure,) = report["failures"]
    assert (code, failure["result"]) == (4, "flaky")
    assert " of 20 times" in Path(failure["file"]).read_text()
    again = _run("replay", failure["file"], "--mutant", mutant, "--runs", "60")
    assert (again.exit_code, again.output.split(":")[0]) == (4, "FLAKY")


def test_the_same_seed_gives_the_same_examples_and_verdicts() -> None:
    def counted(seed: str) -> dict[str, Any]:
        report = _fuzz("--examples", "6", "--seed", seed, "--corpus", f"corpus-{os.urandom(4).hex()}")[1]
        return {key: value for key, value in report.items() if key != "verdicts_per_s"}

    first = counted("7")
    assert counted("7") == first
    assert counted("8") != first


def test_a_failure_is_kept_in_the_corpus_and_tried_first_the_next_time() -> None:
    mutant = ("--mutant", "ignores-ipv6-cidrs", "--failures", "1", "--corpus", "kept")
    _, first = _fuzz(*mutant, "--seed", "3", "--for", "60s")
    assert first["failures"]
    assert any(Path("kept").rglob("*"))
    _, second = _fuzz(*mutant, "--seed", "99", "--for", "60s")
    assert second["failures"]
    assert second["examples"] <= 3


def test_what_was_not_tried_is_not_forgotten() -> None:
    corpus = ("--corpus", "kept")
    _fuzz("--mutant", "ignores-ipv6-cidrs", "--failures", "1", *corpus, "--seed", "3", "--for", "60s")
    kept = {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()}
    _fuzz(*corpus, "--examples", "1")  # the topology itself, and that was it
    assert {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()} == kept
    _fuzz(*corpus, "--examples", "9")
    assert not any(path.is_file() for path in Path("kept").rglob("*")), "it does not fail any more"


def test_a_port_that_speaks_first_is_listened_to() -> None:
    text = dump(read("two-nodes").topology).replace(
        "ports: [8080]", "ports: [{containerPort: 8080, mode: server-first}]"
    )
    assert "server-first" in text
    steps = """  steps:
    - {call: {from: shop/client, to: "shop/server:8080", family: 4}, expect: allow}
"""
    Path("first.yaml").write_text(text.replace("  expect:", steps + "  expect:"))
    fuzzed = _run("fuzz", "first.yaml", "--workers", "1", "--examples", "5", "--seed", "1", "--json")
    assert json.loads(fuzzed.stdout)["failures"] == []
    played = _run("replay", "first.yaml", "--runs", "2")
    assert played.exit_code == 0, played.output
    bundled = _run("bundle", "first.yaml", "--output", "first")
    assert bundled.exit_code == 0, bundled.output


def test_a_lab_that_dies_ends_its_example_with_evidence_and_a_fresh_one_goes_on(tmp_path: Path) -> None:
    plan = Plan(
        source=read("quickstart"),
        seed=1,
        corpus=None,
        artifacts=tmp_path / "out",
        limits=Limits(examples=6, failures=5),
    )
    with Bench(plan.source) as bench:

        def kill_a_proxy(tally: Tally) -> None:
            if tally.examples == 3:
                lab = bench.lab
                lab.sandbox.kill(lab.site.programs.by_name["ztunnel@node-2"].pid)

        campaign = Campaign(
            bench,
            seed=1,
            corpus=None,
            limits=plan.limits,
            report=Reporter(bench, plan, time.monotonic()),
            progress=kill_a_proxy,
        )
        tally = campaign.run()
    assert (tally.examples, len(tally.failures)) == (6, 1)
    assert "ztunnel@node-2 ended: killed by SIGKILL" in tally.failures[0].text
    (evidence,) = (tmp_path / "out").glob("quickstart-lost-*/reason.txt")
    assert (evidence.parent / "logs").is_dir()


IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born ignoring it
from meshlab.cli import main
main()
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_with_the_report_and_130(workers: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, "fuzz", "quickstart", "--json"]
    process = subprocess.Popen(
        [*command, "--workers", workers, "--for", "60s"], stdout=subprocess.PIPE, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        assert "examples" in _read_until(ours, "examples")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that is in its foreground
        rest = _read_until(ours, "no such text")
        out, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 130
    assert json.loads(out)["examples"] > 0
    assert "Traceback" not in rest


def _read_until(terminal: int, text: str) -> str:
    """What the terminal shows up to ``text``, or up to the end of the command where it never comes."""
    shown, deadline = "", time.monotonic() + DEADLINE_S
    while text not in shown and select.select([terminal], [], [], deadline - time.monotonic())[0]:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # EIO: the last process that had the terminal is gone
            break
    return shown


# -- files


STALE = """\
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: by-hand}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1}
    shop/server: {node: node-2, ports: [8080]}
  expect:
    - {from: shop/client, to: "shop/server:8080", verdict: VERDICT}
  steps:
    - apply:
        - apiVersion: security.istio.io/v1
          kind: AuthorizationPolicy
          metadata: {name: nobody, namespace: shop}
    - {call: {from: shop/client, to: "shop/server:8080", kind: tcp}, expect: deny}
    - replace: []
    - {call: {from: shop/client, to: "shop/server:8080"}, expect: allow}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""


def test_a_file_written_by_hand_is_played_with_its_rows_and_steps() -> None:
    Path("right.yaml").write_text(STALE.replace("VERDICT", "allow"))
    Path("wrong.yaml").write_text(STALE.replace("VERDICT", "deny"))
    right, wrong = _run("replay", "right.yaml", "--runs", "3"), _run("replay", "wrong.yaml", "--runs", "3", "--json")
    assert (right.exit_code, right.output) == (0, "FIXED: 0 of 3 runs failed on reference\n")
    told = json.loads(wrong.stdout)
    assert (wrong.exit_code, told["result"], told["failed"]) == (1, "FAILED", 3)
    assert "shop/client -> shop/server:8080" in Path(told["artifacts"], "calls.txt").read_text()
    assert Path(told["artifacts"], "capture.pcapng").stat().st_size > 1000
    assert "should be refused: ok; the policies allow it (no policy applies)" in told["reasons"][0]


def test_a_shipped_topology_holds() -> None:
    result = _run("replay", "quickstart", "--runs", "2", "--artifacts", "kept")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "captures, logs, rules and configuration: kept"
    assert Path("kept", "capture.pcapng").exists()


def test_without_a_proxy_a_file_cannot_run() -> None:
    Path("right.yaml").write_text(STALE.replace("VERDICT", "allow"))
    result = _run("replay", "right.yaml", "--ztunnel", "none")
    assert (result.exit_code, result.output.splitlines()[0]) == (3, "CANNOT-RUN"), result.output


def test_a_test_made_from_a_file_fails_as_the_file_does() -> None:
    Path("bug.meshlab.yaml").write_text(STALE.replace("VERDICT", "allow"))
    assert _run("repro", "--pytest", "bug.meshlab.yaml").exit_code == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bug.py"]
    right = subprocess.run(command, capture_output=True, text=True, check=False)
    broken = subprocess.run([*command, "--meshlab-mutant", "ignores-deny"], capture_output=True, text=True, check=False)
    never = [*command, "--meshlab-mutant", "leaks-plaintext"]
    leaking = subprocess.run(never, capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stdout
    assert broken.returncode == 0, "an ALLOW without rules is no DENY"
    assert leaking.returncode == 1
    assert "in clear" in leaking.stdout


def test_a_test_made_from_a_file_cannot_tell_where_the_capture_sees_nothing(lab_factory: LabFactory) -> None:
    with (
        lab_factory(STALE.replace("VERDICT", "allow"), mutant="capture-loses-packets") as lab,
        pytest.raises(CannotTellError, match="in run 1 of 1: "),
    ):
        steps_hold(lab)


# -- for tests of one's own


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory("quickstart") as lab:
        yield lab


@pytest.mark.meshlab_dataplane
def test_properties_hold_of_a_lab_whatever_its_policies(shared: Lab) -> None:
    @_few
    @given(policies(MESH))
    def any_policies(mesh: Mesh) -> None:
        with shared.capture() as capture:
            calls = never_the_old_policy(shared, mesh)
            calls += verdict_equals_oracle(shared, most=8)
        nothing_in_clear(capture, calls)

    any_policies()
    assert identity_is_owned(shared) > 0


@pytest.mark.meshlab_dataplane
def test_that_nothing_is_in_clear_cannot_be_told_of_calls_out_of_the_mesh(shared: Lab) -> None:
    with shared.capture() as capture:
        call = shared.pod("shop/client").tcp(f"{shared.pod('plain/archive').pod.ipv4}:8080")
    with pytest.raises(CannotTellError, match="none of 1 calls is between enrolled pods"):
        nothing_in_clear(capture, [call])


@pytest.mark.parametrize(
    ("mutant", "prop"),
    [("ignores-deny", verdict_equals_oracle), ("identity-by-source-ip", verdict_equals_oracle)],
)
def test_a_property_names_the_call_and_the_deciding_rule(
    lab_factory: LabFactory, mutant: str, prop: Callable[[Lab], object]
) -> None:
    with (
        lab_factory("quickstart", mutant=mutant, ztunnel="reference") as lab,
        pytest.raises(ProofFailedError) as failed,
    ):
        prop(lab)
    assert "the policies deny it (" in str(failed.value)


@pytest.mark.meshlab_dataplane
def test_a_lab_per_example_works_under_given(lab_factory: LabFactory) -> None:
    opened: list[int] = []

    @settings(_few, max_examples=2)
    @given(policies(MESH))
    def any_policies(mesh: Mesh) -> None:
        topology = replace(read("quickstart").topology, mesh=mesh, expect=())
        with lab_factory(dump(topology)) as lab:
            opened.append(len(verdict_equals_oracle(lab)))

    any_policies()
    assert opened
    assert all(opened)


@pytest.mark.meshlab_dataplane
def test_a_lab_is_driven_by_a_state_machine(lab_factory: LabFactory) -> None:
    class Policies(RuleBasedStateMachine):
        """One lab for all runs; each begins without policies."""

        lab: ClassVar[Lab]
        replaced: ClassVar[int] = 0

        @initialize()
        def no_policies(self) -> None:
            self.lab.replace(Mesh())

        @rule(mesh=policies(MESH))
        def replace_them(self, mesh: Mesh) -> None:
            never_the_old_policy(self.lab, mesh, most=8)
            Policies.replaced += 1

        @rule()
        def call_again(self) -> None:
            verdict_equals_oracle(self.lab, most=8)

    with lab_factory("quickstart") as lab:
        Policies.lab = lab
        run_state_machine_as_test(Policies, settings=settings(_few, max_examples=4, stateful_step_count=6))
    assert Policies.replaced > 0


def test_a_topology_without_an_outsider_gets_one_and_no_address_changes() -> None:
    topology = read("two-nodes").topology
    more = with_outsider(topology)
    assert more.mesh.pods[:-1] == topology.mesh.pods
    assert not more.mesh.is_enrolled(more.mesh.pods[-1])
    assert load(dump(more), "more").mesh.pods == more.mesh.pods
    assert with_outsider(more) == more
