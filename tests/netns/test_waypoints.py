"""Waypoints in a running lab: three hops, each with its own tunnel and identity; attached, taken away, ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import ProofFailedError
from meshlab.model import Call, Family, SpiffeId
from meshlab.model.report import Grade
from meshlab.proofs.identities import End

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

PODS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: waypoints}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server:
      node: node-2
      ports: [8080, {containerPort: 2525, mode: server-first}]
      serviceAccount: server
      labels: {app: server}
    plain/guest: {node: node-1}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  selector: {app: server}
  ports: [{name: web, port: 80, targetPort: 8080}, {name: smtp, port: 25, targetPort: 2525}]
"""
GATE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gate, namespace: {namespace}, labels: {{istio.io/waypoint-for: {serves}}}}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, {more}}}]}}
"""
SAME = "allowedRoutes: {namespaces: {from: Same}}"
URL = "http://server.shop/"


def gate(serves: str = "service", namespace: str = "shop", more: str = SAME) -> str:
    return GATE.format(serves=serves, namespace=namespace, more=more)


def hops(lab: Lab, call: Call) -> int:
    """How many legs the call's path has, by where the server saw its client."""
    assert call.peer is not None
    source = lab.mesh.pod("shop/client")
    return 1 if call.peer.address == source.address(call.family) else 2


@pytest.fixture(params=["reference", "envoy"])
def lab(request: pytest.FixtureRequest, lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(f"{PODS}---\n{gate()}", waypoint=request.param) as running:
        running.namespace("shop").label({"istio.io/use-waypoint": "gate"})
        yield running


@pytest.mark.parametrize("family", [4, 6])
def test_each_leg_has_its_own_tunnel_and_its_own_identity(lab: Lab, family: Family) -> None:
    is_reference = lab.site.waypoint.name == "reference"
    with lab.capture() as capture:
        call = lab.pod("shop/client").http(URL, family=family)
    assert (call.answered, hops(lab, call)) == (True, 2)
    capture.prove_encrypted(call)
    assert "node-1:shop/client" in capture.prove_path(call).reason
    ends: dict[End, str] = {"client": "client", "waypoint": "gate", "server": "server"}
    for end, account in ends.items():
        who = SpiffeId("cluster.local", "shop", account)
        proof = capture.prove_identity(call, who, Grade.CLAIM, of=end)
        assert proof.grade is (Grade.PEER if end == "waypoint" or is_reference else Grade.CLAIM)
    with pytest.raises(ProofFailedError, match=r"the waypoint showed .*/sa/gate"):
        capture.prove_identity(call, SpiffeId("cluster.local", "shop", "client"), of="waypoint")


def test_what_a_waypoint_serves_decides_which_calls_pass_it(lab: Lab) -> None:
    client = lab.pod("shop/client")
    seen = {}
    for serves in ("service", "workload", "all", "none"):
        lab.apply(gate(serves))
        calls = (client.http(URL), client.http("http://shop/server:8080/"))
        assert all(call.answered for call in calls)
        seen[serves] = tuple(hops(lab, call) for call in calls)
    assert seen == {"service": (2, 1), "workload": (1, 2), "all": (2, 2), "none": (1, 1)}


def test_a_pod_outside_the_mesh_goes_round_a_waypoint(lab: Lab) -> None:
    lab.apply(gate("all"))
    call = lab.pod("plain/guest").http("http://shop/server:8080/")
    assert call.answered
    assert call.peer is not None
    assert call.peer.address == lab.mesh.pod("plain/guest").ipv4


def test_attached_and_detached_under_traffic_no_call_is_lost(lab: Lab) -> None:
    pairs = [("shop/client", URL)]
    with lab.traffic(pairs, rate=100, open=2) as traffic:
        for name in (None, "gate", None):
            lab.namespace("shop").label({"istio.io/use-waypoint": name})
            made = traffic.calls_made
            traffic.wait_for(lambda made=made: traffic.calls_made > made + 10)  # type: ignore[misc]
    assert (traffic.failed_new, traffic.broken_open, traffic.in_plaintext, traffic.wrong_identity) == (0, 0, 0, 0)


def test_a_waypoint_that_has_ended_is_never_gone_round(lab: Lab) -> None:
    client, waypoint = lab.pod("shop/client"), lab.instance("waypoint@shop/gate")
    assert client.http(URL).answered
    waypoint.kill()
    assert client.http(URL).refused
    assert client.http("http://shop/server:8080/").answered, "the control: the server is there"
    waypoint.restart()
    call = client.http(URL)
    assert (call.answered, hops(lab, call), waypoint.generation) == (True, 2, 1)


def test_a_gateway_that_is_deleted_takes_its_pod_with_it_and_calls_go_direct(lab: Lab) -> None:
    lab.delete(gate())
    assert "shop/gate" not in {pod.key for pod in lab.mesh.pods}
    call = lab.pod("shop/client").http(URL)
    assert (call.answered, hops(lab, call)) == (True, 1)
    lab.apply(gate())
    call = lab.pod("shop/client").http(URL)
    assert (call.answered, hops(lab, call)) == (True, 2)


def test_of_another_namespace_it_serves_where_it_admits_it(lab: Lab) -> None:
    labels = {"istio.io/use-waypoint": "gate", "istio.io/use-waypoint-namespace": "edge"}
    lab.apply("{apiVersion: v1, kind: Namespace, metadata: {name: edge}}\n---\n" + gate(namespace="edge"))
    lab.namespace("shop").label(labels)
    refused = lab.pod("shop/client").http(URL)
    lab.apply(gate(namespace="edge", more="allowedRoutes: {namespaces: {from: All}}"))
    admitted = lab.pod("shop/client").http(URL)
    assert (hops(lab, refused), hops(lab, admitted)) == (1, 2)


def test_the_server_judges_the_waypoint_and_not_its_client(lab: Lab) -> None:
    rules = "{from: [{source: {principals: [cluster.local/ns/shop/sa/%s]}}]}"
    policy = (
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop},"
        " spec: {selector: {matchLabels: {app: server}}, action: %s, rules: [%s]}}"
    )
    client = lab.pod("shop/client")
    lab.apply(policy % ("DENY", rules % "client"))
    assert client.http(URL).answered
    assert client.http("http://shop/server:8080/").refused
    lab.apply(policy % ("DENY", rules % "gate"))
    assert client.http(URL).refused
    assert client.http("http://shop/server:8080/").answered


def test_a_server_that_speaks_first_and_a_half_close_pass(lab: Lab) -> None:
    client = lab.pod("shop/client")
    assert client.tcp("server.shop:25").answered
    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert client.tcp("server.shop:80", data=request, half_close=True).answered
