"""How commands print. What was asked for goes to stdout, all else to stderr, and no write that fails ends a command."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from meshlab.model.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 120


def say(text: str, end: str = "\n") -> None:
    """Write to stderr; where that takes nothing, nobody is told."""
    with suppress(OSError):
        click.echo(f"{text}{end}", nl=False, err=True)


def write(text: str) -> None:
    """Write to stdout; on a full disk to stderr, and say so. A reader who is gone (``| head``) wants no more of it."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        _to_nowhere(sys.stdout.fileno())
    except OSError as error:
        _to_nowhere(sys.stdout.fileno())
        say(f"stdout cannot be written ({error.strerror}); this was to go there:\n{text}", end="")


class _Page(io.StringIO):
    """A buffer for text that goes to stdout later, with the colours stdout would show."""

    def isatty(self) -> bool:
        return sys.stdout.isatty()


def write_tables(show: Callable[[Console], None]) -> None:
    """Write tables to stdout: as wide as the terminal; wide enough for most rows where it is a pipe or a file."""
    from rich.console import Console

    page = _Page()
    console = Console(file=page, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    show(console)
    write(page.getvalue())


def write_json(value: dict[str, Any]) -> None:
    """Write one JSON object to stdout, with the version of its schema."""
    write(json.dumps({"schemaVersion": SCHEMA_VERSION, **value}, indent=2) + "\n")


class Progress:
    """Says on one line of a terminal what the lab is doing, and wipes it at the end; silent anywhere else."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, step: str) -> None:
        if self._shown:
            say(f"\r\x1b[K{step}", end="")

    def __exit__(self, *_: object) -> None:
        if self._shown:
            say("\r\x1b[K", end="")


# --- streams that are closed, full or gone ----------------------------------------------------------------------------


def open_closed_streams() -> None:
    """Give a command that was started without stdin, stdout or stderr an empty one: nothing else may get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def lose_what_cannot_be_written() -> None:
    """Python ends 120 where it cannot write what a stream's buffer still has."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _to_nowhere(stream.fileno())


def _to_nowhere(number: int) -> None:
    """Lose what is still buffered for a descriptor, so that writing it does not fail once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
