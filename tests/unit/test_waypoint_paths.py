"""Waypoints on paper: how Gateways are read, what they serve, which paths calls take, and what is sent to whom."""

from __future__ import annotations

import pytest

from meshlab.errors import TopologyError
from meshlab.model import Mesh, Topology
from meshlab.oracle import expected
from meshlab.plan.transition import transition
from meshlab.protocols.hbone import Refusal
from meshlab.protocols.messages import ADDRESS_TYPE
from meshlab.topology import dump, load, load_manifests, read, without
from meshlab.translate import resources
from meshlab.waypoint.serving import Known

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: gates}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
    plain/guest: {node: node-1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
"""
GATE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop%s}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
DENY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [%s]}}]}]}
"""


def topology(labels: str = "", more: str = "") -> Topology:
    return load(TEXT + GATE % labels + more, "gates")


def path(mesh: Mesh, source: str, to: str) -> str:
    """The path of a call, as text, to a Service at 80 or a pod at 8080."""
    destination = mesh.pod(to) if "/" in to else next(each for each in mesh.services if each.key == to)
    (way,) = expected(mesh, mesh.pod(source), destination, 8080 if "/" in to else 80, 4).ways
    return str(way.path)


def test_a_gateway_is_a_waypoint_with_a_pod_of_its_own_and_a_service_that_leads_there() -> None:
    mesh = topology().mesh
    gate, service = mesh.pod("shop/gate"), next(each for each in mesh.services if each.key == "gate.shop")
    assert (gate.gateway, gate.service_account, gate.ports, mesh.is_enrolled(gate)) == ("gate", "gate", (), False)
    assert (mesh.endpoints(service), service.ports[0].port) == ((gate,), 15008)


def test_one_of_another_class_is_inert_and_says_so() -> None:
    text = TEXT + (GATE % "").replace("istio-waypoint", "istio")
    reading = read(text, "gates")
    assert reading.topology.mesh.waypoints == ()
    assert "the lab has no ingress" in reading.warnings[0].message


def test_where_its_pod_is_can_be_said_and_a_gateway_that_is_not_there_is_an_error() -> None:
    placed = TEXT.replace(
        "    plain/guest: {node: node-1}", "    plain/guest: {node: node-1}\n  waypoints: {%s: {node: node-2}}"
    )
    assert load(placed % "shop/gate" + GATE % "", "gates").mesh.pod("shop/gate").node == "node-2"
    addressed = placed.replace("{node: node-2}}", "{ips: [10.1.2.3]}}") % "shop/gate" + GATE % ""
    assert str(load(addressed, "gates").mesh.pod("shop/gate").ipv4) == "10.1.2.3"
    with pytest.raises(TopologyError, match="no Gateway"):
        load(placed % "shop/gat" + GATE % "", "gates")


@pytest.mark.parametrize("labels", ["", ", labels: {istio.io/waypoint-for: all}"])
def test_what_is_dumped_is_the_same_again(labels: str) -> None:
    was = topology(labels)
    assert load(dump(was), "again") == was


VIA, DIRECT = "shop/client -> shop/gate -> shop/server", "shop/client -> shop/server"


@pytest.mark.parametrize(
    ("serves", "to_service", "to_pod"),
    [("service", VIA, DIRECT), ("workload", DIRECT, VIA), ("all", VIA, VIA), ("none", DIRECT, DIRECT)],
)
def test_the_path_follows_from_what_the_waypoint_serves(serves: str, to_service: str, to_pod: str) -> None:
    mesh = topology(f", labels: {{istio.io/waypoint-for: {serves}}}").mesh
    assert path(mesh, "shop/client", "server.shop") == to_service
    assert path(mesh, "shop/client", "shop/server") == to_pod
    assert path(mesh, "plain/guest", "shop/server") == "plain/guest -> shop/server"


def test_an_objects_own_label_beats_its_namespaces() -> None:
    out = TEXT.replace(
        "{name: server, namespace: shop}", "{name: server, namespace: shop, labels: {istio.io/use-waypoint: none}}"
    )
    assert path(load(out + GATE % "", "gates").mesh, "shop/client", "server.shop") == DIRECT


@pytest.mark.parametrize(
    ("admits", "expected_path"), [("Same", DIRECT), ("All", "shop/client -> edge/gate -> shop/server")]
)
def test_a_waypoint_of_another_namespace_has_to_admit_it(admits: str, expected_path: str) -> None:
    labels = "istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: edge"
    gate = (GATE % "").replace("namespace: shop", "namespace: edge")
    gate = gate.replace("protocol: HBONE", f"protocol: HBONE, allowedRoutes: {{namespaces: {{from: {admits}}}}}")
    mesh = load(TEXT.replace("istio.io/use-waypoint: gate", labels) + gate, "gates").mesh
    assert path(mesh, "shop/client", "server.shop") == expected_path


def test_a_label_without_its_gateway_changes_nothing() -> None:
    assert path(load(TEXT, "gates").mesh, "shop/client", "server.shop") == DIRECT


@pytest.mark.parametrize(("account", "via", "direct"), [("client", "allow", "deny"), ("gate", "deny", "allow")])
def test_the_server_judges_who_calls_it_which_is_the_waypoint(account: str, via: str, direct: str) -> None:
    mesh = topology(more=DENY % f"cluster.local/ns/shop/sa/{account}").mesh
    client, server = mesh.pod("shop/client"), mesh.pod("shop/server")
    service = next(each for each in mesh.services if each.key == "server.shop")
    assert expected(mesh, client, service, 80, 4).passage == via
    assert expected(mesh, client, server, 8080, 4).passage == direct
    (way,) = expected(mesh, client, service, 80, 6).ways
    assert way.connection is not None
    assert way.connection.source_ip == mesh.pod("shop/gate").ipv6
    assert [leg.carried for leg in way.path.legs] == ["hbone", "hbone"]


def test_a_node_proxy_is_sent_the_waypoint_by_name_and_its_pod_as_one_that_takes_no_hbone() -> None:
    sent = resources(topology().mesh, {"shop/client", "shop/server"})[ADDRESS_TYPE]
    service = sent["shop/server.shop.svc.cluster.local"].service  # type: ignore[attr-defined]
    assert service.waypoint.hostname.hostname == "gate.shop.svc.cluster.local"
    assert service.waypoint.hbone_mtls_port == 15008
    gate = sent["Kubernetes//Pod/shop/gate"].workload  # type: ignore[attr-defined]
    assert (gate.tunnel_protocol, gate.HasField("waypoint")) == (0, False)
    assert not sent["Kubernetes//Pod/shop/server"].workload.HasField("waypoint")  # type: ignore[attr-defined]


def test_a_gateway_comes_and_goes_with_its_pod_and_its_service() -> None:
    before = load(TEXT, "gates")
    mesh = load_manifests(GATE % "", "<apply>", before)
    assert [stage.name for stage in transition(before.mesh, mesh) if stage.pods] == [
        "make",
        "announce",
        "open",
        "start",
    ]
    gone = without(GATE % "", "<delete>", topology())
    assert (gone.waypoints, [pod.key for pod in gone.pods if pod.gateway]) == ((), [])
    assert "gate.shop" not in {service.key for service in gone.services}


def test_a_connect_asks_for_a_service_by_each_of_its_addresses() -> None:
    mesh = topology().mesh
    service = next(each for each in mesh.services if each.key == "server.shop")
    known = Known("shop/gate", mesh)
    for authority in (f"{service.ipv4}:80", f"[{service.ipv6}]:80"):
        asked = known.asked(authority)
        assert not isinstance(asked, Refusal)
        assert (asked.service, asked.port) == (service, service.ports[0])


@pytest.mark.parametrize(
    ("asked", "status"),
    [("{service}:81", 404), ("{pod}:8080", 404), ("192.0.2.1:80", 404), ("nonsense", 400)],
    ids=["no such port", "a pod, of a waypoint for Services", "nobody's address", "no authority"],
)
def test_what_a_waypoint_does_not_serve_is_refused(asked: str, status: int) -> None:
    mesh = topology().mesh
    service = next(each for each in mesh.services if each.key == "server.shop")
    found = Known("shop/gate", mesh).asked(asked.format(service=service.ipv4, pod=mesh.pod("shop/server").ipv4))
    assert isinstance(found, Refusal)
    assert found.status == status
