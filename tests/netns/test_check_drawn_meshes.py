"""A right mesh of whatever shape is green, and does what its policies say: topologies that nobody chose.

``MESHLAB_TOPOLOGIES=60`` draws as many.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from meshlab.lab.proving import check
from meshlab.model import Topology
from meshlab.model.report import Result
from meshlab.strategies import topologies

DRAWN = int(os.environ.get("MESHLAB_TOPOLOGIES", "5"))


DRAWING = settings(
    max_examples=DRAWN,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def part(request: pytest.FixtureRequest, _meshlab_ztunnel: str | None) -> dict[str, Any]:
    """The data plane that is asked for: ``--meshlab-ztunnel``, ``--meshlab-mutant``, ``--meshlab-variant``."""
    options = {name: request.config.getoption(f"--meshlab-{name}") for name in ("mutant", "variant")}
    return {name: text for name, text in {**options, "ztunnel": _meshlab_ztunnel}.items() if text}


@pytest.mark.meshlab_dataplane
@DRAWING
@given(topologies(allow_all=True, programs=True))
def test_a_right_mesh_of_whatever_shape_is_green(part: dict[str, Any], topology: Topology) -> None:
    report = check.run(topology, **part)
    assert [cell for cell in report.cells if cell.result is not Result.HELD] == []
    assert [proof for proof in report.proofs if proof.result is not Result.HELD] == []
    assert (report.audit, report.exit_code) == ((), 0)


@pytest.mark.meshlab_dataplane
@DRAWING
@given(topologies())
def test_a_mesh_of_whatever_shape_does_what_its_policies_say(part: dict[str, Any], topology: Topology) -> None:
    """Where nobody is allowed, or a Service's pods disagree, there may be nothing to prove a denial by."""
    report = check.run(topology, **part)
    assert [cell for cell in report.cells if cell.result is Result.FAILED] == []
    assert [proof for proof in report.proofs if proof.result is Result.FAILED] == []
    assert report.audit == ()
