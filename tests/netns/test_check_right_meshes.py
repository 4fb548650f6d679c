"""Small right meshes of every shape hold: few pods and many, one node and three, Services that select nobody."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from meshlab.lab.proving import check
from meshlab.lab.sources import read
from meshlab.model.report import Result


def _pod(choices: random.Random, place: int, nodes: list[str]) -> dict[str, Any]:
    pod: dict[str, Any] = {"labels": {"app": f"a{place % 2}"}}
    if place == 0 or choices.random() < 0.7:
        pod["ports"] = choices.sample((80, 5432, 8080, 9090), choices.randint(1, 2))
    if choices.random() < 0.5:
        pod["node"] = choices.choice(nodes)
    if choices.random() < 0.5:
        pod["serviceAccount"] = f"sa{place}"
    return pod


def _namespace(choices: random.Random, name: str) -> dict[str, Any]:
    labels = {"istio.io/dataplane-mode": choices.choice(("ambient", "ambient", "none"))}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _service(choices: random.Random) -> dict[str, Any]:
    selector = {"app": choices.choice(("a0", "a1", "nobody"))}
    ports = [{"port": 80, "targetPort": choices.choice((80, 8080, 7777))}]
    metadata = {"name": "s", "namespace": "x"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": selector, "ports": ports}}


def _mesh(seed: int) -> str:
    choices = random.Random(seed)  # noqa: S311 - a mesh, no secret
    nodes = [f"n{number}" for number in range(choices.choice((1, 2, 3)))]
    names = [f"{choices.choice(('x', 'x', 'y'))}/p{place}" for place in range(choices.randint(2, 6))]
    pods = {name: _pod(choices, place, nodes) for place, name in enumerate(names)}
    lab = {"apiVersion": "meshlab.dev/v1alpha1", "kind": "Lab", "metadata": {"name": "shape"}}
    namespaces = [_namespace(choices, name) for name in sorted({name.partition("/")[0] for name in names})]
    services = [_service(choices)] if choices.random() < 0.6 else []
    documents = [{**lab, "spec": {"nodes": nodes, "pods": pods}}, *namespaces, *services]
    return "\n---\n".join(map(json.dumps, documents)) + "\n"


@pytest.mark.parametrize("seed", range(6))
def test_every_cell_of_a_right_mesh_holds_and_every_proof_about_a_call(seed: int) -> None:
    report = check.run(read(_mesh(seed)).topology)
    wrong = [cell for cell in report.cells if cell.result is not Result.HELD]
    unproven = [proof for proof in report.proofs if proof.result is not Result.HELD]
    assert (wrong, unproven, report.audit) == ([], [], ())


WAYPOINT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: protocols}
spec: {pods: {x/client: {}, x/server: {ports: [8080], labels: {app: s}}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels:
  {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gate, namespace: x}, spec:
  {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: x}
spec:
  selector: {app: s}
  ports:
"""
PROTOCOLS = ("http", "http2", "grpc", "tcp", "https", "mongo", "kubernetes.io/h2c", "kubernetes.io/ws", "own/protocol")


@pytest.mark.parametrize("waypoint", ["envoy", "reference"])
def test_behind_a_waypoint_a_port_may_declare_any_protocol(waypoint: str) -> None:
    ports = "".join(
        f"    - {{name: p{place}, appProtocol: {protocol}, port: {80 + place}, targetPort: 8080}}\n"
        for place, protocol in enumerate(PROTOCOLS)
    )
    report = check.run(read(WAYPOINT + ports).topology, waypoint=waypoint)
    wrong = [cell for cell in report.cells if cell.result is not Result.HELD]
    assert (wrong, report.audit) == ([], ())
    assert {cell.port for cell in report.cells if cell.request} == {80, 87}  # http, and WebSocket which begins as HTTP
