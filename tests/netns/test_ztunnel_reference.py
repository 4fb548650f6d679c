"""The reference ztunnel in a lab, where it promises more than any right data plane must (that is ``test_dataplane_*``).

It says in its access log what it did, shares connections, ends in order, and heeds a policy's selector at once.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from open_connections import DEADLINE_S, DENY_CLIENT, LAB, echoed, open_to

from meshlab.model import FAMILIES, Family, Mesh, Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

SELECTING = DENY_CLIENT.replace("  action: DENY", "  selector: {matchLabels: {app: server}}\n  action: DENY")
LabFactory = Callable[..., AbstractContextManager["Lab"]]
FIRST_PORT_OF_APPS = 32768
"""Of ip_local_port_range in a new network namespace."""


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    """One lab for the module; every test leaves it without policies."""
    with lab_factory(LAB, ztunnel="reference") as lab:
        yield lab


@pytest.fixture
def mesh(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.replace(Mesh())


def _records(lab: Lab, node: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The access log of a node proxy, read until there is enough of it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        records = [json.loads(line) for line in lab.logs(f"ztunnel@{node}").splitlines() if line.startswith("{")]
        complete = [record for record in records if record["message"] == "connection complete"]
        if enough(complete):
            return complete
        assert time.monotonic() < deadline, complete


def test_a_policy_with_a_selector_cuts_connections_that_were_open_before_their_workload_listed_it(mesh: Lab) -> None:
    with (
        open_to(mesh, "shop/client", "shop/far", 8080) as denied,
        open_to(mesh, "shop/other", "shop/far", 8080) as allowed,
    ):
        mesh.apply(SELECTING)
        assert denied.recv(1) == b""
        assert echoed(allowed, b"alive")


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
    mesh.apply(DENY_CLIENT)
    mesh.pod("shop/client").http("http://shop/far:8080/")

    def errors(records: list[dict[str, Any]]) -> set[str]:
        return {record["error"] for record in records if record.get("error")}

    here = "http status: 401 Unauthorized"
    there = "connection closed due to policy rejection: explicitly denied by: shop/no-client"
    _records(mesh, "node-1", lambda records: here in errors(records))
    _records(mesh, "node-2", lambda records: there in errors(records))


def test_sigterm_lets_open_connections_go_on_takes_no_new_ones_and_ends_in_order(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        programs = lab.site.programs
        ztunnel = programs.by_name["ztunnel@node-2"]
        with open_to(lab, "shop/client", "shop/far", 8080) as old:
            programs.end(ztunnel.name, signal.SIGTERM)
            request = lab.pod("shop/client").plan_http("http://shop/far:8080/", timeout_s=2)
            deadline = time.monotonic() + DEADLINE_S
            while lab.calls([request])[0].outcome is Outcome.OK:
                assert time.monotonic() < deadline
            assert echoed(old, b"still here")
        assert lab.sandbox.wait_exit(ztunnel.pid, DEADLINE_S) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_passes_in_plaintext_to_nobody_does_not_take_an_apps_port(
    lab_factory: LabFactory, family: Family
) -> None:
    """An app that came to such a port later would not be redirected, and would talk to the next pod in plaintext."""
    with lab_factory("two-nodes", ztunnel="reference") as lab:
        server = lab.mesh.pod("shop/server")
        url = f"http://{server.address(family)}:8080/" if family == 4 else f"http://[{server.address(family)}]:8080/"
        lab.delete("{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop}}")
        with lab.capture() as capture:
            call = lab.pod("shop/client").http(url)
        assert not call.answered
        ports = {flow.source_port for flow in capture.window.flows if flow.destination_port == 8080}
        assert ports, "it passes on what is for nobody"
        assert max(ports) < FIRST_PORT_OF_APPS
