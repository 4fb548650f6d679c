"""What any right data plane does with connections that are open, with addresses, and with what it refuses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
from odd_planes import WITHOUT_A_SECOND_SENDING, WITHOUT_CONFIGURATION
from open_connections import (
    DEADLINE_S,
    DENY_CLIENT,
    DENY_PORTS,
    FIRST_WORDS,
    LAB,
    STRICT,
    connected,
    echoed,
    is_cut_by_a_policy,
    is_cut_while_its_app_is_dialled,
    is_denied_after_a_version_was_refused,
    is_lifted_by_a_namesake,
    keeps_its_first_action,
    open_to,
    reaches_loopback,
    readiness,
    says_in_plaintext,
)

from meshlab.model import FAMILIES, Family, Mesh, Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

LabFactory = Callable[..., AbstractContextManager["Lab"]]
pytestmark = pytest.mark.meshlab_dataplane


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    """One lab for the module; every test leaves it without policies."""
    with lab_factory(LAB) as lab:
        yield lab


@pytest.fixture
def mesh(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.replace(Mesh())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-plaintext"])
def test_the_app_sees_its_clients_own_address(mesh: Lab, source: str, family: Family) -> None:
    call = mesh.pod(source).http("http://shop/far:8080/", family=family)
    assert call.outcome is Outcome.OK
    assert call.peer is not None
    assert call.peer.address == mesh.pod(source).pod.address(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_service_is_spread_over_its_endpoints_on_both_nodes(mesh: Lab, family: Family) -> None:
    client = mesh.pod("shop/client")
    calls = mesh.calls([client.plan_http("http://server:80/", family=family) for _ in range(40)])
    assert {call.outcome for call in calls} == {Outcome.OK}
    assert {call.peer.pod for call in calls if call.peer} == {"shop/near", "shop/far"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-plaintext"])
def test_an_app_that_listens_on_loopback_is_its_own_pods(mesh: Lab, source: str, family: Family) -> None:
    assert not reaches_loopback(mesh, source, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [8080, 443])
def test_a_service_has_no_port_but_those_that_it_declares(mesh: Lab, port: int, family: Family) -> None:
    """Its pods listen on one of these."""
    [service] = mesh.mesh.services
    address = service.address(family)
    host = f"[{address}]" if family == 6 else str(address)
    call = mesh.pod("shop/client").http(f"http://{host}:{port}/")
    assert not call.answered


def test_a_policy_is_known_by_its_namespace_too(mesh: Lab) -> None:
    assert not is_lifted_by_a_namesake(mesh)


def test_a_policy_that_comes_with_another_action_has_that_one(mesh: Lab) -> None:
    assert not keeps_its_first_action(mesh)


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS)
def test_strict_is_strict_whatever_a_plaintext_client_says_first(mesh: Lab, words: bytes) -> None:
    assert says_in_plaintext(mesh, words), "in permissive mode it gets through"
    mesh.apply(STRICT)
    assert not says_in_plaintext(mesh, words)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [9999, 15001, 15006, 15008, 15053])
def test_nobody_gets_through_to_a_port_without_an_app_or_of_the_proxys_own(
    mesh: Lab, port: int, family: Family
) -> None:
    far = mesh.pod("shop/far").pod.address(family)
    host = f"[{far}]" if family == 6 else str(far)
    for source in ("shop/client", "out/plain"):
        call = mesh.pod(source).http(f"http://{host}:{port}/")
        if (source, port) == ("out/plain", 15008):
            assert b"HTTP" not in call.body, "it speaks TLS there, and may say with an alert what it thinks of HTTP"
        else:
            assert call.outcome in Outcome.REFUSED, source


def test_an_app_that_ends_first_still_receives_all_of_the_answer(mesh: Lab) -> None:
    data = bytes(range(256)) * (3 << 12)
    call = mesh.pod("shop/client").tcp("shop/far:8080", data=data, half_close=True, timeout_s=20)
    assert call.outcome is Outcome.OK
    assert call.body.endswith(data)


# --- connections that are open while a policy comes ------------------------------------------------------------------


def test_a_new_policy_cuts_what_it_denies_and_only_that(mesh: Lab) -> None:
    with (
        open_to(mesh, "shop/client", "shop/far", 8080) as denied,
        open_to(mesh, "shop/other", "shop/far", 8080) as allowed,
    ):
        mesh.apply(DENY_CLIENT)
        assert denied.recv(1) == b""
        assert echoed(allowed, b"alive")
    assert mesh.pod("shop/client").http("http://shop/far:8080/").outcome in Outcome.REFUSED
    assert mesh.pod("shop/other").http("http://shop/far:8080/").outcome is Outcome.OK


@pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-plaintext"])
def test_an_open_connection_is_cut_by_a_policy_that_denies_it(mesh: Lab, source: str) -> None:
    assert is_cut_by_a_policy(mesh, source)


@pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-plaintext"])
def test_a_policy_that_comes_while_the_app_is_dialled_cuts_the_connection(mesh: Lab, source: str) -> None:
    assert is_cut_while_its_app_is_dialled(mesh, source)


# --- configuration ---------------------------------------------------------------------------------------------------


def test_a_version_that_is_refused_leaves_the_one_before_in_effect(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, **WITHOUT_A_SECOND_SENDING) as lab:
        assert is_denied_after_a_version_was_refused(lab)
        lab.delete(DENY_PORTS)
        assert lab.pod("shop/client").http("http://shop/far:8080/").outcome is Outcome.OK, "it was the policy"


def test_a_proxy_that_serves_its_pods_says_on_15021_that_it_is_ready(mesh: Lab) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while {readiness(mesh, node) for node in ("node-1", "node-2")} != {200}:
        assert time.monotonic() < deadline


def test_a_proxy_without_any_configuration_does_not_say_that_it_is_ready(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, **WITHOUT_CONFIGURATION) as lab:
        assert 200 not in {readiness(lab, node) for node in ("node-1", "node-2")}


# --- addresses -------------------------------------------------------------------------------------------------------


def test_a_call_to_an_ipv4_mapped_address_is_ipv4_on_the_wire_and_tunnelled_as_such(mesh: Lab) -> None:
    """Linux sends IPv4 for ``::ffff:10.0.0.1``; only an identity can tell client and other apart."""
    mesh.apply(DENY_CLIENT)
    mapped = f"::ffff:{mesh.pod('shop/far').ipv4}"
    with (
        connected(mesh, "shop/other", mapped, 8080, socket.AF_INET6) as allowed,
        connected(mesh, "shop/client", mapped, 8080, socket.AF_INET6) as denied,
    ):
        assert echoed(allowed, b"hello")
        assert not echoed(denied, b"hello")
