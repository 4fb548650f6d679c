"""What a campaign looks like on a terminal: one block that is renewed, and tables at the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meshlab.fuzz.tally import FIELDS, Tally

_NAMED = 6


class Progress:
    """Shown on stderr while the campaign runs, wiped at the end; silent where stderr is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.__enter__()
        return self

    def __call__(self, tally: Tally) -> None:
        if self._live:
            self._live.update(Group(*map(Text, lines(tally))), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)


def lines(tally: Tally) -> list[str]:
    """The campaign in a few lines."""
    missing = tally.unseen
    named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
    found = [f"{failure.result.upper()} {failure.file}: {failure.text}" for failure in tally.failures]
    repeated = [f"{tally.repeated} more examples failed alike"] if tally.repeated else []
    doubts = [f"{tally.unproven} examples of which the capture could not tell"] if tally.unproven else []
    happened = ", ".join(f"{count:,} {word}" for word, count in sorted(tally.happened.items()))
    seen = f"{len(FIELDS) - len(missing)} of {len(FIELDS)} fields seen in an allowed and in a denied verdict"
    return [
        f"{tally.examples:,} examples, {tally.calls:,} calls, {tally.verdicts_per_s:,.0f} verdicts a second; "
        f"{tally.allow_share:.0%} allowed; {tally.identities:,} identities",
        f"what happened: {happened}" if happened else seen + (f"; not yet: {named}" if missing else ""),
        *found,
        *repeated,
        *doubts,
        *([tally.doing] if tally.doing else []),
    ]


def print_tally(tally: Tally, console: Console) -> None:
    """The report: every field, unless histories were drawn, then what was found."""
    if not tally.happened:
        _print_fields(tally, console)
    for line in lines(tally):
        console.print(line, soft_wrap=True)


def _print_fields(tally: Tally, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("field", "allowed", "denied"):
        table.add_column(title, justify="left" if title == "field" else "right", no_wrap=True)
    for name in FIELDS:
        table.add_row(name, f"{tally.fields[name, True]:,}", f"{tally.fields[name, False]:,}")
    console.print(table)
