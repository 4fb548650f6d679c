"""Policies in a running lab: in effect when ``apply`` returns, the oracle's verdicts, NACKs and restarts.

These hold for any right data plane: ``pytest -m meshlab_dataplane --meshlab-ztunnel ./ztunnel``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meshlab.lab.calls.attempt import Request
from meshlab.model import FAMILIES, Mesh, Outcome, Pod
from meshlab.oracle import connection, decide
from meshlab.strategies import policy_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshlab.lab import Lab

pytestmark = pytest.mark.meshlab_dataplane

FLIPS = int(os.environ.get("MESHLAB_FLIPS", "100"))
POLICY_SETS = int(os.environ.get("MESHLAB_POLICY_SETS", "25"))

LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: policies-live}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/web: {node: node-1, ports: [80, 8080, 9090], labels: {app: web}, serviceAccount: web}
    shop/web-admin: {node: node-2, ports: [80, 8080], labels: {app: web-admin}, serviceAccount: web-admin}
    shop-evil/web: {node: node-2, ports: [8080], labels: {app: web}, serviceAccount: web}
    xshop/a: {node: node-1, ports: [80], labels: {app: a}, serviceAccount: default}
    shop/outside: {node: node-2, serviceAccount: web, labels: {istio.io/dataplane-mode: none}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop-evil, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: xshop, labels: {istio.io/dataplane-mode: ambient}}
"""
DENY_8080 = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: flip, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ["8080"]}}]}]
"""


@pytest.fixture(scope="module")
def shared(lab_factory: Callable[..., AbstractContextManager[Lab]]) -> Iterator[Lab]:
    """One lab for the module; every test replaces its policies."""
    with lab_factory(LAB) as lab:
        yield lab


@pytest.fixture
def policies(shared: Lab) -> Iterator[Lab]:
    """``shared`` without any policy, before and after."""
    shared.replace(Mesh())
    yield shared
    shared.replace(Mesh())


def requests(lab: Lab) -> list[tuple[Pod, Pod, Request]]:
    """A call from every pod to every other one's ports, in both families."""
    return [
        (
            source,
            destination,
            Request(
                source=source.key,
                to=f"{destination.key}:{port.number}",
                family=family,
                address=destination.address(family),
                port=port.number,
            ),
        )
        for source in lab.mesh.pods
        for destination in lab.mesh.pods
        for port in destination.ports
        for family in FAMILIES
        if source.key != destination.key
    ]


def disagreements(lab: Lab) -> list[str]:
    """Where the bytes and the oracle differ, with the deciding rule."""
    asked = requests(lab)
    found = []
    for (source, destination, request), call in zip(asked, lab.calls([r for *_, r in asked]), strict=True):
        decision = decide(lab.mesh, connection(lab.mesh, source, destination, request.port, request.family))
        right = call.outcome is Outcome.OK if decision.allowed else call.outcome in Outcome.REFUSED
        if not right:
            says = f"oracle {decision.verdict} ({decision.rule})"
            found.append(f"{source.key} -> {request.to}/{request.family}: {call.outcome}, {says}")
    return found


def test_generated_policies_get_the_oracles_verdicts(policies: Lab) -> None:
    wrong: dict[int, Any] = {}
    for number, mesh in enumerate(policy_sets(policies.mesh, POLICY_SETS, seed=20261124)):
        policies.replace(mesh)
        found = disagreements(policies)
        if found:
            wrong[number] = (mesh.authorization_policies, mesh.peer_authentications, found)
    assert not wrong


def test_a_call_after_apply_returned_is_never_answered_by_the_old_policy(policies: Lab) -> None:
    client = policies.pod("shop/web-admin")
    old = 0
    for flip in range(FLIPS):
        if flip % 2:
            policies.delete(DENY_8080)
            expected = Outcome.OK
        else:
            policies.apply(DENY_8080)
            expected = Outcome.REFUSED
        call = client.http("http://shop/web:8080/")
        old += call.outcome not in expected
    assert old == 0, f"{old} of {FLIPS} calls were answered by the policy before"


def test_a_policy_takes_effect_at_both_ends_of_the_mesh(policies: Lab) -> None:
    policies.apply(DENY_8080)
    assert disagreements(policies) == []


def test_what_is_gone_when_the_control_plane_comes_back_is_gone_from_the_proxies(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    with lab_factory(LAB) as lab:
        lab.apply(DENY_8080)
        client = lab.pod("shop/web-admin")
        assert client.http("http://shop/web:8080/").outcome in Outcome.REFUSED
        assert client.http("http://xshop/a:80/").outcome is Outcome.OK
        without = replace(
            lab.mesh, authorization_policies=(), pods=tuple(pod for pod in lab.mesh.pods if pod.key != "xshop/a")
        )
        lab.restart_control_plane(without)
        assert client.http("http://shop/web:8080/").outcome is Outcome.OK, "the policy is gone"
        to_nobody = client.plan_http(f"http://{lab.topology.mesh.pod('xshop/a').ipv4}:80/")
        assert lab.calls([to_nobody])[0].outcome is not Outcome.OK, "HBONE to a workload that nobody knows any more"


def test_a_refused_configuration_is_rolled_back(policies: Lab) -> None:
    policies.apply(DENY_8080)
    client = policies.pod("shop/web-admin")
    nack = policies.push_raw("istio.security.Authorization", "shop/mangled", b"\xff\xff\xff")
    assert "shop/mangled" in nack
    assert client.http("http://shop/web:8080/").outcome in Outcome.REFUSED, "what was in effect before still is"
    policies.delete(DENY_8080)
    assert client.http("http://shop/web:8080/").outcome is Outcome.OK, "and can be changed"


def test_what_a_proxy_refuses_to_change_it_keeps_though_nobody_sends_it_again(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    """Istio does not resend after a NACK, so a proxy that drops what it had is open until the next push."""
    with lab_factory(LAB, after_nack="leave") as lab:
        lab.apply(DENY_8080)
        client = lab.pod("shop/web-admin")
        assert "shop/flip" in lab.push_raw("istio.security.Authorization", "shop/flip", b"\xff\xff\xff")
        assert client.http("http://shop/web:8080/").outcome in Outcome.REFUSED, "the version before is still enforced"
        assert client.http("http://shop/web:80/").outcome is Outcome.OK
        lab.delete(DENY_8080)
        assert client.http("http://shop/web:8080/").outcome is Outcome.OK
