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
