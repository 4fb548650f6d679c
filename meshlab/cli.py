"""The command ``meshlab``. It reads arguments, calls the lab, prints, and picks the exit code; nothing is decided here.

    0 all held  1 a check failed  2 bad input  3 cannot run here  4 cannot tell  5 nothing to run  130 interrupted

What was asked for goes to stdout, everything else to stderr. Heavy modules are imported by the command that needs them.
However the printing ends (a reader that is gone, a full disk), the exit code is the command's own.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshlab.errors import (
    CannotTellError,
    HostNotReadyError,
    Issue,
    KernelRefusedError,
    MeshlabError,
    TopologyError,
    UsageError,
)
from meshlab.model.report import SCHEMA_VERSION
from meshlab.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from meshlab.implementations import Choice
    from meshlab.model import Topology

_EXIT_CODES: tuple[tuple[type[MeshlabError], int], ...] = (
    (TopologyError, 2),
    (UsageError, 2),
    (HostNotReadyError, 3),
    (KernelRefusedError, 3),
    (CannotTellError, 4),
)
_PIPED_WIDTH = 120


class _Commands(click.Group):
    """Errors become exit codes here, for every command."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _open_closed_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _say(f"this machine does not let it go on: {error}")
            sys.exit(3)
        finally:
            _lose_what_cannot_be_written()
            # registered last, so that it runs first: another Ctrl-C must not interrupt what Python does at its exit
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _require_working_folder()
            return super().invoke(ctx)
        except MeshlabError as error:
            _say(str(error))
            ctx.exit(next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1))
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} There are {', '.join(self.commands)}.", ctx) from None


_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
_TOPOLOGY = click.argument("topology")


def _by_node(given: tuple[str, ...]) -> dict[str, str]:
    """``NODE=WHAT``: the node stands before the first ``=``."""
    by_node = {}
    for text in given:
        node, equals, what = text.partition("=")
        if not (node and equals and what):
            raise UsageError(f"--ztunnel-at '{text}': write NODE=NAME, such as node-1=istio=./ztunnel")
        by_node[node] = what
    return by_node


_ZTUNNEL = click.option("--ztunnel", metavar="NAME|[NAME=]PATH", help="Node proxy to use: see `meshlab impls`.")
_ZTUNNEL_AT = click.option(
    "--ztunnel-at",
    metavar="NODE=NAME|NODE=[NAME=]PATH",
    multiple=True,
    callback=lambda _context, _option, given: _by_node(given),
    help="Node proxy of one node; repeat it for others.",
)
_MUTANT = click.option("--mutant", metavar="NAME", help="Break one part on purpose, to see that it is noticed.")
_VARIANT = click.option("--variant", metavar="NAME", help="Use an unusual, but right, part.")
_ARTIFACTS = click.option(
    "--artifacts",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep captures and logs in DIR, also if nothing was wrong.",
)
_READY_TIMEOUT = click.option(
    "--ready-timeout",
    "ready_timeout_s",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that pods may take to enrol. [default: the topology's, which is 10]",
)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A TOPOLOGY is a file, or the name of one that comes with meshlab. Begin with: meshlab check quickstart",
)
def main() -> None:
    """A lab that builds a service mesh from network namespaces and proves what it does from packets."""


