"""The group of all commands. It turns errors into exit codes and mends the streams that a command was started with."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import Any

import click

from meshlab.cli.output import lose_what_cannot_be_written, open_closed_streams, say
from meshlab.errors import (
    CannotTellError,
    HostNotReadyError,
    KernelRefusedError,
    MeshlabError,
    TopologyError,
    UsageError,
)

_EXIT_CODES: tuple[tuple[type[MeshlabError], int], ...] = (
    (TopologyError, 2),
    (UsageError, 2),
    (HostNotReadyError, 3),
    (KernelRefusedError, 3),
    (CannotTellError, 4),
)


class Commands(click.Group):
    """Errors become exit codes here, for every command."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_closed_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            say(f"this machine does not let it go on: {error}")
            sys.exit(3)
        finally:
            lose_what_cannot_be_written()
            # registered last, so that it runs first: another Ctrl-C must not interrupt what Python does at its exit
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _require_working_folder()
            return super().invoke(ctx)
        except MeshlabError as error:
            say(str(error))
            ctx.exit(next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1))
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} There are {', '.join(self.commands)}.", ctx) from None


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the folder that this is run in has been removed: `cd` into one that is there") from None
