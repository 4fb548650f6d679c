"""Each mutant of the catalogue is caught by a check where a topology touches its subject, and the reference holds."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from meshlab.lab.proving import check
from meshlab.model.report import CheckReport, Result
from meshlab.testing.registry import MUTANTS
from meshlab.topology import load

SUBJECTS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: subjects}
spec:
  nodes: [{name: node-1, ztunnel: reference}, {name: node-2, ztunnel: reference}]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/robot: {node: node-1, serviceAccount: robot}
    edge/client: {node: node-2, serviceAccount: client}
    shop/server: {node: node-2, ports: [8001, 8002], serviceAccount: server, labels: {app: server}}
    edge/api: {node: node-2, ports: [8080], serviceAccount: api}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: edge, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  selector: {app: server}
  ports: [{port: 7002, targetPort: 8002}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}               # so not api, on the same node
  action: ALLOW
  rules:
    - from: [{source: {serviceAccounts: [client]}}]    # shop's, not edge's
      to: [{operation: {ports: ["8001"]}}]
    - to: [{operation: {ports: ["8002"]}}]             # not 7002
"""
WRONG_CELLS = {
    "policy-at-the-service-port": [{"shop/client->server.shop:7002"}, {"shop/robot->shop/server:8002"}],
    "service-account-by-name-only": [{"edge/client->shop/server:8001"}],
    "selector-policies-hold-for-the-node": [{"shop/client->edge/api:8080"}, {"edge/client->edge/api:8080"}],
    "one-verdict-for-a-tunnel": [{"shop/robot->shop/server:8001", "shop/robot->shop/server:8002"}],
    "one-tunnel-for-all-pods": [{"shop/client->shop/server:8001", "shop/robot->shop/server:8001"}],
}
"""Mutant -> groups of cells of which one each must come out wrong: which of a group, the order of the calls decides."""


def run(mutant: str | None, artifacts: Path) -> CheckReport:
    return check.run(load(SUBJECTS, "subjects.yaml"), mutant=mutant, artifacts=artifacts)


def failed(report: CheckReport) -> set[str]:
    return {f"{c.source}->{c.to}:{c.port}/{c.family}" for c in report.cells if c.result is Result.FAILED}


def test_each_mutant_of_the_catalogue_has_its_test_here() -> None:
    assert set(WRONG_CELLS) == {name for name, mutant in MUTANTS.items() if ".mutants.catalogue:" in mutant.entry}


def test_the_reference_holds_on_what_the_mutants_of_the_catalogue_fail(tmp_path: Path) -> None:
    report = run(None, tmp_path)
    assert failed(report) == set()
    assert report.exit_code == 0


@pytest.mark.parametrize("name", sorted(WRONG_CELLS))
def test_a_bug_of_the_catalogue_is_caught_by_a_check_that_touches_it(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    assert report.exit_code == 1
    for group, family in product(WRONG_CELLS[name], (4, 6)):
        assert failed(report) & {f"{cell}/{family}" for cell in group}
