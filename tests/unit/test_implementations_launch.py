"""What a ztunnel is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshlab.implementations import Binary, NodeSlot, Reference, environment

SLOT = NodeSlot(
    node="node-1",
    xds_address="100.64.0.1:15012",
    ca_root_pem="-----BEGIN",
    token="secret",  # noqa: S106
    instance_ip="100.64.1.2",
)
BINARY = Binary("istio", Path("/opt/ztunnel"))


def test_a_binary_is_run_as_istio_runs_it() -> None:
    launch = BINARY.launch(SLOT)
    assert launch.argv == ("/opt/ztunnel", "proxy", "ztunnel")
    assert launch.entry is None


def test_the_reference_is_a_warm_python_program() -> None:
    launch = Reference().launch(SLOT)
    assert launch.entry == "meshlab.ztunnel.main:main"
    assert launch.argv == ()


def test_a_mutant_of_the_reference_is_only_another_entry() -> None:
    mutant = Reference(entry="m:main").launch(SLOT)
    assert replace(mutant, entry=None) == replace(Reference().launch(SLOT), entry=None)


def test_reference_and_binary_read_the_same_environment() -> None:
    assert BINARY.launch(SLOT).env == Reference().launch(SLOT).env


@pytest.mark.parametrize("name", ["XDS_ROOT_CA", "CA_ROOT_CA", "AUTH_TOKEN"])
def test_roots_and_token_are_literals_and_never_a_file(name: str) -> None:
    assert environment(SLOT)[name] in (SLOT.ca_root_pem, SLOT.token)
    assert BINARY.launch(SLOT).files == {}


def test_the_node_is_named_so_that_certificates_come_before_the_first_call() -> None:
    assert environment(SLOT)["NODE_NAME"] == "node-1"


def test_the_proxy_is_not_told_that_it_is_a_pod() -> None:
    assert not environment(SLOT).keys() & {"POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"}


def test_access_lines_are_logged_as_json() -> None:
    env = environment(SLOT)
    assert env["LOG_FORMAT"] == "json"
    assert "access=debug" in env["RUST_LOG"].split(",")
    assert BINARY.launch(SLOT).access_log == "istio-json"
