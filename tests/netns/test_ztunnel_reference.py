"""The reference ztunnel in a lab: what an app can tell of it, and what it does when it is told to stop."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from meshlab.model import FAMILIES, Family, Mesh, Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: reference}
spec:
  nodes: [{name: node-1, ztunnel: reference}, {name: node-2, ztunnel: reference}]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/near: {node: node-1, ports: [8080], serviceAccount: server, labels: {app: server}}
    shop/far: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
    out/plain: {node: node-2, ports: [8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""
DEADLINE_S = 10.0
LabFactory = Callable[..., AbstractContextManager["Lab"]]


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    """One lab for the module; every test leaves it without policies."""
    with lab_factory(LAB) as lab:
        yield lab


@pytest.fixture
def mesh(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.replace(Mesh())


def _connected(lab: Lab, source: str, to: str, port: int) -> socket.socket:
    """A raw connection that the far app has answered once, so that it is open from end to end."""
    netns = f"pod:{source}"
    (sock,) = lab.site.open_sockets([(netns, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)])
    sock.settimeout(DEADLINE_S)
    sock.connect((str(lab.pod(to).ipv4), port))
    assert _echoed(sock, b"open")
    return sock


def _echoed(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        more = sock.recv(1 << 16)
        if not more:
            return False
        got += more
    return got == data


def _records(lab: Lab, node: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The access log of a node proxy, read until there is enough of it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        records = [json.loads(line) for line in lab.logs(f"ztunnel@{node}").splitlines() if line.startswith("{")]
        complete = [record for record in records if record["message"] == "connection complete"]
        if enough(complete):
            return complete
        assert time.monotonic() < deadline, complete


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-clear"])
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
@pytest.mark.parametrize("port", [9999, 15001, 15006, 15008, 15053])
def test_nobody_gets_through_to_a_port_without_an_app_or_of_ztunnels_own(mesh: Lab, port: int, family: Family) -> None:
    far = mesh.pod("shop/far").pod.address(family)
    host = f"[{far}]" if family == 6 else str(far)
    for source in ("shop/client", "out/plain"):
        call = mesh.pod(source).http(f"http://{host}:{port}/")
        assert call.outcome in Outcome.REFUSED, source


def test_an_app_that_ends_first_still_hears_all_of_the_answer(mesh: Lab) -> None:
    data = bytes(range(256)) * (3 << 12)
    call = mesh.pod("shop/client").tcp("shop/far:8080", data=data, half_close=True, timeout_s=20)
    assert call.outcome is Outcome.OK
    assert call.body.endswith(data)


def test_a_new_policy_cuts_what_it_denies_and_only_that(mesh: Lab) -> None:
    with (
        _connected(mesh, "shop/client", "shop/far", 8080) as denied,
        _connected(mesh, "shop/other", "shop/far", 8080) as allowed,
    ):
        mesh.apply(DENY)
        assert denied.recv(1) == b""
        assert _echoed(allowed, b"alive")
    assert mesh.pod("shop/client").http("http://shop/far:8080/").outcome in Outcome.REFUSED
    assert mesh.pod("shop/other").http("http://shop/far:8080/").outcome is Outcome.OK


def test_calls_of_one_pod_share_a_connection_and_those_of_two_never_do(mesh: Lab) -> None:
    client, other = mesh.pods("shop/client", "shop/other")
    asked = [pod.plan_http("http://shop/far:8080/") for pod in (client, other) for _ in range(10)]
    assert {call.outcome for call in mesh.calls(asked)} == {Outcome.OK}

    def addresses(records: list[dict[str, Any]], who: str) -> list[str]:
        mine = [r for r in records if r["src.identity"].endswith(f"/sa/{who}") and r["direction"] == "inbound"]
        return [record["src.addr"] for record in mine][-10:]

    def enough(records: list[dict[str, Any]]) -> bool:
        tunnelled = [record for record in records if "src.identity" in record]
        return all(len(addresses(tunnelled, who)) >= 10 for who in ("client", "other"))

    records = [r for r in _records(mesh, "node-2", enough) if "src.identity" in r]
    assert len(set(addresses(records, "client"))) == 1
    assert len(set(addresses(records, "other"))) == 1
    assert not set(addresses(records, "client")) & set(addresses(records, "other"))


def test_a_refusal_is_logged_with_its_reason_at_both_ends(mesh: Lab) -> None:
    mesh.apply(DENY)
    mesh.pod("shop/client").http("http://shop/far:8080/")

    def errors(records: list[dict[str, Any]]) -> set[str]:
        return {record["error"] for record in records if record.get("error")}

    here = "http status: 401 Unauthorized"
    there = "connection closed due to policy rejection: explicitly denied by: shop/no-client"
    _records(mesh, "node-1", lambda records: here in errors(records))
    _records(mesh, "node-2", lambda records: there in errors(records))


def test_sigterm_lets_open_connections_go_on_takes_no_new_ones_and_ends_in_order(lab_factory: LabFactory) -> None:
    with lab_factory(LAB) as lab:
        programs = lab.site.programs
        ztunnel = programs.by_name["ztunnel@node-2"]
        with _connected(lab, "shop/client", "shop/far", 8080) as old:
            programs.end(ztunnel.name, signal.SIGTERM)
            request = lab.pod("shop/client").plan_http("http://shop/far:8080/", timeout_s=2)
            deadline = time.monotonic() + DEADLINE_S
            while lab.calls([request])[0].outcome is Outcome.OK:
                assert time.monotonic() < deadline
            assert _echoed(old, b"still here")
        assert lab.sandbox.wait_exit(ztunnel.pid, DEADLINE_S) == 0
