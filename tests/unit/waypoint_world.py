"""A mesh with two Services behind a waypoint, made in Python, and what it says of a request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from meshlab.model import Backend, HttpRequest, HttpRule, Mesh, Route, SpiffeId, TcpRule
from meshlab.protocols.hbone import Refusal
from meshlab.proxykit.splice import Half
from meshlab.topology import load
from meshlab.waypoint.serving import Asked, Client, Known

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: routes}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/one: {node: node-2, ports: [8080], labels: {app: one}}
    shop/one-too: {node: node-2, ports: [8080], labels: {app: one}}
    shop/two: {node: node-1, ports: [8080], labels: {app: two}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop}
spec: {selector: {app: one}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 81, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: two}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
POLICY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: rules, namespace: shop}
spec: {targetRefs: [{kind: Service, group: "", name: one}], action: %s, rules: [%s]}
"""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ONE, TWO = Backend(service="one.shop", port=80), Backend(service="two.shop", port=80)
CLIENT = SpiffeId("cluster.local", "shop", "client")


def mesh(*rules: HttpRule, policies: str = "") -> Mesh:
    """With one route for port 80 of ``one.shop``, where there are rules for it."""
    made = load(TEXT + policies, "routes").mesh
    route = Route(kind="HTTPRoute", name="r", namespace="shop", services=(("one.shop", 80),), rules=rules)
    return replace(made, routes=(route,) if rules else ())


def routing_tcp(*rules: TcpRule) -> Known:
    """One with a route for what is not read of ``one.shop``."""
    made = mesh()
    route = Route(kind="VirtualService", name="r", namespace="shop", services=(("one.shop", None),), tcp=rules)
    return Known("shop/gate", replace(made, routes=(route,)))


def known(*rules: HttpRule, policies: str = "", **fields: Any) -> Known:
    return Known("shop/gate", mesh(*rules, policies=policies), **fields)


def asked(known: Known, service: str = "one.shop", port: int = 80) -> Asked:
    address = next(each.ipv4 for each in known.mesh.services if each.key == service)
    found = known.asked(f"{address}:{port}")
    assert not isinstance(found, Refusal)
    return found


def client(known: Known, identity: SpiffeId = CLIENT) -> Client:
    return Client(identity, known.mesh.pod("shop/client").ipv4)


def request(path: str = "/", headers: Sequence[tuple[str, str]] = (), **fields: Any) -> HttpRequest:
    return HttpRequest(path=path, authority="one.shop", headers=tuple(headers), **fields)


async def pair() -> tuple[Half, Streams]:
    """A waypoint's side of a connection, and the far end of it."""
    near, far = socket.socketpair()
    _, half = await asyncio.get_running_loop().create_connection(Half, sock=near)
    return half, await asyncio.open_connection(sock=far)
