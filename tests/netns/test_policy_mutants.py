"""A ztunnel that judges wrongly is caught by what it lets through or keeps out; on the same calls the reference holds.

One topology has what each of them gets wrong. Those that need a change of policy, or luck, are called in a lab.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab.lab.proving import check
from meshlab.model import Mesh, Outcome
from meshlab.model.report import CheckReport, Result
from meshlab.testing.registry import MUTANTS
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

SUBJECTS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: subjects}
spec:
  nodes: [{name: node-1, ztunnel: reference}, {name: node-2, ztunnel: reference}]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/client-2: {node: node-2, serviceAccount: client-2}
    shop/server: {node: node-2, ports: [8001, 8002, 8003, 8004, 8005], serviceAccount: server, labels: {app: server}}
    edge/api: {node: node-1, ports: [8080], serviceAccount: api}
    plain/guest: {node: node-1, serviceAccount: guest}    # has an account, but no certificate
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: edge, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
    - from: [{source: {principals: ["*/sa/client"]}}]      # not client-2
      to: [{operation: {ports: ["8001"]}}]
    - from: [{source: {ipBlocks: ["10.128.128.0/17", "fd5a:7c1e:90d3:8000:8000::/65"]}}]    # not api
      to: [{operation: {ports: ["8002"]}}]
    - from: [{source: {notPrincipals: ["cluster.local/ns/shop/sa/client"]}}]
      to: [{operation: {ports: ["8003"]}}]
    - to: [{operation: {ports: ["8004", "8005"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-second, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from: [{source: {serviceAccounts: [client-2]}}]
      to: [{operation: {ports: ["8004"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all-of-shop, namespace: shop}
spec:
  action: DENY
  rules:
    - to: [{operation: {ports: ["8080"]}}]                 # nobody serves it in shop; api does, in edge
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everybody, namespace: edge}
spec:
  action: ALLOW
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: server, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8005: {mode: PERMISSIVE}
"""
WRONG_CELLS = {
    "rules-of-a-policy-are-anded": {"shop/client->shop/server:8001/4", "shop/client->shop/server:8001/6"},
    "parts-of-a-rule-are-ored": {"shop/client->shop/server:8004/4", "shop/client->shop/server:8004/6"},
    "suffix-matches-anywhere": {"shop/client-2->shop/server:8001/4", "shop/client-2->shop/server:8001/6"},
    "ignores-not-fields": {"shop/client-2->shop/server:8003/4", "edge/api->shop/server:8003/6"},
    "cidr-mask-off-by-one": {"edge/api->shop/server:8002/4", "edge/api->shop/server:8002/6"},
    "ignores-ipv6-cidrs": {"shop/client->shop/server:8002/6"},
    "empty-rule-matches-nothing": {"shop/client->edge/api:8080/4", "plain/guest->edge/api:8080/6"},
    "policy-scope-is-mesh-wide": {"shop/client->edge/api:8080/4", "shop/client->edge/api:8080/6"},
    "ignores-port-level-mtls": {"plain/guest->shop/server:8005/4", "plain/guest->shop/server:8005/6"},
    "deny-after-allow": {"shop/client-2->shop/server:8004/4", "shop/client-2->shop/server:8004/6"},
    "identity-by-source-ip": {"plain/guest->shop/server:8003/4", "plain/guest->shop/server:8003/6"},
}
"""Mutant -> cells that each must come out wrong; others may as well."""
NEED_MORE_THAN_A_MATRIX = {"verdict-cached-by-4-tuple", "stale-verdict-after-a-change", "sometimes-ignores-deny"}
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: edge}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ["8080"]}}]}]
"""
LabFactory = Callable[..., AbstractContextManager["Lab"]]


def run(mutant: str | None, artifacts: Path) -> CheckReport:
    return check.run(load(SUBJECTS, "subjects.yaml"), mutant=mutant, artifacts=artifacts)


def failed(report: CheckReport) -> set[str]:
    return {f"{c.source}->{c.to}:{c.port}/{c.family}" for c in report.cells if c.result is Result.FAILED}


def test_each_mutant_of_policy_has_its_test_here() -> None:
    of_policy = {name for name, mutant in MUTANTS.items() if ".mutants.policy:" in mutant.entry}
    assert of_policy == set(WRONG_CELLS) | NEED_MORE_THAN_A_MATRIX


def test_the_reference_holds_on_what_its_mutants_fail(tmp_path: Path) -> None:
    report = run(None, tmp_path)
    assert failed(report) == set()
    assert report.exit_code == 0


@pytest.mark.parametrize("name", sorted(WRONG_CELLS))
def test_a_wrong_judge_is_caught_by_a_check_where_it_is_wrong(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    assert report.exit_code == 1
    assert failed(report) >= WRONG_CELLS[name]


def _outcome(lab: Lab) -> Outcome:
    return lab.pod("shop/client").http("http://edge/api:8080/").outcome


@pytest.mark.parametrize("name", [None, "verdict-cached-by-4-tuple", "stale-verdict-after-a-change"])
def test_a_judge_that_is_late_is_caught_by_a_call_after_a_change(lab_factory: LabFactory, name: str | None) -> None:
    with lab_factory(SUBJECTS, mutant=name) as lab:
        assert _outcome(lab) is Outcome.OK
        lab.apply(DENY)
        right = _outcome(lab) in Outcome.REFUSED
    assert right is (name is None)


def test_a_judge_that_is_late_is_one_push_late_and_no_more(lab_factory: LabFactory) -> None:
    with lab_factory(SUBJECTS, mutant="stale-verdict-after-a-change") as lab:
        lab.apply(DENY)
        lab.replace(Mesh())
        assert _outcome(lab) in Outcome.REFUSED


@pytest.mark.parametrize("name", [None, "sometimes-ignores-deny"])
def test_a_judge_that_is_wrong_one_time_in_five_is_wrong_in_some_calls_of_many(
    lab_factory: LabFactory, name: str | None
) -> None:
    with lab_factory(SUBJECTS, mutant=name) as lab:
        lab.apply(DENY)
        client = lab.pod("shop/client")
        calls = lab.calls([client.plan_http("http://edge/api:8080/") for _ in range(120)])
    wrong = sum(call.outcome is Outcome.OK for call in calls)
    assert all(call.outcome in Outcome.OK | Outcome.REFUSED for call in calls)
    assert (5 <= wrong <= 60) if name else wrong == 0