@main.command(epilog="Example: meshlab check quickstart --ztunnel istio=./ztunnel --artifacts out")
@_TOPOLOGY
@_ZTUNNEL
@_ZTUNNEL_AT
@_MUTANT
@_VARIANT
@_ARTIFACTS
@click.option(
    "--record", metavar="DIR", type=click.Path(path_type=Path), help="Write each proxy's conversation to DIR."
)
@_READY_TIMEOUT
@_AS_JSON
def check(
    topology: str,
    ztunnel: str | None,
    ztunnel_at: dict[str, str],
    mutant: str | None,
    variant: str | None,
    artifacts: Path | None,
    record: Path | None,
    ready_timeout_s: float | None,
    as_json: bool,
) -> None:
    """Build TOPOLOGY, make every call of its matrix, prove it from packets, play its steps, tear it down.

    \b
    Ends 0 if all held, 1 if something failed, 2 for bad input, 3 if no lab can
    run here, 4 if it cannot be told, 5 if there is nothing to run.
    """
    from meshlab.lab.proving.check import run
    from meshlab.lab.proving.evidence import writable
    from meshlab.lab.sources import read
    from meshlab.play.in_check import played_steps

    source = read(topology)
    if source.unrunnable:
        raise TopologyError(source.unrunnable)
    for folder in filter(None, (artifacts, record)):
        writable(folder)
    with _Progress() as progress:
        report = run(
            source.topology,
            source_path=source.path,
            ztunnel=ztunnel,
            ztunnel_at=ztunnel_at,
            mutant=mutant,
            variant=variant,
            artifacts=artifacts,
            record=record,
            ready_timeout_s=ready_timeout_s,
            progress=progress,
            play=played_steps,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        from meshlab.report import print_report

        _print(lambda console: print_report(report, console))
    sys.exit(report.exit_code)


@main.command(epilog="Example: meshlab bundle bug.meshlab.yaml --output bug-1234")
@_TOPOLOGY
@_ZTUNNEL
@_ZTUNNEL_AT
@_MUTANT
@_VARIANT
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="The folder. [default: NAME.bundle, here]"
)
@_READY_TIMEOUT
@_AS_JSON
def bundle(
    topology: str,
    ztunnel: str | None,
    ztunnel_at: dict[str, str],
    mutant: str | None,
    variant: str | None,
    output: Path | None,
    ready_timeout_s: float | None,
    as_json: bool,
) -> None:
    """Run TOPOLOGY once, and put all that was seen into one folder, and that into a .zip, to attach to an issue.

    \b
    The capture opens decrypted in Wireshark: it has the TLS secrets of this run's
    sessions, and no private key. Ends as `check` does.
    """
    from meshlab.lab.proving import check
    from meshlab.lab.sources import read
    from meshlab.play.as_check import run_steps
    from meshlab.report.bundle import make

    source = read(topology)
    if source.unrunnable:
        raise TopologyError(source.unrunnable)
    folder = output or Path(f"{source.topology.name}.bundle")
    with _Progress() as progress:
        made = make(
            source,
            folder,
            run_steps if source.topology.steps else check.run,
            ztunnel=ztunnel,
            ztunnel_at=ztunnel_at,
            mutant=mutant,
            variant=variant,
            ready_timeout_s=ready_timeout_s,
            progress=progress,
        )
    if as_json:
        where = {"folder": str(made.folder), "archive": str(made.archive)}
        _print_json({**where, "result": made.report.result.value, "unsaved": list(made.report.unsaved)})
    else:
        from meshlab.report import summary

        _write("".join(f"not saved: {missing}\n" for missing in made.report.unsaved))
        _print(lambda console: console.print(summary(made.report), soft_wrap=True))
        _write("".join(f"{path}\n" for path in (made.folder / "index.html", made.archive) if path.exists()))
    sys.exit(made.report.exit_code)


@main.command(epilog="Example: meshlab fuzz quickstart --ztunnel ./ztunnel --for 10m")
@_TOPOLOGY
@_ZTUNNEL
@_ZTUNNEL_AT
@_MUTANT
@_VARIANT
@click.option("--histories", is_flag=True, help="Draw what happens to the mesh while it runs, too: pods, restarts ...")
@click.option("--for", "duration", metavar="TIME", help="Go on for so long: 90, 30s, 10m, 2h. [default: 60s]")
@click.option("--examples", metavar="N", type=click.IntRange(min=1), help="Stop after N examples instead.")
@click.option("--seed", metavar="S", type=click.IntRange(min=0), help="The same seed gives the same examples.")
@click.option(
    "--failures",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Stop at so many different failures.",
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(min=1), help="Processes, a lab each. [default: one a CPU, at most 8]"
)
@click.option(
    "--corpus", metavar="DIR", type=click.Path(path_type=Path), help="Examples that failed. [default: .meshlab/corpus]"
)
@click.option(
    "--artifacts",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("meshlab-artifacts"),
    show_default=True,
    help="Where a file for each failure is written.",
)
@_READY_TIMEOUT
@_AS_JSON
def fuzz(topology: str, as_json: bool, **options: Any) -> None:
    """Generate policies for the pods of TOPOLOGY and hold the mesh to the oracle, call by call.

    \b
    A failure is made small and written as NAME.meshlab.yaml: `meshlab replay` plays it.
    Ends 0 if nothing was wrong, 1 if something was, 3 if it could not go on, 4 if only at
    times or if it cannot be told, 130 after Ctrl-C.
    """
    from meshlab.fuzz.command import plan_of

    plan = plan_of(topology, **options)  # says so where the extra is not installed
    from meshlab.fuzz.run import fuzz as run
    from meshlab.fuzz.show import Progress, print_tally

    _say(f"seed {plan.seed}, {plan.workers} worker{'s' if plan.workers > 1 else ''}")
    with Progress() as progress:
        ended = run(plan, progress)
    if as_json:
        _write(json.dumps(ended.tally.to_json(), indent=2) + "\n")
    else:
        _print(lambda console: print_tally(ended.tally, console))
    for error in ended.errors:
        _say(f"not finished: {error}")
    if ended.interrupted:
        _say("interrupted")
    sys.exit(ended.exit_code)


