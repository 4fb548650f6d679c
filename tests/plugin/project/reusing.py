"""Tests that leave their lab in disorder, and look whether it is as new: each says which lab it got, by its root."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshlab.lab import Lab
    from meshlab.pytest_plugin import LabFactory

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
"""
CLIENT = "{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop}}"
OTHER = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: other}
spec:
  nodes: [node-1]
  pods: {shop/client: {node: node-1}}
"""


def _is_as_new(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    record_property("root", hashlib.sha256(lab.ca.cert_pem.bytes()).hexdigest())
    assert [pod.key for pod in lab.mesh.pods] == ["shop/client", "shop/server"]
    assert lab.mesh.authorization_policies == ()
    assert lab.pod("shop/client").exec("cat", "/tmp/left").status == 1  # noqa: S108
    assert lab.told() == []
    assert lab.last_capture is None
    assert lab.pod("shop/client").http("http://shop%2Fserver:8080/").ok


def test_1_pods_policies_and_files_change(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    _is_as_new(lab, record_property)
    lab.pod("shop/client").exec("sh", "-c", "echo something > /tmp/left")
    lab.namespace("shop").label({"istio.io/dataplane-mode": None})
    lab.apply(DENY)


def test_2_programs_are_ended_and_paused(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    _is_as_new(lab, record_property)
    with lab.capture():
        lab.pod("shop/client").connect("shop/server:8080").ask()
    lab.instance("ztunnel@node-1").kill()
    lab.instance("control-plane").kill()
    lab.instance("agent@node-1").pause()


def test_3_fails(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    _is_as_new(lab, record_property)
    pytest.fail("on purpose")


def test_4_has_another_lab(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    _is_as_new(lab, record_property)
    lab.delete(CLIENT)


@pytest.mark.meshlab(OTHER)
def test_5_of_another_topology(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    record_property("root", hashlib.sha256(lab.ca.cert_pem.bytes()).hexdigest())


def test_6_a_lab_is_given_back_and_the_test_fails(
    lab_factory: LabFactory, record_property: Callable[[str, Any], None]
) -> None:
    with lab_factory("mesh.yaml") as lab:
        _is_as_new(lab, record_property)
    pytest.fail("on purpose")


def test_7_has_a_third_lab(lab: Lab, record_property: Callable[[str, Any], None]) -> None:
    _is_as_new(lab, record_property)
