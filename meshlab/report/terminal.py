"""A check's report for people: what went wrong first, then both tables, and one line that says it all.

Nothing is cut: what does not fit is wrapped, and sentences that many rows share (a rule, a control) are numbered in the
table and written out once below it, so that the tables fit 80 columns. Results are words, so that colour adds nothing
that is not there and `grep` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshlab.model.report import Cell, CheckReport, Proof, Result

_Row = TypeVar("_Row", Cell, Proof)
_STYLE = {Result.HELD: "green", Result.FAILED: "bold red", Result.CANNOT_TELL: "yellow", Result.CANNOT_RUN: "yellow"}


def print_report(report: CheckReport, console: Console) -> None:
    """Write all of ``report``; the last line is the summary."""
    proxies = ", ".join(f"{node}: {name}" for node, name in report.implementations.items())
    console.print(Text.assemble((report.topology, "bold"), f"  ({proxies})" if proxies else ""), soft_wrap=True)
    _print_troubles(report, console)
    if report.cells:
        _print_cells(report.cells, console)
    if report.proofs:
        _print_proofs(report.proofs, console)
    console.print(summary(report), soft_wrap=True)


def summary(report: CheckReport) -> Text:
    """One line: the result, how much was looked at, how long it took."""
    if report.exit_code == 5:
        return Text("nothing to run: no pod of the file declares a port that another pod could call", "yellow")
    denied = sum(cell.expected == "deny" for cell in report.cells)
    parts = [
        f"{_number(len(report.cells), 'cell')}, {denied} of them denied{_bad(report.cells)}",
        f"{_number(len(report.proofs), 'proof')}{_bad(report.proofs)}",
        *([_number(len(report.audit), "finding") + " of the audit"] if report.audit else []),
        f"{sum(report.timings_ms.values()) / 1000:.1f} s",
    ]
    return Text.assemble((report.result.value, _STYLE[report.result]), ": ", "; ".join(parts))


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bad(rows: Sequence[Cell | Proof]) -> str:
    """`` (3 failed, 1 cannot-tell)``; empty where all held."""
    counts = {result: sum(row.result is result for row in rows) for result in Result if result is not Result.HELD}
    words = [f"{number} {result.value}" for result, number in counts.items() if number]
    return f" ({', '.join(words)})" if words else ""


def _print_troubles(report: CheckReport, console: Console) -> None:
    for line in report.audit:
        _print_trouble(Result.FAILED, line, [], console)
    for result in (Result.FAILED, Result.CANNOT_RUN, Result.CANNOT_TELL):
        for cell, families in _families_joined(cell for cell in report.cells if cell.result is result):
            _print_row_trouble(cell, families, console)
        for proof, families in _families_joined(proof for proof in report.proofs if proof.result is result):
            _print_row_trouble(proof, families, console)
    if report.result is not Result.HELD:
        where = report.artifacts or "not saved; give --artifacts DIR to have them"
        console.print(f"\ncaptures, logs, rules and configuration: {where}", soft_wrap=True, markup=False)
        console.print(_next_step(report), soft_wrap=True, markup=False)


def _print_row_trouble(row: Cell | Proof, families: str, console: Console) -> None:
    if isinstance(row, Cell):
        head = f"{_pair(row)} over {families}: expected {row.expected}, seen {row.seen} ({row.outcome})"
        _print_trouble(row.result, head, [("rule", row.rule), ("reason", row.reason)], console)
    else:
        head = f"{row.kind} {_pair(row)} over {families}, grade {row.grade}"
        _print_trouble(row.result, head, [("reason", row.reason), ("control", row.control)], console)


def _print_trouble(result: Result, head: str, details: Iterable[tuple[str, str]], console: Console) -> None:
    console.print()
    console.print(Text.assemble((result.value.upper(), _STYLE[result]), " ", head))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=9, justify="right")
    grid.add_column(overflow="fold")
    for name, text in details:
        if text:
            grid.add_row(f"{name}:", Text(text))
    if grid.row_count:
        console.print(grid)


def _next_step(report: CheckReport) -> str:
    """What to do about the first trouble."""
    cells = [cell for cell in report.cells if cell.result is Result.FAILED]
    if any(cell.expected != cell.oracle for cell in cells):
        return "next: a row of spec.expect contradicts the policies; correct the row, or the policy that its rule names"
    if cells:
        return "next: open the destination's capture and the node proxies' logs there, at the pair named above"
    if report.audit:
        return "next: read the program's log there, up to its end"
    if report.result is Result.CANNOT_TELL:
        return "next: see each reason; nothing is proven either way until its control is found"
    return "next: open the capture named by the pair there; the reason says which packets to look for"


def _print_cells(cells: tuple[Cell, ...], console: Console) -> None:
    rules = _Legend()
    table = _table("", "from -> to", "IP", "expected", "oracle", "seen", "outcome", "rule")
    for cell, families in _families_joined(cells):
        verdicts = (cell.expected, cell.oracle, cell.seen, cell.outcome, rules.number(cell.rule))
        parts = (_pair(cell), families.replace("IPv", "").replace(",", ""), *verdicts)
        table.add_row(_word(cell.result), *(Text(part) for part in parts))
    console.print()
    console.print(table)
    rules.print("rules", console)


def _print_proofs(proofs: tuple[Proof, ...], console: Console) -> None:
    controls = _Legend()
    table = _table("", "proof", "from -> to", "IP", "grade", "packets", "canaries", "control")
    for proof in proofs:
        where = (proof.kind, _pair(proof), str(proof.family), proof.grade.value)
        counts = (str(proof.packets), str(proof.canaries), controls.number(proof.control))
        table.add_row(_word(proof.result), *(Text(part) for part in (*where, *counts)))
    console.print()
    console.print(table)
    controls.print("controls", console)


def _families_joined(rows: Iterable[_Row]) -> list[tuple[_Row, str]]:
    """Each row once for both families, where nothing but the family and what was counted differs."""
    joined: dict[_Row, list[int]] = {}
    for row in rows:
        same = replace(row, family=4) if isinstance(row, Cell) else replace(row, family=4, id="", packets=0, canaries=0)
        joined.setdefault(same, []).append(row.family)
    return [(row, ", ".join(f"IPv{family}" for family in sorted(set(families)))) for row, families in joined.items()]


class _Legend:
    """Numbers for sentences, in the order in which they were first met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, sentence: str) -> str:
        return str(self._numbers.setdefault(sentence, len(self._numbers) + 1)) if sentence else "none"

    def print(self, title: str, console: Console) -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(min_width=4, justify="right")
        grid.add_column(overflow="fold")
        for sentence, number in self._numbers.items():
            grid.add_row(str(number), Text(sentence))
        if self._numbers:
            console.print(title)
            console.print(grid)
            console.print()


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header in ("packets", "canaries") else "left")
    return table


def _word(result: Result) -> Text:
    return Text(result.value if result is Result.HELD else result.value.upper(), _STYLE[result])


def _pair(row: Cell | Proof) -> str:
    return f"{row.source} -> {row.to}:{row.port}"
