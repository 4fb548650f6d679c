"""The reference waypoint reads requests: it denies, routes, changes and answers them in a running lab."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from meshlab.apps.http1 import ResponseReader
from meshlab.lab.proving.check import run
from meshlab.model import Call, Family
from meshlab.model.report import Result
from meshlab.testing.registry import VARIANTS
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

PODS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: requests}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/one: {node: node-2, ports: [8080], serviceAccount: one, labels: {app: one}}
    shop/two: {node: node-1, ports: [8080], serviceAccount: two, labels: {app: two}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop}
spec: {selector: {app: one}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 81, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: two}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: %s, group: "%s", name: %s}]
  action: %s
  rules: [%s]
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: "", name: one, port: 80}]
  rules: [%s]
"""
VIRTUAL = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: shop}
spec:
  hosts: [one.shop.svc.cluster.local]
  http: [%s]
"""
TO_ONE = "backendRefs: [{name: one, port: 80}]"
TO_TWO = "backendRefs: [{name: two, port: 80}]"
URL = "http://one.shop"


BY_CLIENT = "{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}"
DESTINATION = "route: [{destination: {host: one, port: {number: 80}}}]"


def on_one(action: str, rules: str) -> str:
    return POLICY % ("Service", "", "one", action, rules)


def on_gate(action: str, rules: str) -> str:
    return POLICY % ("Gateway", "gateway.networking.k8s.io", "gate", action, rules)


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(PODS, waypoint="reference") as running:
        yield running


@contextmanager
def applied(lab: Lab, text: str) -> Iterator[None]:
    lab.apply(text)
    yield
    lab.delete(text)


def served_by(call: Call) -> str | None:
    """The pod that answered with 200."""
    return call.peer.pod if call.status == 200 and call.peer is not None else None


def test_without_a_route_every_request_passes_with_its_canary(lab: Lab) -> None:
    with lab.capture() as capture:
        call = lab.pod("shop/client").http(f"{URL}/x?y=z", method="POST", body=bytes(100_000), headers={"X-A": "1"})
    assert (served_by(call), call.answered) == ("shop/one", True)
    assert call.peer is not None
    assert call.peer.headers["x-a"] == "1"
    assert call.peer.address == lab.mesh.pod("shop/gate").ipv4
    capture.prove_encrypted(call)


def test_a_policy_of_paths_is_judged_for_each_request(lab: Lab) -> None:
    client = lab.pod("shop/client")
    with applied(lab, on_one("DENY", "{to: [{operation: {paths: ['/admin*']}}]}")):
        denied, allowed, other = (client.http(url) for url in (f"{URL}/admin/x", f"{URL}/x", "http://two.shop/admin"))
        assert (denied.status, denied.body) == (403, b"RBAC: access denied")
        assert (allowed.status, other.status) == (200, 200)
        assert client.http(f"{URL}/./%61dmin").status == 403, "a path is normalised before it is judged"


@pytest.mark.parametrize("family", [4, 6])
def test_a_policy_sees_the_clients_identity_and_address(lab: Lab, family: Family) -> None:
    client, other = lab.pod("shop/client"), lab.pod("shop/other")
    with applied(lab, on_gate("ALLOW", BY_CLIENT)):
        assert client.http(f"{URL}/", family=family).status == 200
        assert other.http(f"{URL}/", family=family).status == 403
    address = lab.mesh.pod("shop/other").address(family)
    with applied(lab, on_one("ALLOW", f"{{from: [{{source: {{ipBlocks: ['{address}']}}}}]}}")):
        assert client.http(f"{URL}/", family=family).status == 403
        assert other.http(f"{URL}/", family=family).status == 200


def test_where_no_requests_are_read_a_connection_is_denied_as_a_whole(lab: Lab) -> None:
    with applied(lab, on_gate("DENY", BY_CLIENT)):
        for address in ("one.shop:81", "shop/one:8080"):
            assert lab.pod("shop/client").tcp(address).refused
            assert lab.pod("shop/other").tcp(address).answered


def test_a_header_decides_which_service_gets_a_request(lab: Lab) -> None:
    client = lab.pod("shop/client")
    to_two = f"{{matches: [{{headers: [{{name: X-To, value: two}}]}}], {TO_TWO}}}"
    with applied(lab, ROUTE % f"{to_two}, {{{TO_ONE}}}"):
        assert served_by(client.http(f"{URL}/", headers={"X-To": "two"})) == "shop/two"
        assert served_by(client.http(f"{URL}/", headers={"X-To": "three"})) == "shop/one"
        assert served_by(client.http("http://two.shop/", headers={"X-To": "one"})) == "shop/two"


def test_weights_decide_how_many_requests_a_service_gets(lab: Lab) -> None:
    client = lab.pod("shop/client")
    backends = "{name: one, port: 80, weight: 3}, {name: two, port: 80, weight: 1}"
    with applied(lab, ROUTE % f"{{backendRefs: [{backends}]}}"):
        seen = Counter(served_by(client.http(f"{URL}/")) for _ in range(80))
    assert set(seen) == {"shop/one", "shop/two"}
    assert seen["shop/one"] > seen["shop/two"]


TCP = """
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: "", name: one, port: 81}]
  rules: [{backendRefs: [{name: one, port: 81, weight: %d}, {name: two, port: 80, weight: 1}]}]
