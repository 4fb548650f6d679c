"""What went wrong, before any table: what was expected and seen, by which rule, where the capture is, what to do next.

Rows that went wrong in the same way are told once, with every pair that they are about: a proxy that does not run fails
a hundred cells, and has one story.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshlab.model.report import Cell, CheckReport, Proof, Result

STYLE = {Result.HELD: "green", Result.FAILED: "bold red", Result.CANNOT_TELL: "yellow", Result.CANNOT_RUN: "yellow"}
_Families = list[int]


@dataclass(frozen=True, slots=True)
class _Story:
    """What rows have in common that went wrong in the same way."""

    result: Result
    kind: str
    """Of a proof; empty for a cell."""
    what: str
    details: tuple[tuple[str, str], ...]


def print_troubles(report: CheckReport, console: Console) -> None:
    """Everything that did not hold, failures first; nothing where all held."""
    for line in report.audit:
        _print(_Story(Result.FAILED, "", line, ()), {}, console)
    stories = _stories(report)
    for result in (Result.FAILED, Result.CANNOT_RUN, Result.CANNOT_TELL):
        for story, pairs in stories.items():
            if story.result is result:
                _print(story, pairs, console)
        for row in report.steps:
            if row.result is result:
                _print(_Story(result, "", f"step {row.place}, {row.step}: {row.reason}", ()), {}, console)
    if report.result is not Result.HELD:
        where = report.artifacts or "not saved; give --artifacts DIR to have them"
        console.print(f"\ncaptures, logs, rules and configuration: {where}", soft_wrap=True, markup=False)
        console.print(f"next: {_next_step(report)}", soft_wrap=True, markup=False)


def pair(row: Cell | Proof) -> str:
    """How a row names its two ends, and what was asked for where a waypoint reads it."""
    asked = f" {row.request}" if isinstance(row, Cell) and row.request else ""
    return f"{row.source} -> {row.to}:{row.port}{asked}"


def _stories(report: CheckReport) -> dict[_Story, dict[str, _Families]]:
    """Each story with its pairs, and the families of each pair."""
    stories: dict[_Story, dict[str, _Families]] = {}
    for row in _not_held(report):
        families = stories.setdefault(_story(row), {}).setdefault(pair(row), [])
        if row.family not in families:
            families.append(row.family)
    return stories


def _not_held(report: CheckReport) -> Iterator[Cell | Proof]:
    yield from (cell for cell in report.cells if cell.result is not Result.HELD)
    yield from (proof for proof in report.proofs if proof.result is not Result.HELD)


def _story(row: Cell | Proof) -> _Story:
    if isinstance(row, Cell):
        what = f"expected {row.expected}, seen {row.seen} ({row.response or row.outcome})"
        return _Story(row.result, "", what, (("rule", row.rule), ("reason", row.reason)))
    return _Story(row.result, row.kind, f"grade {row.grade}", (("reason", row.reason), ("control", row.control)))


def _print(story: _Story, pairs: dict[str, _Families], console: Console) -> None:
    over = {name: ", ".join(f"IPv{family}" for family in sorted(families)) for name, families in pairs.items()}
    match list(over.items()):
        case []:
            subject = ""
        case [(name, families)]:
            subject = f"{name} over {families}: "
        case several:
            subject = f"{len(several)} pairs: "
    listed = "; ".join(f"{name} ({families})" for name, families in over.items()) if len(over) > 1 else ""
    kind = f"{story.kind} " if story.kind else ""
    console.print()
    console.print(Text.assemble((story.result.value.upper(), STYLE[story.result]), f" {kind}{subject}{story.what}"))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=9, justify="right")
    grid.add_column(overflow="fold")
    for name, text in (*story.details, ("pairs", listed)):
        if text:
            grid.add_row(f"{name}:", Text(text))
    if grid.row_count:
        console.print(grid)


def _next_step(report: CheckReport) -> str:
    """What to do about the first trouble."""
    cells = [cell for cell in report.cells if cell.result is Result.FAILED]
    if any(cell.expected != cell.oracle for cell in cells):
        return "a row of spec.expect contradicts the policies; correct the row, or the policy that its rule names"
    if any(cell.request for cell in cells):
        return "look at the rule and the request above, and at the waypoint's log there"
    if cells:
        return "open the destination's capture and the node proxies' logs there, at the pair named above"
    if report.audit:
        return "read the program's log there, up to its end"
    if report.result is Result.FAILED:
        return "open the capture named by the pair there; the reason says which packets to look for"
    return "see each reason; nothing is proven either way until its control is found"
