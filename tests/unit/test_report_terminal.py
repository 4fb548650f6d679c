"""What a check looks like on a terminal, in a pipe, and in a narrow window."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from meshlab.model.report import Cell, CheckReport, Grade, Proof, Result
from meshlab.report import print_report

HELD = Cell(
    source="shop/client",
    to="shop/server",
    port=8080,
    family=4,
    expected="allow",
    oracle="allow",
    seen="allow",
    outcome="ok",
    rule="AuthorizationPolicy shop/callers allows: rule 1, source 1",
    result=Result.HELD,
)
FAILED = replace(
    HELD,
    source="shop/intruder",
    expected="deny",
    oracle="deny",
    rule="no ALLOW policy matches: shop/callers [rules[0].from[1]]",
    result=Result.FAILED,
    reason="call 7 is denied, and 231 bytes came back",
)
PROOF = Proof(
    id="encrypted:1",
    kind="encrypted",
    source="shop/client",
    to="shop/server",
    port=8080,
    family=4,
    grade=Grade.WIRE,
    packets=22,
    canaries=3,
    control="8 of 8 beacons in clear on v-client-ab12, fabric and v-server-cd34",
    result=Result.HELD,
)


def _report(*cells: Cell, proofs: tuple[Proof, ...] = (), artifacts: str | None = None) -> CheckReport:
    return CheckReport(
        topology="quickstart",
        implementations={"node-1": "reference", "node-2": "istio"},
        cells=cells,
        proofs=proofs,
        artifacts=artifacts,
        timings_ms={"build": 300, "ready": 400, "calls": 1100},
    )


def _text(report: CheckReport, width: int = 120) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, highlight=False, markup=False))
    return file.getvalue()


def _words(text: str) -> str:
    """The text without its line breaks and padding."""
    return " ".join(text.split())


def test_what_could_not_be_saved_is_said_and_changes_no_result() -> None:
    report = replace(_report(HELD), unsaved=("out/capture.pcapng: No space left on device",))
    assert "not saved: out/capture.pcapng: No space left on device" in _text(report)
    assert report.exit_code == 0


def test_the_last_line_says_how_it_went() -> None:
    last = _text(_report(HELD, FAILED, proofs=(PROOF,))).splitlines()[-1]
    assert last == "failed: 2 cells, 1 of them denied (1 failed); 1 proof; 1.5 s"


def test_the_first_line_says_what_ran_on_what() -> None:
    assert _text(_report(HELD)).splitlines()[0] == "quickstart  (node-1: reference, node-2: istio)"


def test_what_failed_comes_before_the_tables_with_rule_sight_capture_and_what_to_do() -> None:
    text = _text(_report(HELD, FAILED, artifacts="out/quickstart"))
    head = text[: text.index("from -> to")]
    assert "FAILED shop/intruder -> shop/server:8080 over IPv4: expected deny, seen allow (ok)" in head
    assert FAILED.rule in head
    assert FAILED.reason in head
    assert "out/quickstart" in head
    assert "next: " in head
    assert "shop/client" not in head


def test_a_row_that_contradicts_the_oracle_is_to_be_corrected() -> None:
    wrong = replace(HELD, expected="deny", result=Result.FAILED, reason="spec.expect says deny")
    assert "next: a row of spec.expect contradicts the policies" in _text(_report(wrong))


def test_a_report_without_captures_says_how_to_have_them() -> None:
    assert "--artifacts DIR" in _text(_report(FAILED))


def test_a_report_in_which_all_held_asks_for_nothing() -> None:
    text = _text(_report(HELD, proofs=(PROOF,)))
    assert "next:" not in text
    assert "captures" not in text


def test_a_proof_shows_its_grade_packets_canaries_and_control() -> None:
    text = _words(_text(_report(HELD, proofs=(PROOF,))))
    assert "held encrypted shop/client -> shop/server:8080 4 wire 22 3 1" in text
    assert f"1 {PROOF.control}" in text


def test_a_proof_without_a_control_says_so() -> None:
    unproven = replace(PROOF, control="", result=Result.CANNOT_TELL, reason="a beacon is missing on fabric")
    text = _words(_text(_report(HELD, proofs=(unproven,))))
    assert "CANNOT-TELL encrypted shop/client -> shop/server:8080 4 wire 22 3 none" in text
    assert "a beacon is missing on fabric" in text


def test_what_failed_comes_before_what_cannot_be_told() -> None:
    unclear = replace(HELD, seen="unclear", outcome="timeout", result=Result.CANNOT_TELL, reason="no answer")
    failed = replace(PROOF, result=Result.FAILED, reason="the canary is in packet 112")
    text = _text(_report(unclear, proofs=(failed,)))
    assert text.index("FAILED encrypted") < text.index("CANNOT-TELL shop/client")


def test_proofs_that_failed_alike_over_both_families_are_told_once() -> None:
    failed = replace(PROOF, result=Result.FAILED, reason="the canary was seen in clear")
    text = _text(_report(HELD, proofs=(failed, replace(failed, id="encrypted:2", family=6, packets=25))))
    assert text.count("the canary was seen in clear") == 1
    assert "FAILED encrypted shop/client -> shop/server:8080 over IPv4, IPv6: grade wire" in text
    assert "2 proofs (2 failed)" in text


def test_rows_that_failed_alike_are_told_once_with_every_pair() -> None:
    others = [replace(FAILED, source=f"shop/caller-{number}") for number in range(3)]
    head = _words(_text(_report(FAILED, *others)).split("from -> to")[0])
    assert "FAILED 4 pairs: expected deny, seen allow (ok)" in head
    assert head.count(FAILED.reason) == 1
    for row in (FAILED, *others):
        assert f"{row.source} -> shop/server:8080 (IPv4)" in head


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_sentence_is_cut_at_any_width(width: int) -> None:
    cells = (HELD, replace(FAILED, reason="because " * 40 + "of this"))
    text = _words(_text(_report(*cells, proofs=(PROOF,)), width))
    for sentence in (HELD.rule, cells[1].rule, cells[1].reason, PROOF.control):
        assert _words(sentence) in text
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_long_names_keep_the_tables_within_the_window(width: int) -> None:
    namespace = "a-namespace-with-a-long-name"
    long = replace(HELD, source=f"{namespace}/client-7d9c5b8f6c-0", to=f"server.{namespace}")
    assert max(map(len, _text(_report(long, HELD, proofs=(PROOF,)), width).splitlines())) <= width


def test_families_share_a_row_where_nothing_else_differs() -> None:
    text = _text(_report(HELD, replace(HELD, family=6)))
    assert "4 6" in text
    assert text.count("shop/client -> shop/server:8080") == 1
    assert "held: 2 cells" in text


def test_families_that_came_out_differently_have_rows_of_their_own() -> None:
    assert _text(_report(HELD, replace(HELD, family=6, outcome="reset"))).count("shop/client -> shop/server:8080") == 2


def test_what_the_audit_found_is_shown_first() -> None:
    report = replace(_report(HELD), audit=("node-1: ztunnel exited with status 101",))
    text = _text(report)
    assert "FAILED node-1: ztunnel exited with status 101" in text
    assert text.splitlines()[-1].startswith("failed: ")


def test_a_check_without_a_cell_says_why_there_is_nothing_to_run() -> None:
    assert _text(_report()).splitlines()[-1].startswith("nothing to run: no pod")
