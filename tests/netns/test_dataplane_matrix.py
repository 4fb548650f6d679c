"""``check`` on the topologies in which mutants go wrong: every cell and proof holds on any right data plane."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_catalogue_mutants
import test_lab_conversations
import test_policy_mutants

from meshlab.lab.proving import check
from meshlab.model.report import Result
from meshlab.topology import load

TOPOLOGIES = {
    "policies": test_policy_mutants.SUBJECTS,
    "services and accounts": test_catalogue_mutants.SUBJECTS,
    "a server that speaks first": test_lab_conversations.LAB,
}
pytestmark = pytest.mark.meshlab_dataplane


@pytest.mark.parametrize("subject", TOPOLOGIES)
def test_every_cell_and_every_proof_holds(
    subject: str,
    tmp_path: Path,
    _meshlab_ztunnel: str | None,  # noqa: PT019  # its value is the proxy that this run is for
) -> None:
    topology = load(TOPOLOGIES[subject].replace(", ztunnel: reference", ""), f"{subject}.yaml")
    report = check.run(topology, ztunnel=_meshlab_ztunnel, artifacts=tmp_path)
    assert [cell for cell in report.cells if cell.result is not Result.HELD] == []
    assert [proof for proof in report.proofs if proof.result is not Result.HELD] == []
    assert report.exit_code == 0
