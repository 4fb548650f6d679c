"""What a replay looks like on a terminal."""

from __future__ import annotations

from rich.console import Console

from meshlab.play.replay import Played


def print_played(played: Played, console: Console) -> None:
    """The word, how often, on what, and why."""
    times = f": {played.failed} of {played.runs} runs failed" if played.runs else ""
    on = f" on {', '.join(played.implementations)}" if played.implementations else ""
    console.print(f"{played.word}{times}{on}", soft_wrap=True)
    for reason in played.reasons:
        for line in reason.splitlines():
            console.print(f"  {line}", soft_wrap=True)
    if played.artifacts:
        console.print(f"captures, logs, rules and configuration: {played.artifacts}", soft_wrap=True)
    for missing in played.unsaved:
        console.print(f"not saved: {missing}", soft_wrap=True)
