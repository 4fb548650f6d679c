"""Endpoints that somebody wrote by hand, for a Service without a selector: who they are, and what follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlab.errors import TopologyError
from meshlab.lab.calls.names import behind
from meshlab.model import Mesh
from meshlab.oracle import expected
from meshlab.protocols.messages import ADDRESS_TYPE
from meshlab.topology import load, read
from meshlab.translate import resources

PODS = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: by-hand}
spec:
  pods:
    data/one: {ips: [10.1.2.3], ports: [5432]}
    data/two: {ips: ["fd00::2"], ports: [5432, 5433]}
    apps/client: {labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: data, labels: {istio.io/dataplane-mode: ambient}}
"""


def _object(kind: str, name: str, version: str = "v1", labels: dict[str, str] | None = None, **more: Any) -> Any:
    about = {"name": name, "namespace": "data", **({"labels": labels} if labels else {})}
    return {"apiVersion": version, "kind": kind, "metadata": about, **more}


def _service(*ports: dict[str, Any], **more: Any) -> Any:
    return _object("Service", "pg", spec={"ports": list(ports) or [{"port": 5432}], **more})


def _endpoints(*ips: str, ports: tuple[dict[str, Any], ...] = ({"port": 5432},)) -> Any:
    subset = {"addresses": [{"ip": ip} for ip in ips], "ports": list(ports)}
    return _object("Endpoints", "pg", subsets=[subset])


def _slice(name: str, *endpoints: Any, port: int = 5432, family: str = "IPv4", service: str = "pg") -> Any:
    labels = {"kubernetes.io/service-name": service} if service else None
    more = {"addressType": family, "endpoints": list(endpoints), "ports": [{"port": port}]}
    return _object("EndpointSlice", name, "discovery.k8s.io/v1", labels, **more)


def _text(*documents: Any) -> str:
    return "\n---\n".join([PODS, *map(json.dumps, documents)])


def _mesh(*documents: Any) -> Mesh:
    return load(_text(*documents), "by-hand.yaml").mesh


def _behind(mesh: Mesh) -> dict[str, int | None]:
    (service,) = mesh.services
    return {pod.key: mesh.target(service, service.ports[0], pod) for pod in mesh.endpoints(service)}


def test_a_pod_whose_address_of_either_family_is_written_there_is_an_endpoint() -> None:
    assert _behind(_mesh(_service(), _endpoints("10.1.2.3", "fd00::2"))) == {"data/one": 5432, "data/two": 5432}


def test_an_address_that_is_no_pods_leads_nowhere() -> None:
    assert _behind(_mesh(_service(), _endpoints("10.1.2.4"))) == {}


def test_the_port_is_the_one_of_the_endpoints_whatever_the_service_says() -> None:
    mesh = _mesh(_service({"port": 80, "targetPort": 9999}), _endpoints("fd00::2", ports=({"port": 5433},)))
    assert _behind(mesh) == {"data/two": 5433}
    assert behind(mesh, "pg.data:80") == [(mesh.pod("data/two"), 5433)]


def test_the_port_is_found_by_the_name_of_the_services_port() -> None:
    ports = ({"port": 5432, "name": "sql"}, {"port": 5433, "name": "stats"})
    mesh = _mesh(
        _service({"port": 1, "name": "stats"}, {"port": 2, "name": "other"}), _endpoints("fd00::2", ports=ports)
    )
    (service,), two = mesh.services, mesh.pod("data/two")
    assert [mesh.target(service, port, two) for port in service.ports] == [5433, None]


def test_slices_add_to_each_other_and_leave_out_who_is_not_ready() -> None:
    first = _slice("pg-1", {"addresses": ["10.1.2.3"]})
    second = _slice("pg-2", {"addresses": ["fd00::2"], "conditions": {"ready": True}}, port=5433, family="IPv6")
    late = _slice("pg-3", {"addresses": ["10.1.2.9"], "conditions": {"ready": False}})
    assert _behind(_mesh(_service(), first, second, late)) == {"data/one": 5432, "data/two": 5433}


def test_endpoints_of_a_service_with_a_selector_are_the_pods_that_it_selects() -> None:
    assert _behind(_mesh(_service(selector={"app": "none"}), _endpoints("10.1.2.3"))) == {}


def test_the_echo_listens_where_endpoints_lead() -> None:
    mesh = _mesh(_service(), _endpoints("10.1.2.3", ports=({"port": 7777},)))
    assert [port.number for port in mesh.pod("data/one").ports] == [5432, 7777]


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ([_service()], "it has no selector, and no Endpoints or EndpointSlice of it holds a pod's address"),
        (
            [_service({"port": 80, "name": "sql"}), _endpoints("10.1.2.3")],
            "its Endpoints have no port named 'sql', as its port 80 has",
        ),
        (
            [_service(), _endpoints("10.1.2.3", ports=({"port": 80, "name": "sql"},))],
            "its Endpoints have no port without a name, as its port 5432 has",
        ),
    ],
    ids=["no endpoints", "no such name", "no nameless one"],
)
def test_validate_says_why_nobody_stands_behind_a_service_without_a_selector(documents: list[Any], why: str) -> None:
    (warning,) = read(_text(*documents), "by-hand.yaml").warnings
    assert warning.message == f"nobody stands behind Service 'pg.data': {why}"


@pytest.mark.parametrize(
    ("document", "issue"),
    [
        (_endpoints("10.1.2.3", "10.1.2.3"), "the address 10.1.2.3 is there twice"),
        (_endpoints("10.1.2.3", ports=({"port": 1}, {"port": 2})), "two ports have no name"),
        (_slice("pg-1", service=""), "an EndpointSlice needs the label kubernetes.io/service-name"),
        (_slice("pg-1", {"addresses": ["fd00::2"]}), "fd00::2 is not of the slice's addressType (IPv4)"),
        (
            _object("Endpoints", "pg", subsets=[{"ports": [{"port": 1}]}, {"ports": [{"port": 2}]}]),
            "Endpoints of the lab have one subset: write an EndpointSlice for each more",
        ),
    ],
    ids=["address twice", "nameless twice", "no service", "family", "subsets"],
)
def test_endpoints_that_say_two_things_are_refused(document: Any, issue: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(_text(document), "by-hand.yaml")
    assert issue in str(refused.value)


def test_the_oracle_judges_at_the_pods_that_are_written_there() -> None:
    deny = _object("AuthorizationPolicy", "deny", "security.istio.io/v1", spec={"action": "DENY", "rules": [{}]})
    mesh = _mesh(_service(), _endpoints("10.1.2.3"), deny)
    decision = expected(mesh, mesh.pod("apps/client"), mesh.services[0], 5432, 4)
    assert (decision.passage, "data/one" in decision.rule) == ("deny", True)


def test_a_node_proxy_is_sent_the_services_of_a_pod_with_the_port_of_its_endpoints() -> None:
    mesh = _mesh(_service({"port": 80, "targetPort": 9999}), _endpoints("10.1.2.3"))
    sent = resources(mesh, ())[ADDRESS_TYPE]
    workload = sent["Kubernetes//Pod/data/one"].workload  # type: ignore[attr-defined]  # made at run time
    services = {name: [(p.service_port, p.target_port) for p in led.ports] for name, led in workload.services.items()}
    assert services == {"data/pg.data.svc.cluster.local": [(80, 5432)]}
    assert not sent["Kubernetes//Pod/data/two"].workload.services  # type: ignore[attr-defined]
