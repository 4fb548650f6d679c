"""What should become of a connection that is held open, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.lab.calls.fates import Fates, fates
from meshlab.model import ConnectStep, Topology
from meshlab.play.moments import expecting
from meshlab.topology import load

FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: held}
spec:
  nodes: [node-1, node-2, node-3]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [80], serviceAccount: server}
  steps:
    - {connect: {from: shop/client, to: "shop/server:80", as: one}}
    - STEP
    - {ask: one, expect: alive}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
"""
DENY = """apply: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: no, namespace: shop},
      spec: {action: DENY, rules: [{to: [{operation: {ports: ["%s"]}}]}]}}]"""
GONE = "delete: [{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: shop}}]"
OUT = "apply: [{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: none}}}]"


def told(step: str) -> Topology:
    return load(
        FILE.replace("- STEP", f"- {{{step}}}" if not step.startswith(("apply", "delete")) else f"- {step}"), "x"
    )


@pytest.mark.parametrize(
    ("step", "alive"),
    [
        (DENY % 80, False),
        (DENY % 81, True),
        (GONE % "client", False),
        (GONE % "server", False),
        (OUT, None),
        ("restart: control-plane", True),
        ("restart: agent@node-2", True),
        ("pause: control-plane", None),
        ("restart: ztunnel@node-1", None),
        ("upgrade: {ztunnel@node-2: reference}", None),
        ("reboot: node-1", None),
        ("reboot: node-3", True),
        ("call: {from: shop/client, to: 'shop/server:80'}, expect: allow", True),
    ],
)
def test_what_a_step_does_to_it(step: str, alive: bool | None) -> None:
    topology = told(step)
    assert list(fates(topology)) == [(0, True), (2, alive)]
    judged = expecting(topology)
    if alive is None:
        assert judged is None, "whatever such a file expects, a right proxy may fail it"
    else:
        assert judged is not None
        assert getattr(judged.steps[2], "alive") is alive  # noqa: B009 - a step of some kind


def test_a_connection_that_policies_deny_is_no_connection_to_hold() -> None:
    topology = told(DENY % 80)
    first, second, third = topology.steps
    assert expecting(Topology(name="x", nodes=topology.nodes, mesh=topology.mesh, steps=(second, first, third))) is None


def test_nodes_on_which_nothing_can_be_open_are_not_named() -> None:
    topology = told("reboot: node-3")
    held, connect = Fates(), topology.steps[0]
    assert isinstance(connect, ConnectStep)
    assert held.nodes() == set()
    assert held.open(topology.mesh, connect)
    assert held.nodes() == {"node-1", "node-2"}
    held.live_through(topology.mesh, replace(topology.mesh, pods=topology.mesh.pods[:1]), topology.steps[1])
    assert held.nodes() == set()
