"""Conversations that are not one request and one answer, through both node proxies: they hold for any data plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshlab.model import Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: mail}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/mail: {node: node-2, ports: [{containerPort: 2525, mode: server-first}, 8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-other, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/other]}}]}]
"""

pytestmark = pytest.mark.meshlab_dataplane


@pytest.mark.meshlab(LAB)
def test_a_server_that_speaks_first_is_heard_and_a_denied_caller_hears_nothing(lab: Lab) -> None:
    client, other = lab.pods("shop/client", "shop/other")
    with lab.capture() as capture:
        greeted = client.tcp("shop/mail:2525", data=b"HELO\r\n")
        refused = other.tcp("shop/mail:2525", data=b"HELO\r\n")
    assert (greeted.outcome, greeted.body) == (Outcome.OK, b"HELO\r\n")
    assert refused.outcome in Outcome.REFUSED
    assert refused.body == b""
    capture.prove_encrypted(greeted)
    capture.prove_denied(refused, twin=greeted)


@pytest.mark.meshlab(LAB)
@pytest.mark.parametrize("family", [4, 6])
def test_a_half_closed_connection_still_carries_the_answer(lab: Lab, family: int) -> None:
    assert family in (4, 6)
    data = bytes(range(256)) * 1024
    call = lab.pod("shop/client").tcp("shop/mail:8080", data=data, half_close=True, family=4 if family == 4 else 6)
    assert call.outcome is Outcome.OK
    assert call.body == data
