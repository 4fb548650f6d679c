"""The commands that read or write files and need no lab: ``validate``, ``fmt``, ``repro``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshlab.cli.options import AS_JSON, TOPOLOGY
from meshlab.cli.output import say, write, write_json
from meshlab.errors import Issue, TopologyError

if TYPE_CHECKING:
    from meshlab.model import Topology


@click.command(epilog="Example: meshlab fmt my-mesh.yaml")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Change nothing; end 1 if something would be.")
def fmt(files: tuple[Path, ...], only_check: bool) -> None:
    """Write topology FILES in canonical form; comments, order and quotes stay."""
    from meshlab.play.command import format_file

    changed = [path for path in files if format_file(path, write=not only_check)]
    for path in changed:
        say(f"{'would change' if only_check else 'changed'} {path}")
    sys.exit(1 if only_check and changed else 0)


@click.command(epilog="Example: meshlab repro --pytest bug.meshlab.yaml")
@click.argument("file")
@click.option("--pytest", "as_pytest", is_flag=True, required=True, help="Write a pytest test.")
@click.option("--output", metavar="PATH", type=click.Path(path_type=Path), help="[default: test_NAME.py here]")
def repro(file: str, as_pytest: bool, output: Path | None) -> None:
    """Write a test that fails as FILE does, for a suite of your own."""
    assert as_pytest
    from meshlab.play.command import write_pytest

    write(f"{write_pytest(file, output)}\n")


@click.command(epilog="Example: meshlab validate my-mesh.yaml")
@TOPOLOGY
@click.option("-v", "--verbose", is_flag=True, help="List the keys that have no part in traffic.")
@AS_JSON
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
            write_json({"valid": False, "issues": _issues(error.issues), "warnings": [], "inert": []})
        raise
    if as_json:
        warnings = _issues([*source.unrunnable, *source.warnings])
        found = {"issues": [], "warnings": warnings, "inert": _issues(source.inert)}
        write_json({"valid": True, **found, **_contents(source.topology)})
        return
    for warning in (*source.unrunnable, *source.warnings):
        say(f"{warning} (warning)")
    contents = _contents(source.topology)
    lines = [str(key) for key in (source.inert if verbose else ())]
    lines.append(f"{contents.pop('topology')}: {', '.join(f'{number} {name}' for name, number in contents.items())}")
    write("".join(f"{line}\n" for line in lines))


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
