"""Steps of a file that are no call of one kind: a resource that has to be refused, many calls at once, slow traffic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.lab.sources import Source
from meshlab.model import PushStep, Topology
from meshlab.play.replay import Word, replay
from meshlab.topology import load

FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: steps}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
  steps:
    STEPS
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
"""
POD = """{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: shop, labels: {app: server}},
      spec: {nodeName: node-1, containers: [{name: c, image: any, ports: [{containerPort: 8080}]}]}}"""
DENY = """{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: no-client, namespace: shop},
      spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}}"""
REFUSED = f"""- apply: [{DENY}]
    - push: {{type: istio.security.Authorization, name: shop/mangled, body: ////}}
    - {{call: {{from: shop/client, to: "shop/server:8080"}}, expect: deny}}"""
GONE = f"""- apply: [{POD}]
    - delete: [{POD}]
    - {{call: {{from: shop/client, to: "server.shop:80", times: 8}}, expect: allow}}"""
UPGRADED = """- traffic:
        pairs: [[shop/client, "http://shop%2Fserver:8080/?delay=200ms"]]
        rate: 20
        during: [{upgrade: {ztunnel@node-1: same}}]
      expect: {failed_new: 0}"""


def _file(steps: str) -> Topology:
    return load(FILE.replace("STEPS", steps), "steps.yaml")


@pytest.mark.parametrize(
    ("steps", "mutant"),
    [
        (REFUSED, "loses-a-policy-at-a-nack"),
        (GONE, "calls-deleted-endpoints"),
        (UPGRADED, "drops-at-drain"),
    ],
    ids=["push", "times", "slow calls"],
)
def test_a_step_tells_a_mutant_from_the_reference_in_every_run(steps: str, mutant: str) -> None:
    source = Source(_file(steps), None)
    assert replay(source, runs=3).word is Word.FIXED
    assert replay(source, runs=3, mutant=mutant).word is Word.FAILED


def test_what_should_be_refused_and_is_accepted_is_wrong() -> None:
    topology = _file(REFUSED)
    an_allow = b"\x0a\x03raw\x12\x04shop"  # its name and namespace
    steps = (PushStep(type_name="istio.security.Authorization", name="shop/raw", body=an_allow),)
    played = replay(Source(replace(topology, steps=steps), None), runs=2)
    assert played.word is Word.FAILED
    assert played.reasons == (
        "istio.security.Authorization shop/raw should be refused, and every node proxy has accepted it",
    )
