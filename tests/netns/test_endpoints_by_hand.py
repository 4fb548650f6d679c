"""A Service without a selector leads to the pods whose addresses somebody wrote down, also when they change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: by-hand}
spec:
  nodes: [node-1, node-2]
  pods:
    data/first: {ips: [10.1.2.3], ports: [5432], node: node-1}
    data/second: {ips: [10.1.2.4], ports: [5432], node: node-1}
    apps/client: {node: node-2, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: data, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: pg, namespace: data}
spec: {ports: [{port: 5432, targetPort: 5432}]}
"""
ENDPOINTS = """
apiVersion: v1
kind: Endpoints
metadata: {name: pg, namespace: data}
subsets: [{addresses: [{ip: %s}], ports: [{port: 5432}]}]
"""


def test_calls_reach_the_pod_whose_address_was_written_down(lab_factory: LabFactory) -> None:
    with lab_factory(f"{TOPOLOGY}---{ENDPOINTS % '10.1.2.3'}") as lab:
        client = lab.pod("apps/client")
        with lab.capture() as capture:
            call = client.http("http://pg.data:5432/")
        assert call.peer is not None
        assert call.peer.pod == "data/first"
        capture.prove_encrypted(call)
        lab.apply(ENDPOINTS % "10.1.2.4")
        moved = client.http("http://pg.data:5432/")
        assert moved.peer is not None
        assert moved.peer.pod == "data/second"


def test_an_address_that_is_no_pods_leads_nowhere(lab_factory: LabFactory) -> None:
    with lab_factory(f"{TOPOLOGY}---{ENDPOINTS % '10.1.2.9'}") as lab:
        assert not lab.pod("apps/client").http("http://pg.data:5432/").answered
        assert lab.pod("apps/client").http("http://data%2Ffirst:5432/").answered
