"""What a node proxy is sent of pods and Services."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from meshlab.model import ContainerPort, Mesh, Pod, Service, ServicePort
from meshlab.translate import ADDRESS_TYPE, AUTHORIZATION_TYPE, resources

WEB = Pod(
    name="web-0",
    namespace="shop",
    node="node-1",
    ipv4=IPv4Address("10.0.0.1"),
    ipv6=IPv6Address("fd00::1"),
    labels={"app": "web"},
    service_account="web",
    ports=(ContainerPort(number=8080, name="http"),),
)
OTHER = replace(WEB, name="web-1", ipv4=IPv4Address("10.0.0.2"), ports=(ContainerPort(number=9090, name="http"),))
SERVICE = Service(
    name="web",
    namespace="shop",
    ipv4=IPv4Address("172.16.0.1"),
    ipv6=IPv6Address("fd00:1::1"),
    selector={"app": "web"},
    ports=(ServicePort(port=80, target_port="http"), ServicePort(port=81, target_port=8081)),
)
MESH = Mesh(pods=(WEB, OTHER), services=(SERVICE,))
WEB_UID = "Kubernetes//Pod/shop/web-0"
SERVICE_NAME = "shop/web.shop.svc.cluster.local"


def _workload(pod: Pod, enrolled: tuple[str, ...] = (), services: tuple[Service, ...] = ()) -> Any:
    mesh = Mesh(pods=(pod,), services=services)
    return resources(mesh, enrolled)[ADDRESS_TYPE][f"Kubernetes//Pod/{pod.key}"].workload  # type: ignore[attr-defined]


def _service(service: Service) -> Any:
    return resources(Mesh(services=(service,)), ())[ADDRESS_TYPE][SERVICE_NAME].service  # type: ignore[attr-defined]


def test_both_types_are_there_when_there_is_nothing() -> None:
    assert resources(Mesh(), ()) == {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}


def test_resources_are_named_as_ztunnel_asks_for_them() -> None:
    assert set(resources(MESH, ())[ADDRESS_TYPE]) == {WEB_UID, "Kubernetes//Pod/shop/web-1", SERVICE_NAME}


def test_a_workload_says_who_and_where_the_pod_is() -> None:
    assert MessageToDict(_workload(WEB), preserving_proto_field_name=True) == {
        "uid": WEB_UID,
        "name": "web-0",
        "namespace": "shop",
        "addresses": ["CgAAAQ==", "/QAAAAAAAAAAAAAAAAAAAQ=="],
        "trust_domain": "cluster.local",
        "service_account": "web",
        "node": "node-1",
        "cluster_id": "Kubernetes",
        "canonical_name": "web",
        "canonical_revision": "latest",
        "workload_type": "POD",
        "workload_name": "web-0",
    }


@pytest.mark.parametrize(
    ("enrolled", "protocol"), [((), "NONE"), (("shop/other",), "NONE"), (("shop/web-0",), "HBONE")]
)
def test_only_pods_that_are_enrolled_now_take_hbone(enrolled: tuple[str, ...], protocol: str) -> None:
    workload = _workload(WEB, enrolled)
    assert workload.DESCRIPTOR.fields_by_name["tunnel_protocol"].enum_type.values_by_name[protocol].number == (
        workload.tunnel_protocol
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, "web-0 latest"),
        ({"app": "a", "version": "v1"}, "a v1"),
        ({"app": "a", "app.kubernetes.io/name": "b", "version": "v1", "app.kubernetes.io/version": "v2"}, "b v2"),
        (
            {
                "app.kubernetes.io/name": "b",
                "service.istio.io/canonical-name": "c",
                "service.istio.io/canonical-revision": "r",
            },
            "c r",
        ),
    ],
)
def test_canonical_name_and_revision_come_from_the_labels_istio_looks_at(labels: dict[str, str], expected: str) -> None:
    workload = _workload(replace(WEB, labels=labels))
    assert f"{workload.canonical_name} {workload.canonical_revision}" == expected


def test_a_pod_of_a_deployment_is_named_after_it() -> None:
    workload = _workload(replace(WEB, workload="web", labels={}))
    assert (workload.workload_name, workload.workload_type, workload.canonical_name) == ("web", 0, "web")


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((ContainerPort(number=8080, name="http"),), {80: 8080, 81: 8081}),
        ((ContainerPort(number=9090, name="http"),), {80: 9090, 81: 8081}),
        ((ContainerPort(number=8080, name="other"),), {81: 8081}),
        ((), {81: 8081}),
    ],
    ids=["http is 8080", "http is 9090", "no port of that name", "no port"],
)
def test_an_endpoint_has_its_own_number_for_a_named_port(
    ports: tuple[ContainerPort, ...], expected: dict[int, int]
) -> None:
    workload = _workload(replace(WEB, ports=ports), services=(SERVICE,))
    assert {port.service_port: port.target_port for port in workload.services[SERVICE_NAME].ports} == expected


@pytest.mark.parametrize(
    "service",
    [replace(SERVICE, namespace="other"), replace(SERVICE, selector={"app": "x"}), replace(SERVICE, selector={})],
    ids=["another namespace", "other labels", "no selector"],
)
def test_a_pod_is_no_endpoint_of_a_service_in(service: Service) -> None:
    assert dict(_workload(WEB, services=(service,)).services) == {}


def test_a_service_leaves_the_number_of_a_named_port_to_its_endpoints() -> None:
    assert {port.service_port: port.target_port for port in _service(SERVICE).ports} == {80: 0, 81: 8081}


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "expected"),
    [
        (SERVICE.ipv4, SERVICE.ipv6, [SERVICE.ipv4, SERVICE.ipv6]),
        (SERVICE.ipv4, None, [SERVICE.ipv4]),
        (None, SERVICE.ipv6, [SERVICE.ipv6]),
        (None, None, []),
    ],
    ids=["dual", "IPv4", "IPv6", "headless"],
)
def test_a_service_has_the_addresses_of_its_families(
    ipv4: IPv4Address | None, ipv6: IPv6Address | None, expected: list[IPv4Address | IPv6Address]
) -> None:
    service = _service(replace(SERVICE, ipv4=ipv4, ipv6=ipv6))
    assert [(vip.network, vip.address) for vip in service.addresses] == [("", vip.packed) for vip in expected]
    assert (service.name, service.namespace, service.hostname) == ("web", "shop", "web.shop.svc.cluster.local")
