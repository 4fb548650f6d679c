"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

from meshlab.errors import UsageError

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
TOPOLOGY = click.argument("topology")


def _by_node(given: tuple[str, ...]) -> dict[str, str]:
    """``NODE=WHAT``: the node stands before the first ``=``."""
    by_node = {}
    for text in given:
        node, equals, what = text.partition("=")
        if not (node and equals and what):
            raise UsageError(f"--ztunnel-at '{text}': write NODE=NAME, such as node-1=istio=./ztunnel")
        by_node[node] = what
    return by_node


ZTUNNEL = click.option("--ztunnel", metavar="NAME|[NAME=]PATH", help="Node proxy to use: see `meshlab impls`.")
ZTUNNEL_AT = click.option(
    "--ztunnel-at",
    metavar="NODE=NAME|NODE=[NAME=]PATH",
    multiple=True,
    callback=lambda _context, _option, given: _by_node(given),
    help="Node proxy of one node; repeat it for others.",
)
WAYPOINT = click.option(
    "--waypoint",
    metavar="NAME|[NAME=]PATH",
    help="Waypoints: envoy (the default, if installed), reference, none, a plug-in's name or the path of an Envoy.",
)
MUTANT = click.option("--mutant", metavar="NAME", help="Break one part on purpose, to see that it is noticed.")
VARIANT = click.option("--variant", metavar="NAME", help="Use an unusual, but right, part.")
ARTIFACTS = click.option(
    "--artifacts",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep captures and logs in DIR, also if nothing was wrong.",
)
READY_TIMEOUT = click.option(
    "--ready-timeout",
    "ready_timeout_s",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that pods may take to enrol. [default: the topology's, which is 10]",
)
