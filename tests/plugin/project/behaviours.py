"""Tests as users write them, good and bad ones. Run by the tests about the plug-in, as ``test_behaviours.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from meshlab import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshlab.lab import Lab
    from meshlab.pytest_plugin import LabFactory

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: from-text}
spec:
  nodes: [node-1]
  pods: {plain/alone: {node: node-1}}
"""
NO_INTRUDERS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-intruders, namespace: shop}
"""
HOSTS = {
    "at home": ("user namespaces are off here: run as root", ""),
    "in CI": ("user namespaces are off here: run as root", "true"),
    "in CI, and allowed": ("this kernel is too old for a lab", "true"),
}


# --- that hold -------------------------------------------------------------------------------------------------------


@pytest.mark.meshlab("two-nodes")
@pytest.mark.meshlab_dataplane
def test_a_policy_holds(lab: Lab) -> None:
    client, intruder = lab.pods("shop/client", "shop/intruder")
    with lab.capture() as capture:
        allowed = client.http("http://server:8080/hello")
        denied = intruder.http("http://server:8080/hello")
    assert allowed.status == 200
    assert denied.outcome in Outcome.REFUSED
    capture.prove_encrypted(allowed)
    capture.prove_denied(denied, twin=allowed)
    capture.prove_identity(allowed, client.identity)


@pytest.mark.meshlab("mesh.yaml")
def test_a_path_starts_at_the_tests_folder(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lab.topology.name == "one-node"


@pytest.mark.meshlab(TEXT)
def test_yaml_text(lab: Lab) -> None:
    assert lab.topology.name == "from-text"


def test_no_marker_means_the_ini_files_topology(lab: Lab) -> None:
    assert lab.topology.name == "one-node"


@given(path=st.sampled_from(["/a", "/b"]))
@settings(max_examples=2, deadline=None)
def test_a_property_with_a_lab_for_each_example(lab_factory: LabFactory, path: str) -> None:
    with lab_factory("mesh.yaml") as lab:
        assert lab.pod("shop/client").http(f"http://server:8080{path}").outcome is Outcome.OK


def test_an_error_that_is_expected_leaves_nothing(lab_factory: LabFactory) -> None:
    with pytest.raises(ZeroDivisionError), lab_factory(Path(__file__).with_name("mesh.yaml")):
        raise ZeroDivisionError


@pytest.mark.meshlab(TEXT)
@pytest.mark.xfail(strict=True)
def test_a_failure_that_is_expected_leaves_nothing(lab: Lab) -> None:
    assert not lab.pods()


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(TEXT) as lab:
        yield lab


def test_a_shared_lab_lives(shared: Lab) -> None:
    assert shared.pod("plain/alone").exec("true").status == 0


# --- that fail -------------------------------------------------------------------------------------------------------


@pytest.mark.meshlab("two-nodes")
def test_an_assertion_fails(lab: Lab) -> None:
    lab.delete(NO_INTRUDERS)
    with lab.capture():
        assert lab.pod("shop/intruder").http("http://server:8080/hello").outcome in Outcome.REFUSED


@given(number=st.integers(0, 1))
@settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate])
def test_a_property_fails(lab_factory: LabFactory, number: int) -> None:
    with lab_factory(TEXT) as lab:
        assert not lab.pods(), number


def test_a_shared_lab_is_saved_too(shared: Lab) -> None:
    assert not shared.pods()


@pytest.mark.meshlab("mesh.yaml")
def test_the_ztunnel_is_killed(lab: Lab) -> None:
    _kill(lab, "ztunnel@node-1")


@pytest.mark.meshlab("mesh.yaml")
def test_the_ztunnel_is_killed_and_a_call_fails(lab: Lab) -> None:
    _kill(lab, "ztunnel@node-1")
    assert lab.pod("shop/client").http("http://server:8080/", timeout_s=1).outcome is Outcome.OK


@pytest.mark.meshlab("two-nodes")
def test_a_denial_without_a_twin(lab: Lab) -> None:
    with lab.capture() as capture:
        denied = lab.pod("shop/intruder").http("http://server:8080/hello")
    capture.prove_denied(denied)


# --- that cannot run -------------------------------------------------------------------------------------------------


@pytest.mark.meshlab(TEXT.replace("nodes:", "nodez:"))
def test_a_misspelt_key(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


@pytest.mark.meshlab("two-nods")
def test_a_misspelt_name(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


def test_a_misspelt_name_given_to_the_factory(lab_factory: LabFactory) -> None:
    with lab_factory("two-nods") as lab:
        raise AssertionError(f"{lab} should not be")


@pytest.mark.meshlab(TEXT.replace("{node: node-1}", "{image: acme/proxy}"))
def test_an_image_without_a_program(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


@pytest.mark.meshlab("mesh.yaml", ready_timeout=1)
def test_a_misspelt_setting(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


@pytest.mark.meshlab("mesh.yaml", ztunnel="none")
def test_no_ztunnel(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


@pytest.mark.parametrize("_host_that_is_not_ready", HOSTS.values(), ids=HOSTS.keys(), indirect=True)
@pytest.mark.usefixtures("_host_that_is_not_ready")
def test_a_host_that_can_hold_no_lab(lab: Lab) -> None:
    raise AssertionError(f"{lab} should not be")


def _kill(lab: Lab, name: str) -> None:
    program = lab.site.programs.by_name[name]
    lab.sandbox.kill(program.pid, 9)
    lab.sandbox.wait_exit(program.pid, 5)
