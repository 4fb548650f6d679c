"""The command ``meshlab``. It reads arguments, calls the lab, prints, and picks the exit code; nothing is decided here.

    0 all held  1 a check failed  2 bad input  3 cannot run here  4 cannot tell  5 nothing to run  130 interrupted

What was asked for goes to stdout, everything else to stderr. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshlab import __version__
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshlabError as error:
            click.echo(str(error), err=True)
            ctx.exit(next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
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
_ZTUNNEL = click.option("--ztunnel", metavar="NAME|[NAME=]PATH", help="Node proxy to use: see `meshlab impls`.")
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
    mutant: str | None,
    variant: str | None,
    artifacts: Path | None,
    record: Path | None,
    ready_timeout_s: float | None,
    as_json: bool,
) -> None:
    """Build TOPOLOGY, make every call of its matrix, prove it from packets, tear it down.

    \b
    Ends 0 if all held, 1 if something failed, 2 for bad input, 3 if no lab can
    run here, 4 if it cannot be told, 5 if there is nothing to run.
    """
    from meshlab.lab.check import run
    from meshlab.lab.evidence import writable
    from meshlab.lab.sources import read

    source = read(topology)
    if source.unrunnable:
        raise TopologyError(source.unrunnable)
    for folder in filter(None, (artifacts, record)):
        writable(folder)
    if source.topology.steps:
        click.echo(f"its steps are not played here: meshlab replay {topology}", err=True)

    with _Progress() as progress:
        report = run(
            source.topology,
            source_path=source.path,
            ztunnel=ztunnel,
            mutant=mutant,
            variant=variant,
            artifacts=artifacts,
            record=record,
            ready_timeout_s=ready_timeout_s,
            progress=progress,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        from meshlab.report import print_report

        print_report(report, _console())
    sys.exit(report.exit_code)


@main.command(epilog="Example: meshlab bundle bug.meshlab.yaml --output bug-1234")
@_TOPOLOGY
@_ZTUNNEL
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
    from meshlab.fuzz.as_check import run_steps
    from meshlab.lab import check
    from meshlab.lab.sources import read
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

        for missing in made.report.unsaved:
            click.echo(f"not saved: {missing}")
        _console().print(summary(made.report), soft_wrap=True)
        click.echo(f"{made.folder / 'index.html'}\n{made.archive}")
    sys.exit(made.report.exit_code)


@main.command(epilog="Example: meshlab fuzz quickstart --ztunnel ./ztunnel --for 10m")
@_TOPOLOGY
@_ZTUNNEL
@_MUTANT
@_VARIANT
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

    click.echo(f"seed {plan.seed}, {plan.workers} worker{'s' if plan.workers > 1 else ''}", err=True)
    with Progress() as progress:
        ended = run(plan, progress)
    if as_json:
        click.echo(json.dumps(ended.tally.to_json(), indent=2))
    else:
        print_tally(ended.tally, _console())
    for error in ended.errors:
        click.echo(f"not finished: {error}", err=True)
    if ended.interrupted:
        click.echo("interrupted", err=True)
    sys.exit(ended.exit_code)


@main.command(epilog="Example: meshlab replay bug.meshlab.yaml --ztunnel ./ztunnel")
@click.argument("file")
@_ZTUNNEL
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
    from meshlab.fuzz.command import play_file
    from meshlab.fuzz.show import print_played
    from meshlab.lab.evidence import writable

    if artifacts is not None:
        writable(artifacts)
    played = play_file(file, runs, allow_commands, artifacts, lambda text: click.echo(text, err=True), **settings)
    if as_json:
        click.echo(json.dumps(played.to_json(), indent=2))
    else:
        print_played(played, _console())
    sys.exit(played.word.exit_code)


@main.command(epilog="Example: meshlab fmt my-mesh.yaml")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Change nothing; end 1 if something would be.")
def fmt(files: tuple[Path, ...], only_check: bool) -> None:
    """Write topology FILES in canonical form; comments, order and quotes stay."""
    from meshlab.fuzz.command import format_file

    changed = [path for path in files if format_file(path, write=not only_check)]
    for path in changed:
        click.echo(f"{'would change' if only_check else 'changed'} {path}", err=True)
    sys.exit(1 if only_check and changed else 0)


@main.command(epilog="Example: meshlab repro --pytest bug.meshlab.yaml")
@click.argument("file")
@click.option("--pytest", "as_pytest", is_flag=True, required=True, help="Write a pytest test.")
@click.option("--output", metavar="PATH", type=click.Path(path_type=Path), help="[default: test_NAME.py here]")
def repro(file: str, as_pytest: bool, output: Path | None) -> None:
    """Write a test that fails as FILE does, for a suite of your own."""
    assert as_pytest
    from meshlab.fuzz.command import write_pytest

    click.echo(write_pytest(file, output))


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
        found = {"issues": [], "warnings": _issues(source.unrunnable), "inert": _issues(source.inert)}
        _print_json({"valid": True, **found, **_contents(source.topology)})
        return
    for warning in source.unrunnable:
        click.echo(f"{warning} (warning)", err=True)
    for key in source.inert if verbose else ():
        click.echo(str(key))
    contents = _contents(source.topology)
    click.echo(f"{contents.pop('topology')}: {', '.join(f'{number} {name}' for name, number in contents.items())}")


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

        print_findings(findings, _console())
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

        print_implementations(available(), mutants, variants, _console())


@main.command(epilog="Example: meshlab version")
def version() -> None:
    """Print the versions that a bug report needs."""
    click.echo(f"meshlab {__version__} (Python {platform.python_version()}, {platform.system()} {platform.release()})")


class _Progress:
    """Says on one line of a terminal what the lab is doing, and wipes it at the end; silent anywhere else."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, step: str) -> None:
        if self._shown:
            click.echo(f"\r\x1b[K{step}", nl=False, err=True)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _console() -> Console:
    """Stdout for tables: as wide as the terminal; wide enough for most rows where it is a pipe or a file."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps({"schemaVersion": SCHEMA_VERSION, **value}, indent=2))


def _issues(issues: Iterable[Issue]) -> list[dict[str, Any]]:
    return [asdict(issue) for issue in issues]


def _contents(topology: Topology) -> dict[str, Any]:
    """What a file comes to, counted."""
    from meshlab.lab.matrix import cells

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
