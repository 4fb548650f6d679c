"""A ztunnel that confuses nearly equal values is caught by a check that has such a value; the reference holds there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab.lab.proving import check
from meshlab.model import Outcome
from meshlab.model.report import CheckReport, Result
from meshlab.testing.mutants.near import FLIPPED_AT
from meshlab.testing.registry import MUTANTS
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

LabFactory = Callable[..., AbstractContextManager["Lab"]]
SUBJECTS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: nearly}
spec:
  nodes: [{name: node-1, ztunnel: reference}, {name: node-2, ztunnel: reference}]
  pods:
    shop/client: {node: node-1, serviceAccount: client}    # 10.128.158.55, fd5a:7c1e:90d3:8000:9e37:...
    shop/server:
      node: node-2
      ports: [8001, 8002, 8003, 8004, 8005, 8006, 8007]
      serviceAccount: server
      labels: {app: server}
    shop/either: {node: node-2, ports: [8080], serviceAccount: either, labels: {app: either}}
    shop/both: {node: node-2, ports: [8080, 8081], serviceAccount: both, labels: {app: both}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nearly-the-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - from: [{source: {principals: ["cluster.local/ns/SHOP/sa/client"]}}]
      to: [{operation: {ports: ["8001"]}}]
    - from: [{source: {principals: ["cluster.local/ns/shop/sa/Client"]}}]
      to: [{operation: {ports: ["8002"]}}]
    - from: [{source: {principals: ["cluster.local/ns/shop/sa/clients*"]}}]
      to: [{operation: {ports: ["8003"]}}]
    - from: [{source: {principals: ["*workshop/sa/client"]}}]
      to: [{operation: {ports: ["8004"]}}]
    - from: [{source: {ipBlocks: ["10.128.0.0/16", "fd5a:7c1e:90d3:8000::/64"]}}]    # the client is in the upper half
      to: [{operation: {ports: ["8005", "8006"]}}]
    - to: [{operation: {ports: ["1", "2", "3", "4", "8007"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: one-of-two, namespace: shop}
spec:
  selector: {matchLabels: {app: either}}
  rules:
    - to: [{operation: {notPorts: ["8080"]}}, {operation: {notPorts: ["9090"]}}]     # 8080 is not 9090
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: both-of-two, namespace: shop}
spec:
  selector: {matchLabels: {app: both}}
  rules:
    - to: [{operation: {notPorts: ["8080"]}}]
      when: [{key: destination.port, notValues: ["9090"]}]
"""
WRONG_CELLS = {
    "ignores-case-of-namespaces": {"shop/client->shop/server:8001/4", "shop/client->shop/server:8001/6"},
    "ignores-case-of-accounts": {"shop/client->shop/server:8002/4", "shop/client->shop/server:8002/6"},
    "prefix-without-its-last-part": {"shop/client->shop/server:8003/4", "shop/client->shop/server:8003/6"},
    "suffix-without-its-first-part": {"shop/client->shop/server:8004/4", "shop/client->shop/server:8004/6"},
    "ipv4-cidr-one-bit-longer": {"shop/client->shop/server:8005/4"},
    "ipv6-cidr-one-bit-longer": {"shop/client->shop/server:8005/6"},
    "reads-four-values-of-a-list": {"shop/client->shop/server:8007/4", "shop/client->shop/server:8007/6"},
    "not-ports-of-operations-are-anded": {"shop/client->shop/either:8080/4", "shop/client->shop/either:8080/6"},
    "not-ports-of-clauses-are-ored": {"shop/client->shop/both:8080/4", "shop/client->shop/both:8080/6"},
}
"""Mutant -> cells that each must come out wrong, and no others of the client."""


def run(mutant: str | None, artifacts: Path) -> CheckReport:
    return check.run(load(SUBJECTS, "nearly.yaml"), mutant=mutant, artifacts=artifacts)


def failed(report: CheckReport) -> set[str]:
    return {f"{c.source}->{c.to}:{c.port}/{c.family}" for c in report.cells if c.result is Result.FAILED}


def test_each_of_these_mutants_has_its_test_here() -> None:
    near = {name for name, mutant in MUTANTS.items() if ".mutants.near:" in mutant.entry}
    assert {*WRONG_CELLS, "flips-a-bit-in-bulk"} == near | {"reads-four-values-of-a-list"}


def test_the_reference_holds_on_what_they_fail(tmp_path: Path) -> None:
    report = run(None, tmp_path)
    assert failed(report) == set()
    assert report.exit_code == 0


@pytest.mark.parametrize("name", sorted(WRONG_CELLS))
def test_a_judge_of_nearly_equal_values_is_caught_where_it_is_wrong(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    assert report.exit_code == 1
    assert WRONG_CELLS[name] <= failed(report)


@pytest.mark.parametrize(("name", "outcome"), [(None, Outcome.OK), ("flips-a-bit-in-bulk", Outcome.CORRUPTED)])
def test_one_flipped_bit_is_seen_in_a_body_that_is_long_enough(
    lab_factory: LabFactory, name: str | None, outcome: Outcome
) -> None:
    with lab_factory("quickstart", mutant=name) as lab:
        client = lab.pod("shop/client")
        short = client.http("http://shop/server:8080/", method="POST", body=bytes(FLIPPED_AT // 2))
        long = client.http("http://shop/server:8080/", method="POST", body=bytes(FLIPPED_AT))
        assert (short.outcome, long.outcome) == (Outcome.OK, outcome)
