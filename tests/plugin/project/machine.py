"""A state machine of a downstream project: right on any right proxy, and told with a file where a proxy is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from meshlab.fuzz.machine import MeshMachine

if TYPE_CHECKING:
    from meshlab.pytest_plugin import LabFactory

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: changing}
spec:
  nodes: [node-1]
  images: {echo: {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-1, ports: [8080], serviceAccount: server}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
QUICK: dict[str, Any] = {
    "stateful_step_count": 8,
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": [Phase.generate],
}


class Shop(MeshMachine):
    topology = TEXT


class OfTheFile(MeshMachine):
    topology = "mesh.yaml"


TestOfItsOwn = OfTheFile.TestCase
TestOfItsOwn.settings = settings(max_examples=2, **QUICK)


def test_a_shared_lab(lab_factory: LabFactory) -> None:
    with lab_factory(TEXT) as lab:
        run_state_machine_as_test(Shop.on(lab), settings=settings(max_examples=20, **QUICK))


def test_a_lab_in_which_no_pod_can_come(lab_factory: LabFactory) -> None:
    with lab_factory("mesh.yaml") as lab, pytest.raises(Exception, match=r"add `images: \{echo: \{\}\}`"):
        Shop.on(lab)
