"""A check's report for people: what went wrong first, then both tables, and one line that says it all.

Nothing is cut: what does not fit is wrapped, and sentences that many rows share (a rule, a control) are numbered in the
table and written out once below it, so that the tables fit 80 columns. Results are words, so that colour adds nothing
that is not there and `grep` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshlab.model.report import Cell, CheckReport, Proof, Result, StepRow
from meshlab.report.troubles import STYLE, pair, print_troubles


def print_report(report: CheckReport, console: Console) -> None:
    """Write all of ``report``; the last line is the summary."""
    running = (*report.implementations.items(), *report.waypoints.items())
    proxies = ", ".join(f"{place}: {name}" for place, name in running)
    console.print(Text.assemble((report.topology, "bold"), f"  ({proxies})" if proxies else ""), soft_wrap=True)
    print_troubles(report, console)
    if report.cells:
        _print_cells(report.cells, console)
    if report.proofs:
        _print_proofs(report.proofs, console)
    if report.steps:
        _print_steps(report.steps, console)
    for note in report.notes:
        console.print(Text.assemble(("note: ", "bold"), note), soft_wrap=True)
    for missing in report.unsaved:
        console.print(f"not saved: {missing}", soft_wrap=True)
    console.print(summary(report), soft_wrap=True)


def summary(report: CheckReport) -> Text:
    """One line: the result, how much was looked at, how long it took."""
    if report.exit_code == 5:
        return Text("nothing to run: no pod of the file declares a port that another pod could call", "yellow")
    denied = sum(cell.expected == "deny" for cell in report.cells)
    parts = [
        f"{_number(len(report.cells), 'cell')}, {denied} of them denied{_bad(report.cells)}",
        f"{_number(len(report.proofs), 'proof')}{_bad(report.proofs)}",
        *([f"{_number(len(report.steps), 'step')}{_bad(report.steps)}"] if report.steps else []),
        *([_number(len(report.audit), "finding") + " of the audit"] if report.audit else []),
        f"{report.seconds:.1f} s",
    ]
    return Text.assemble((report.result.value, STYLE[report.result]), ": ", "; ".join(parts))


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bad(rows: Sequence[Cell | Proof | StepRow]) -> str:
    """`` (3 failed, 1 cannot-tell)``; empty where all held."""
    counts = {result: sum(row.result is result for row in rows) for result in Result if result is not Result.HELD}
    words = [f"{number} {result.value}" for result, number in counts.items() if number]
    return f" ({', '.join(words)})" if words else ""


def _print_cells(cells: tuple[Cell, ...], console: Console) -> None:
    rules = _Legend()
    table = _table("", "from -> to", "IP", "expected", "oracle", "seen", "outcome", "rule")
    for cell, families in _families_joined(cells):
        verdicts = (cell.expected, cell.oracle, cell.seen, cell.response or cell.outcome, rules.number(cell.rule))
        parts = (pair(cell), families, *verdicts)
        table.add_row(_word(cell.result), *(Text(part) for part in parts))
    console.print()
    console.print(table)
    rules.print("rules", console)


def _print_proofs(proofs: tuple[Proof, ...], console: Console) -> None:
    controls = _Legend()
    table = _table("", "proof", "from -> to", "IP", "grade", "packets", "canaries", "control")
    for proof in proofs:
        where = (proof.kind, pair(proof), str(proof.family), proof.grade.value)
        counts = (str(proof.packets), str(proof.canaries), controls.number(proof.control))
        table.add_row(_word(proof.result), *(Text(part) for part in (*where, *counts)))
    console.print()
    console.print(table)
    controls.print("controls", console)


def _print_steps(steps: tuple[StepRow, ...], console: Console) -> None:
    table = _table("", "", "step", "numbers")
    for row in steps:
        numbers = ", ".join(f"{name} {number}" for name, number in row.numbers.items())
        table.add_row(_word(row.result), *(Text(part) for part in (str(row.place), row.step, numbers)))
    console.print()
    console.print(table)
    console.print()


def _families_joined(cells: Iterable[Cell]) -> list[tuple[Cell, str]]:
    """Each cell once for both families, where nothing but the family differs, with the families it stands for."""
    joined: dict[Cell, list[int]] = {}
    for cell in cells:
        joined.setdefault(replace(cell, family=4), []).append(cell.family)
    return [(cell, " ".join(map(str, families))) for cell, families in joined.items()]


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
    return Text(result.value if result is Result.HELD else result.value.upper(), STYLE[result])
