"""The commands that say what this machine and this meshlab have: ``doctor``, ``impls``, ``version``."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from meshlab.cli.options import AS_JSON
from meshlab.cli.output import write, write_json, write_tables
from meshlab.version import __version__

if TYPE_CHECKING:
    from meshlab.implementations import Choice


@click.command(epilog="Example: meshlab doctor")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Try everything that a lab needs of this machine; what mends it comes first."""
    from meshlab.kernel.probe import probe

    findings = probe()
    ready = all(finding.ok for finding in findings)
    if as_json:
        rows = [{"name": f.name, "ok": f.ok, "detail": f.detail, "fix": f.fix} for f in findings]
        write_json({"ready": ready, "findings": rows})
    else:
        from meshlab.report import print_findings

        write_tables(lambda console: print_findings(findings, console))
    sys.exit(0 if ready else 3)


@click.command(epilog="Example: meshlab impls --json")
@AS_JSON
def impls(as_json: bool) -> None:
    """List what can be plugged in, and the mutants and legal variants that test a check itself."""
    from meshlab.implementations import available
    from meshlab.testing.registry import MUTANTS, VARIANTS

    mutants = {mutant.name: mutant.breaks for mutant in MUTANTS.values()}
    variants = {variant.name: variant.breaks for variant in VARIANTS.values()}
    if as_json:
        write_json(
            {
                "implementations": [_implementation(choice) for choice in available()],
                "mutants": [{"name": name, "breaks": breaks} for name, breaks in mutants.items()],
                "variants": [{"name": name, "breaks": breaks} for name, breaks in variants.items()],
            }
        )
    else:
        from meshlab.report import print_implementations

        write_tables(lambda console: print_implementations(available(), mutants, variants, console))


@click.command(epilog="Example: meshlab version")
def version() -> None:
    """Print the versions that a bug report needs."""
    write(f"meshlab {__version__} (Python {platform.python_version()}, {platform.system()} {platform.release()})\n")


def _implementation(choice: Choice) -> dict[str, Any]:
    described = choice.describe()
    return {
        "name": choice.name,
        "version": described.version,
        "roles": list(described.roles),
        "features": sorted(described.features),
        "claims": sorted(described.claims),
    }
