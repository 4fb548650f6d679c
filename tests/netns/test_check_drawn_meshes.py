"""A right mesh of whatever shape is green: topologies that nobody chose, with policies that let every call through.

``MESHLAB_TOPOLOGIES=60`` draws as many; ``--meshlab-ztunnel`` runs them on another data plane.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from meshlab.lab import check
from meshlab.model import Topology
from meshlab.model.report import Result
from meshlab.strategies import topologies

DRAWN = int(os.environ.get("MESHLAB_TOPOLOGIES", "5"))


@pytest.mark.meshlab_dataplane
@settings(
    max_examples=DRAWN,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(topologies(allow_all=True, programs=True))
def test_a_right_mesh_of_whatever_shape_is_green(_meshlab_ztunnel: str | None, topology: Topology) -> None:  # noqa: PT019
    report = check.run(topology, ztunnel=_meshlab_ztunnel)
    assert [cell for cell in report.cells if cell.result is not Result.HELD] == []
    assert [proof for proof in report.proofs if proof.result is not Result.HELD] == []
    assert (report.audit, report.exit_code) == ((), 0)
