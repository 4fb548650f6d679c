"""The command ``fuzz``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from meshlab.cli.options import AS_JSON, MUTANT, READY_TIMEOUT, TOPOLOGY, VARIANT, WAYPOINT, ZTUNNEL, ZTUNNEL_AT
from meshlab.cli.output import say, write, write_tables


@click.command(epilog="Example: meshlab fuzz quickstart --ztunnel ./ztunnel --for 10m")
@TOPOLOGY
@ZTUNNEL
@ZTUNNEL_AT
@WAYPOINT
@MUTANT
@VARIANT
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
@READY_TIMEOUT
@AS_JSON
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

    say(f"seed {plan.seed}, {plan.workers} worker{'s' if plan.workers > 1 else ''}")
    with Progress() as progress:
        ended = run(plan, progress)
    if as_json:
        write(json.dumps(ended.tally.to_json(), indent=2) + "\n")
    else:
        write_tables(lambda console: print_tally(ended.tally, console))
    for error in ended.errors:
        say(f"not finished: {error}")
    if ended.interrupted:
        say("interrupted")
    sys.exit(ended.exit_code)