"""


def test_weights_decide_how_many_connections_a_service_gets_where_no_requests_are_read(lab: Lab) -> None:
    client = lab.pod("shop/client")
    with applied(lab, TCP % 3):
        calls = [client.tcp("one.shop:81") for _ in range(80)]
        assert served_by(client.http(f"{URL}/")) == "shop/one"
    seen = Counter(call.peer.pod for call in calls if call.peer is not None)
    assert sorted(seen) == ["shop/one", "shop/two"]
    assert seen["shop/one"] > seen["shop/two"]


def test_a_check_counts_the_connections_of_each_share() -> None:
    topology = load(f"{PODS}---\n{TCP % 9}", "tcp.yaml")
    right = run(topology, waypoint="reference")
    assert right.result is Result.HELD, right.cells
    wrong = run(topology, waypoint="reference", mutant="swaps-weights")
    failed = {(cell.to, cell.port, cell.request) for cell in wrong.cells if cell.result is Result.FAILED}
    assert failed == {("one.shop", 81, "")}


TO_MIRROR = "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 80}, percent: 50}}"
MIRRORED = ROUTE % f"{{filters: [{TO_MIRROR}], {TO_ONE}}}"


@pytest.mark.parametrize("mutant", ["mirrors-nothing", "mirrors-everything", "mirrors-what-is-denied"])
def test_a_check_counts_the_copies_at_a_mirror(mutant: str) -> None:
    deny = on_one("DENY", "{to: [{operation: {paths: [/admin]}}]}")
    topology = load("\n---\n".join((PODS, MIRRORED, deny)), "mirror.yaml")
    right = run(topology, waypoint="reference")
    assert right.result is Result.HELD, (right.cells, right.proofs)
    wrong = run(topology, waypoint="reference", mutant=mutant)
    cells = {cell.to for cell in wrong.cells if cell.result is Result.FAILED}
    denials = {proof.kind for proof in wrong.proofs if proof.result is Result.FAILED}
    assert (cells, denials) == ((set(), {"denied"}) if mutant == "mirrors-what-is-denied" else ({"one.shop"}, set()))


def test_it_answers_by_itself_where_a_route_says_so(lab: Lab) -> None:
    client = lab.pod("shop/client")
    abort = "{match: [{uri: {prefix: /tea}}], fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, %s}"
    direct = "{match: [{uri: {prefix: /direct}}], directResponse: {status: 299, body: {string: hello}}}"
    away = "{match: [{uri: {prefix: /old}}], redirect: {uri: /new, redirectCode: 308}}"
    with applied(lab, VIRTUAL % ", ".join((abort % DESTINATION, direct, away))):
        tea, hello, moved, none = (client.http(f"{URL}{path}") for path in ("/tea", "/direct", "/old?x", "/none"))
    assert (tea.status, none.status) == (418, 404)
    assert (hello.status, hello.body) == (299, b"hello")
    assert (moved.status, moved.headers["location"]) == (308, "http://one.shop/new?x")


def test_the_server_gets_the_request_as_it_was_changed_and_the_client_the_answer(lab: Lab) -> None:
    changes = (
        "{match: [{uri: {prefix: /a/}}], rewrite: {uri: /b/, authority: elsewhere}, headers:"
        " {request: {set: {x-set: s}, remove: [x-gone]}, response: {add: {x-answer: a}, remove: [content-type]}}, %s}"
    )
    with applied(lab, VIRTUAL % (changes % DESTINATION)):
        call = lab.pod("shop/client").http(f"{URL}/a/x?y", headers={"X-Gone": "1", "X-Stays": "2"})
    seen = json.loads(call.body)
    assert (call.status, seen["path"]) == (200, "/b/x?y")
    assert (call.headers["x-answer"], "content-type" in call.headers) == ("a", False)
    headers = {"host": "elsewhere", "x-set": "s", "x-stays": "2"}
    assert {name: seen["headers"].get(name) for name in (*headers, "x-gone")} == {**headers, "x-gone": None}


def test_a_timeout_and_an_endpoint_that_is_not_there(lab: Lab) -> None:
    client = lab.pod("shop/client")
    with applied(lab, VIRTUAL % f"{{timeout: 200ms, {DESTINATION}}}"):
        late = client.http(f"{URL}/?delay=2s")
        assert client.http(f"{URL}/").status == 200
    assert (late.status, late.body) == (504, b"upstream request timeout")
    denied = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: l4, namespace: shop},"
    with applied(lab, denied + " spec: {selector: {matchLabels: {app: one}}, action: DENY, rules: [{}]}}"):
        assert client.http(f"{URL}/").status == 503
    assert client.http(f"{URL}/").status == 200


def test_a_living_connection_sees_a_change_with_its_next_request(lab: Lab) -> None:
    service = next(each for each in lab.mesh.services if each.key == "one.shop")
    request = b"GET /admin HTTP/1.1\r\nHost: one.shop\r\n\r\n"
    [sock] = lab.site.open_in_pods([("shop/client", 4)])
    with sock:
        sock.settimeout(10)
        sock.connect((str(service.ipv4), 80))
        answers = [ask(sock, request)]
        with applied(lab, on_one("DENY", "{to: [{operation: {paths: [/admin]}}]}")):
            answers.append(ask(sock, request))
        answers.append(ask(sock, request))
    assert answers == [200, 403, 200]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("waypoint-")])
def test_a_legal_variant_answers_as_the_reference_does(variant: str, lab_factory: LabFactory) -> None:
    deny = on_one("DENY", "{to: [{operation: {paths: [/admin]}}]}")
    with lab_factory(f"{PODS}---\n{deny}", waypoint="reference", variant=variant) as lab:
        client = lab.pod("shop/client")
        assert client.http(f"{URL}/").answered
        assert client.http(f"{URL}/x", method="POST", body=bytes(200_000)).answered
        assert client.http(f"{URL}/x", method="HEAD").answered
        assert client.http(f"{URL}/admin").status == 403


def ask(sock: socket.socket, request: bytes) -> int:
    """The status of the answer, which is read to its end."""
    sock.sendall(request)
    reader = ResponseReader()
    while not reader.complete:
        data = sock.recv(1 << 16)
        assert data, "the connection has ended"
        reader.feed(data)
    assert reader.status is not None
    return reader.status