@main.command(epilog="Example: meshlab replay bug.meshlab.yaml --ztunnel ./ztunnel")
@click.argument("file")
@_ZTUNNEL
@_ZTUNNEL_AT
@_MUTANT
@_VARIANT
@click.option("--runs", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Play it N times.")
@click.option("--allow-commands", is_flag=True, help="Print the commands of FILE, and run them.")
@_ARTIFACTS
@_READY_TIMEOUT
@_AS_JSON
def replay(file: str, runs: int, allow_commands: bool, artifacts: Path | None, as_json: bool, **settings: Any) -> None:
    """Play the steps and expectations of FILE, any topology, and say whether they hold.

    \b
    FIXED (0): they do, every time.  FAILED (1): never.  FLAKY (4): at times, with the rate.
    CANNOT-RUN (3): no lab can run it here, it has commands of its own, or it cannot be told.
    """
    from meshlab.lab.proving.evidence import writable
    from meshlab.play.command import play_file
    from meshlab.play.show import print_played

    if artifacts is not None:
        writable(artifacts)
    played = play_file(file, runs, allow_commands, artifacts, _say, **settings)
    if as_json:
        _write(json.dumps(played.to_json(), indent=2) + "\n")
    else:
        _print(lambda console: print_played(played, console))
    sys.exit(played.word.exit_code)


@main.command(epilog="Example: meshlab fmt my-mesh.yaml")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Change nothing; end 1 if something would be.")
def fmt(files: tuple[Path, ...], only_check: bool) -> None:
    """Write topology FILES in canonical form; comments, order and quotes stay."""
    from meshlab.play.command import format_file

    changed = [path for path in files if format_file(path, write=not only_check)]
    for path in changed:
        _say(f"{'would change' if only_check else 'changed'} {path}")
    sys.exit(1 if only_check and changed else 0)


@main.command(epilog="Example: meshlab repro --pytest bug.meshlab.yaml")
@click.argument("file")
@click.option("--pytest", "as_pytest", is_flag=True, required=True, help="Write a pytest test.")
@click.option("--output", metavar="PATH", type=click.Path(path_type=Path), help="[default: test_NAME.py here]")
def repro(file: str, as_pytest: bool, output: Path | None) -> None:
    """Write a test that fails as FILE does, for a suite of your own."""
    assert as_pytest
    from meshlab.play.command import write_pytest

    _write(f"{write_pytest(file, output)}\n")


@main.command(epilog="Example: meshlab validate my-mesh.yaml")
@_TOPOLOGY
@click.option("-v", "--verbose", is_flag=True, help="List the keys that have no part in traffic.")
@_AS_JSON
def validate(topology: str, verbose: bool, as_json: bool) -> None:
    """Read TOPOLOGY and say what is wrong with it, each thing with its place. Needs no lab.

    \b
    Ends 0 for a file that is right, although `check` may still lack a program
    for an image (a warning says which), and 2 for any other.
    """
    from meshlab.lab.sources import read

    try:
        source = read(topology)
    except TopologyError as error:
        if as_json:
            _print_json({"valid": False, "issues": _issues(error.issues), "warnings": [], "inert": []})
        raise
    if as_json:
        warnings = _issues([*source.unrunnable, *source.warnings])
        found = {"issues": [], "warnings": warnings, "inert": _issues(source.inert)}
        _print_json({"valid": True, **found, **_contents(source.topology)})
        return
    for warning in (*source.unrunnable, *source.warnings):
        _say(f"{warning} (warning)")
    contents = _contents(source.topology)
    lines = [str(key) for key in (source.inert if verbose else ())]
    lines.append(f"{contents.pop('topology')}: {', '.join(f'{number} {name}' for name, number in contents.items())}")
    _write("".join(f"{line}\n" for line in lines))


@main.command(epilog="Example: meshlab doctor")
@_AS_JSON
def doctor(as_json: bool) -> None:
    """Try everything that a lab needs of this machine; what mends it comes first."""
    from meshlab.kernel.probe import probe

    findings = probe()
    ready = all(finding.ok for finding in findings)
    if as_json:
        rows = [{"name": f.name, "ok": f.ok, "detail": f.detail, "fix": f.fix} for f in findings]
        _print_json({"ready": ready, "findings": rows})
    else:
        from meshlab.report import print_findings

        _print(lambda console: print_findings(findings, console))
    sys.exit(0 if ready else 3)


@main.command(epilog="Example: meshlab impls --json")
@_AS_JSON
def impls(as_json: bool) -> None:
    """List what can be plugged in, and the mutants and legal variants that test a check itself."""
    from meshlab.implementations import available
    from meshlab.testing.registry import MUTANTS, VARIANTS

    mutants = {mutant.name: mutant.breaks for mutant in MUTANTS.values()}
    variants = {variant.name: variant.breaks for variant in VARIANTS.values()}
    if as_json:
        _print_json(
            {
                "implementations": [_implementation(choice) for choice in available()],
                "mutants": [{"name": name, "breaks": breaks} for name, breaks in mutants.items()],
                "variants": [{"name": name, "breaks": breaks} for name, breaks in variants.items()],
            }
        )
    else:
        from meshlab.report import print_implementations

        _print(lambda console: print_implementations(available(), mutants, variants, console))


@main.command(epilog="Example: meshlab version")
def version() -> None:
    """Print the versions that a bug report needs."""
    _write(f"meshlab {__version__} (Python {platform.python_version()}, {platform.system()} {platform.release()})\n")


class _Progress:
    """Says on one line of a terminal what the lab is doing, and wipes it at the end; silent anywhere else."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, step: str) -> None:
        if self._shown:
            _say(f"\r\x1b[K{step}", end="")

    def __exit__(self, *_: object) -> None:
        if self._shown:
            _say("\r\x1b[K", end="")


def _open_closed_streams() -> None:
    """Give a command that was started without stdin, stdout or stderr an empty one: nothing else may get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the folder that this is run in has been removed: `cd` into one that is there") from None


def _say(text: str, end: str = "\n") -> None:
    """Write to stderr; where that takes nothing, nobody is told."""
    with suppress(OSError):
        click.echo(f"{text}{end}", nl=False, err=True)


def _write(text: str) -> None:
    """Write to stdout; on a full disk to stderr, and say so. A reader who is gone (``| head``) wants no more of it."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        _to_nowhere(sys.stdout.fileno())
    except OSError as error:
        _to_nowhere(sys.stdout.fileno())
        _say(f"stdout cannot be written ({error.strerror}); this was to go there:\n{text}", end="")


def _lose_what_cannot_be_written() -> None:
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


class _Page(io.StringIO):
    """A buffer for text that goes to stdout later, with the colours stdout would show."""

    def isatty(self) -> bool:
        return sys.stdout.isatty()


def _print(show: Callable[[Console], None]) -> None:
    """Write tables to stdout: as wide as the terminal; wide enough for most rows where it is a pipe or a file."""
    from rich.console import Console

    page = _Page()
    console = Console(file=page, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    show(console)
    _write(page.getvalue())


def _print_json(value: dict[str, Any]) -> None:
    _write(json.dumps({"schemaVersion": SCHEMA_VERSION, **value}, indent=2) + "\n")


def _issues(issues: Iterable[Issue]) -> list[dict[str, Any]]:
    return [asdict(issue) for issue in issues]


def _contents(topology: Topology) -> dict[str, Any]:
    """What a file comes to, counted."""
    from meshlab.lab.proving.matrix import cells

    mesh, planned = topology.mesh, cells(topology)
    return {
        "topology": topology.name,
        "nodes": len(topology.nodes),
        "pods": len(mesh.pods),
        "enrolled": sum(map(mesh.is_enrolled, mesh.pods)),
        "services": len(mesh.services),
        "policies": len(mesh.authorization_policies) + len(mesh.peer_authentications),
        "cells": len(planned),
        "denied": sum(cell.expected == "deny" for cell in planned),
    }


def _implementation(choice: Choice) -> dict[str, Any]:
    described = choice.describe()
    return {
        "name": choice.name,
        "version": described.version,
        "roles": list(described.roles),
        "features": sorted(described.features),
        "claims": sorted(described.claims),
    }
