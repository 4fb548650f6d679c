"""Pods that run programs of their own: who listens, what is an answer, and what the lab itself does to them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from meshlab import open_lab
from meshlab.lab import Lab
from meshlab.lab.proving import check
from meshlab.lab.sources import read
from meshlab.model import Outcome
from meshlab.model.report import Cell, CheckReport, Proof, Result
from meshlab.play.replay import play

SERVE = """
import socket, socketserver, sys
family, port, greeting, answer = getattr(socket, sys.argv[1]), int(sys.argv[2]), *(a.encode() for a in sys.argv[3:])
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        print("connected", flush=True)
        self.wfile.write(greeting)
        while self.rfile.readline():
            if not answer:
                return
            self.wfile.write(answer)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address = family, True
Server(("::" if family == socket.AF_INET6 else "0.0.0.0", port), Handler).serve_forever()
"""


def _run(port: int, greeting: str = "", answer: str = "", family: str = "AF_INET6") -> str:
    return json.dumps(["python3", "-c", SERVE, family, str(port), greeting, answer])


ALL_MAY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all-may, namespace: shop}
spec: {action: ALLOW, rules: [{}]}
"""
NOT_BAD = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-bad, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/bad]}}]}]}
"""


def _topology(server: str, more: str = "", steps: str = "[]") -> str:
    return f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: programs}}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {{node: node-1, serviceAccount: client}}
    shop/bad: {{node: node-1, serviceAccount: bad}}
    shop/server: {{node: node-2, {server}}}
  steps: {steps}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}
{more}"""


REDIS = f"ports: [6379], run: {_run(6379, answer='-ERR unknown command')}"
MYSQL = f"ports: [3306], run: {_run(3306, greeting='8.0.36 ready', answer='bye')}"
ONLY4 = f"ports: [9000], run: {_run(9000, answer='hello', family='AF_INET')}"
SILENT = f"ports: [5432], run: {_run(5432)}"


def _check(text: str, **settings: str) -> CheckReport:
    return check.run(read(text).topology, **settings)  # type: ignore[arg-type]


def _not_held(report: CheckReport) -> list[str]:
    rows: list[Cell | Proof] = [*report.cells, *report.proofs]
    return [f"{row.source} -> {row.to}: {row.reason}" for row in rows if row.result is not Result.HELD]


@pytest.fixture(scope="module")
def redis() -> Iterator[Lab]:
    with open_lab(_topology(REDIS, NOT_BAD)) as lab:
        yield lab


def test_a_lab_that_makes_no_call_connects_to_no_program() -> None:
    with open_lab(_topology(MYSQL)) as lab:
        assert lab.logs("shop/server") == ""


@pytest.mark.parametrize("server", [REDIS, MYSQL], ids=["speaks when spoken to", "speaks first"])
def test_a_program_that_is_no_http_holds_a_check_and_is_not_disturbed(server: str) -> None:
    report = _check(_topology(server))
    assert _not_held(report) == []
    assert report.audit == ()
    assert {cell.seen for cell in report.cells} == {"allow"}


def test_a_program_that_listens_over_ipv4_only_is_not_held_against_the_mesh() -> None:
    report = _check(_topology(ONLY4))
    assert _not_held(report) == []
    assert {cell.seen for cell in report.cells if cell.family == 4} == {"allow"}
    assert {cell.seen for cell in report.cells if cell.family == 6} == {"deny"}
    assert all("nobody listens there over IPv6" in cell.rule for cell in report.cells if cell.family == 6)


def test_a_program_that_answers_nobody_holds_where_the_kernel_counted_its_connections() -> None:
    report = _check(_topology(SILENT, ALL_MAY))
    assert _not_held(report) == []
    assert all("connections of shop/" in cell.reason for cell in report.cells)


def test_a_program_that_answers_nobody_fails_where_a_proxy_lets_nothing_through() -> None:
    report = _check(_topology(SILENT, ALL_MAY), mutant="empty-rule-matches-nothing")
    assert {cell.result for cell in report.cells} == {Result.FAILED}


def test_check_and_replay_mean_the_same_by_an_answer(redis: Lab) -> None:
    steps = "[{call: {from: shop/client, to: 'shop/server:6379'}, expect: allow}]"
    topology = read(_topology(REDIS, NOT_BAD, steps)).topology
    assert topology.steps
    assert play(redis, topology, prove=False) == ([], "")


def test_a_replay_of_a_call_to_nobody_cannot_be_told() -> None:
    steps = "[{call: {from: shop/client, to: 'shop/server:9000', family: 6}, expect: allow}]"
    text = _topology(ONLY4, steps=steps)
    with open_lab(text) as lab:
        wrong, doubt = play(lab, read(text).topology, prove=False)
    assert wrong == []
    assert "shop/server:9000" in doubt


def test_the_kernel_counts_the_connections_that_reached_a_program(redis: Lab) -> None:
    client, bad = redis.pods("shop/client", "shop/bad")
    before = redis.connections_to("shop/server")
    for family in (4, 4, 6):
        assert client.http("http://server:6379/", family=family).answered
        assert bad.http("http://server:6379/", family=family).outcome in Outcome.REFUSED
    after = redis.connections_to("shop/server")
    more = {key: after[key] - before.get(key, 0) for key in after if key[1] == 6379}
    assert (more[client.ipv4, 6379], more[client.ipv6, 6379]) == (2, 1)
    assert not any(more.get((address, 6379)) for address in (bad.ipv4, bad.ipv6))
    assert redis.connections_to("shop/client") == {}, "the built-in echo counts for itself"


def test_an_address_that_no_pod_has_is_not_taken_for_the_echo(redis: Lab) -> None:
    proxy = redis.site.network.nodes["node-1"].proxies[0].ipv4
    call = redis.pod("shop/client").http(f"http://{proxy}:15021/healthz/ready")
    assert (call.outcome, call.body) == (Outcome.OK, b"ready\n")


def test_a_service_that_nobody_stands_behind_refuses_and_holds() -> None:
    service = (
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: none, namespace: shop}\nspec: {ports: [{port: 80}]}\n"
    )
    report = _check(_topology("ports: [8080]", service))
    assert _not_held(report) == []
    assert {cell.seen for cell in report.cells if cell.to == "none.shop"} == {"deny"}


def test_the_echo_answers_where_a_service_leads_whatever_the_pod_declares() -> None:
    service = """---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 7777}]}
"""
    report = _check(_topology("labels: {app: web}", service))
    assert _not_held(report) == []
    assert "web.shop" in {cell.to for cell in report.cells}
