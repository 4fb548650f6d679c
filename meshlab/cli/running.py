"""The commands that run a lab and say whether all held: ``check``, ``bundle``, ``replay``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from meshlab.cli.options import (
    ARTIFACTS,
    AS_JSON,
    MUTANT,
    READY_TIMEOUT,
    TOPOLOGY,
    VARIANT,
    WAYPOINT,
    ZTUNNEL,
    ZTUNNEL_AT,
)
from meshlab.cli.output import Progress, say, write, write_json, write_tables
from meshlab.errors import TopologyError


@click.command(epilog="Example: meshlab check quickstart --ztunnel istio=./ztunnel --artifacts out")
@TOPOLOGY
@ZTUNNEL
@ZTUNNEL_AT
@WAYPOINT
@MUTANT
@VARIANT
@ARTIFACTS
@click.option(
    "--record", metavar="DIR", type=click.Path(path_type=Path), help="Write each proxy's conversation to DIR."
)
@READY_TIMEOUT
@AS_JSON
def check(
    topology: str,
    ztunnel: str | None,
    ztunnel_at: dict[str, str],
    waypoint: str | None,
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
    with Progress() as progress:
        report = run(
            source.topology,
            source_path=source.path,
            ztunnel=ztunnel,
            ztunnel_at=ztunnel_at,
            waypoint=waypoint,
            mutant=mutant,
            variant=variant,
            artifacts=artifacts,
            record=record,
            ready_timeout_s=ready_timeout_s,
            progress=progress,
            play=played_steps,
        )
    if as_json:
        write_json(report.to_json())
    else:
        from meshlab.report import print_report

        write_tables(lambda console: print_report(report, console))
    sys.exit(report.exit_code)


@click.command(epilog="Example: meshlab bundle bug.meshlab.yaml --output bug-1234")
@TOPOLOGY
@ZTUNNEL
@ZTUNNEL_AT
@WAYPOINT
@MUTANT
@VARIANT
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="The folder. [default: NAME.bundle, here]"
)
@READY_TIMEOUT
@AS_JSON
def bundle(
    topology: str,
    ztunnel: str | None,
    ztunnel_at: dict[str, str],
    waypoint: str | None,
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
    with Progress() as progress:
        made = make(
            source,
            folder,
            run_steps if source.topology.steps else check.run,
            ztunnel=ztunnel,
            ztunnel_at=ztunnel_at,
            waypoint=waypoint,
            mutant=mutant,
            variant=variant,
            ready_timeout_s=ready_timeout_s,
            progress=progress,
        )
    if as_json:
        where = {"folder": str(made.folder), "archive": str(made.archive)}
        write_json({**where, "result": made.report.result.value, "unsaved": list(made.report.unsaved)})
    else:
        from meshlab.report import summary

        write("".join(f"not saved: {missing}\n" for missing in made.report.unsaved))
        write_tables(lambda console: console.print(summary(made.report), soft_wrap=True))
        write("".join(f"{path}\n" for path in (made.folder / "index.html", made.archive) if path.exists()))
    sys.exit(made.report.exit_code)


@click.command(epilog="Example: meshlab replay bug.meshlab.yaml --ztunnel ./ztunnel")
@click.argument("file")
@ZTUNNEL
@ZTUNNEL_AT
@WAYPOINT
@MUTANT
@VARIANT
@click.option("--runs", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Play it N times.")
@click.option("--allow-commands", is_flag=True, help="Print the commands of FILE, and run them.")
@ARTIFACTS
@READY_TIMEOUT
@AS_JSON
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
    played = play_file(file, runs, allow_commands, artifacts, say, **settings)
    if as_json:
        write(json.dumps(played.to_json(), indent=2) + "\n")
    else:
        write_tables(lambda console: print_played(played, console))
    sys.exit(played.word.exit_code)
