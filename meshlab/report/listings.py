"""The other commands' answers for people: what a host lacks, what can be plugged in, what is in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshlab.implementations import Choice

if TYPE_CHECKING:  # only `doctor` needs the kernel's room
    from meshlab.kernel.probe import Finding


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """What mends this machine first, then everything that was tried."""
    missing = [finding for finding in findings if not finding.ok]
    for finding in missing:
        console.print(Text.assemble((f"{finding.name}: ", "bold red"), finding.fix or finding.detail), soft_wrap=True)
    if missing:
        console.print()
    grid = _grid(columns=3)
    for finding in findings:
        word = Text("ok", "green") if finding.ok else Text("missing", "bold red")
        grid.add_row(word, Text(finding.name), Text(finding.detail))
    console.print(grid)
    console.print("\nno lab can run here yet: mend the first line first" if missing else "\na lab can run here")


def print_implementations(
    choices: Iterable[Choice], mutants: Mapping[str, str], variants: Mapping[str, str], console: Console
) -> None:
    """Everything that ``--ztunnel``, ``--mutant`` and ``--variant`` take; the mappings say what each one does."""
    console.print("node proxies: --ztunnel NAME, or [NAME=]PATH of a ztunnel")
    console.print(_sentences({choice.name: _describe(choice) for choice in choices}))
    console.print("\nmutants: --mutant NAME, broken on purpose, so a check must notice")
    console.print(_sentences(mutants))
    console.print("\nlegal variants: --variant NAME, unusual and right, so a check must hold")
    console.print(_sentences(variants))


def _describe(choice: Choice) -> str:
    if choice.proxy is None:
        return "starts nothing, so that pods of the mesh stay pending"
    implementation = choice.describe()
    return f"{implementation.version}: {', '.join(sorted(implementation.features))}".removeprefix(": ")


def _sentences(entries: Mapping[str, str]) -> Table:
    grid = _grid(columns=2)
    for name, sentence in entries.items():
        grid.add_row(Text(name), Text(sentence))
    return grid


def _grid(columns: int) -> Table:
    grid = Table(show_header=False, box=None, padding=(0, 1))
    for _ in range(columns):
        grid.add_column(overflow="fold")
    return grid
