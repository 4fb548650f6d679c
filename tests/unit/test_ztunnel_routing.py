"""Where an outbound connection goes, row by row of the decision table, and how xDS is looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from ztunnel_world import behind, named, policy, service, state_of, update, workload

from meshlab.protocols.hbone import Target
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel.routing import NoRouteError, Route, route
from meshlab.ztunnel.state import State, Workload

HOST = "server.shop.svc.cluster.local"
VIP4, VIP6 = "172.16.0.10", "fd00:a6b8::10"
CLIENT = workload("client", "10.1.0.1", "fd00:1::1")
SERVER = workload("server", "10.2.0.2", "fd00:2::2", services=behind(HOST, {80: 8080}))
SERVICE = service(HOST, VIP4, VIP6, ports={80: 8080})


def _first(endpoints: Sequence[Workload]) -> Workload:
    return endpoints[0]


def _at(address: str, port: int) -> Target:
    return Target(ip_address(address), port)


def _route(state: State, address: str, port: int) -> Route:
    return route(state, named(state, "client"), _at(address, port), _first)


@pytest.mark.parametrize(("vip", "address"), [(VIP4, "10.2.0.2"), (VIP6, "fd00:2::2")], ids=["ipv4", "ipv6"])
def test_a_vip_leads_to_an_endpoint_of_the_same_family_on_its_own_port(vip: str, address: str) -> None:
    way = _route(state_of(CLIENT, SERVER, SERVICE), vip, 80)
    assert (way.target, way.tunnel) == (_at(address, 8080), _at(address, 15008))
    assert way.identities == {"spiffe://cluster.local/ns/shop/sa/server"}


def test_a_pod_of_the_mesh_is_reached_by_a_tunnel_to_itself() -> None:
    way = _route(state_of(CLIENT, SERVER), "10.2.0.2", 9999)
    assert (way.target, way.tunnel) == (_at("10.2.0.2", 9999), _at("10.2.0.2", 15008))


def test_a_pod_out_of_the_mesh_is_reached_in_clear() -> None:
    state = state_of(CLIENT, workload("plain", "10.2.0.3", hbone=False))
    way = _route(state, "10.2.0.3", 80)
    assert (way.target, way.tunnel, way.workload) == (_at("10.2.0.3", 80), None, named(state, "plain"))


def test_an_address_that_nobody_has_is_passed_on_as_it_is() -> None:
    assert _route(state_of(CLIENT), "192.0.2.1", 443) == Route(target=_at("192.0.2.1", 443))


def test_a_further_identity_of_a_service_is_accepted_behind_it() -> None:
    legacy = "spiffe://old.example/ns/shop/sa/legacy"
    state = state_of(CLIENT, SERVER, service(HOST, VIP4, ports={80: 8080}, subject_alt_names=[legacy]))
    assert legacy in _route(state, VIP4, 80).identities
    assert legacy not in _route(state, "10.2.0.2", 8080).identities


def test_a_named_port_is_the_endpoints_own_number() -> None:
    other = workload("other", "10.2.0.4", services=behind(HOST, {80: 9090}))
    state = state_of(CLIENT, other, service(HOST, VIP4, ports={80: 0}))
    assert _route(state, VIP4, 80).target.port == 9090


REFUSED = {
    "no endpoint": [SERVICE],
    "unknown port": [SERVICE, workload("server", "10.2.0.2", services=behind(HOST, {81: 8080}))],
    "endpoint unhealthy": [
        SERVICE,
        workload("server", "10.2.0.2", status="UNHEALTHY", services=behind(HOST, {80: 8080})),
    ],
    "endpoint of the other family only": [
        SERVICE,
        workload("server", "fd00:2::2", services=behind(HOST, {80: 8080})),
    ],
    "service has a waypoint": [SERVER, service(HOST, VIP4, ports={80: 8080}, waypoint={"hbone_mtls_port": 15008})],
    "endpoint on another network": [
        SERVICE,
        workload("server", "10.2.0.2", network="far", services=behind(HOST, {80: 8080})),
    ],
}


@pytest.mark.parametrize("addresses", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_reached_as_the_mesh_says_is_refused_not_passed(addresses: list[Any]) -> None:
    with pytest.raises(NoRouteError):
        _route(state_of(CLIENT, *addresses), VIP4, 80)


def test_a_pod_whose_waypoint_is_not_there_is_refused_not_bypassed() -> None:
    with pytest.raises(NoRouteError, match="waypoint"):
        _route(state_of(CLIENT, workload("server", "10.2.0.2", waypoint={"hbone_mtls_port": 15008})), "10.2.0.2", 80)


# --- waypoints -------------------------------------------------------------------------------------------------------

GATE_HOST = "gate.shop.svc.cluster.local"
GATE = workload("gate", "10.3.0.3", "fd00:3::3", hbone=False, services=behind(GATE_HOST, {15008: 15008}))
GATE_SERVICE = service(GATE_HOST, "172.16.0.11", "fd00:a6b8::11", ports={15008: 15008})
BY_NAME = {"hostname": {"namespace": "shop", "hostname": GATE_HOST}, "hbone_mtls_port": 15008}
BY_ADDRESS = {"address": {"address": ip_address("10.3.0.3").packed}, "hbone_mtls_port": 15008}
BY_VIP = {"address": {"address": ip_address("172.16.0.11").packed}, "hbone_mtls_port": 15008}


@pytest.mark.parametrize("waypoint", [BY_NAME, BY_ADDRESS, BY_VIP], ids=["name", "address", "vip"])
def test_a_service_with_a_waypoint_is_asked_for_there_as_it_was_dialled(waypoint: Any) -> None:
    state = state_of(CLIENT, SERVER, GATE, GATE_SERVICE, service(HOST, VIP4, VIP6, ports={80: 8080}, waypoint=waypoint))
    way = _route(state, VIP4, 80)
    assert (way.target, way.tunnel) == (_at(VIP4, 80), _at("10.3.0.3", 15008))
    assert way.identities == {"spiffe://cluster.local/ns/shop/sa/gate"}
    assert way.service is not None
    assert way.service.hostname == HOST


@pytest.mark.parametrize(
    ("waypoint", "address"), [(BY_NAME, "fd00:3::3"), (BY_ADDRESS, "10.3.0.3")], ids=["name", "address"]
)
def test_only_a_waypoint_that_is_known_by_name_keeps_the_family_of_the_call(waypoint: Any, address: str) -> None:
    state = state_of(CLIENT, SERVER, GATE, GATE_SERVICE, service(HOST, VIP4, VIP6, ports={80: 8080}, waypoint=waypoint))
    assert _route(state, VIP6, 80).tunnel == _at(address, 15008)


def test_calls_to_a_pods_address_pass_its_own_waypoint_and_never_its_services() -> None:
    behind_gate = workload("server", "10.2.0.2", services=behind(HOST, {80: 8080}), waypoint=BY_NAME)
    state = state_of(CLIENT, behind_gate, GATE, GATE_SERVICE, SERVICE)
    assert _route(state, "10.2.0.2", 8080).tunnel == _at("10.3.0.3", 15008)
    assert _route(state, VIP4, 80).tunnel == _at("10.2.0.2", 15008)


@pytest.mark.parametrize(
    "known",
    [[], [GATE_SERVICE], [GATE], [GATE_SERVICE, workload("gate", "10.3.0.3", status="UNHEALTHY", hbone=False)]],
    ids=["nothing", "no endpoint", "no service", "unhealthy"],
)
def test_a_waypoint_that_is_not_there_or_not_ready_is_never_gone_round(known: list[Any]) -> None:
    state = state_of(CLIENT, SERVER, *known, service(HOST, VIP4, ports={80: 8080}, waypoint=BY_NAME))
    with pytest.raises(NoRouteError, match="unknown waypoint"):
        _route(state, VIP4, 80)


def test_weighted_waypoints_are_refused_by_name() -> None:
    weighted = service(HOST, VIP4, ports={80: 8080}, weighted_waypoints=[{"destination": BY_NAME, "weight": 1}])
    refused = State().apply(update(ADDRESS_TYPE, weighted))
    assert list(refused.values()) == ["weighted waypoints are not supported"]


def test_an_unhealthy_endpoint_is_used_where_the_service_says_so() -> None:
    state = state_of(
        CLIENT,
        workload("server", "10.2.0.2", status="UNHEALTHY", services=behind(HOST, {80: 8080})),
        service(HOST, VIP4, ports={80: 8080}, load_balancing={"health_policy": "ALLOW_ALL"}),
    )
    assert _route(state, VIP4, 80).target == _at("10.2.0.2", 8080)


def test_a_passthrough_service_is_left_to_what_was_dialled() -> None:
    state = state_of(CLIENT, SERVER, service(HOST, VIP4, ports={80: 8080}, load_balancing={"mode": "PASSTHROUGH"}))
    way = _route(state, VIP4, 80)
    assert (way.target, way.tunnel) == (_at(VIP4, 80), None)


def test_only_endpoints_that_serve_the_port_are_offered_for_choice() -> None:
    offered: list[list[str]] = []

    def choose(endpoints: Sequence[Workload]) -> Workload:
        offered.append([endpoint.name for endpoint in endpoints])
        return endpoints[-1]

    half = workload("half", "10.2.0.5", services=behind(HOST, {81: 8081}))
    other = workload("other", "10.2.0.6", services=behind(HOST, {80: 8080}))
    state = state_of(CLIENT, SERVER, half, other, SERVICE)
    way = route(state, named(state, "client"), _at(VIP4, 80), choose)
    assert offered == [["server", "other"]]
    assert way.target == _at("10.2.0.6", 8080)


def test_a_private_service_is_invisible_to_other_namespaces() -> None:
    hidden = message("istio.workload.Address")()
    hidden.CopyFrom(service(HOST, VIP4, ports={80: 8080}, visibility="NAMESPACE"))
    hidden.service.namespace = "vault"
    assert _route(state_of(CLIENT, hidden), VIP4, 80).service is None


# --- state ---------------------------------------------------------------------------------------------------------


def test_a_resource_that_cannot_be_used_is_refused_alone_and_the_one_before_stays() -> None:
    state = state_of(CLIENT, SERVER)
    broken = workload("server", tunnel_protocol="LEGACY_ISTIO_MTLS")
    short = workload("short", addresses=[b"\1\2\3"])
    refused = state.apply(update(ADDRESS_TYPE, broken, short, workload("late", "10.1.0.9")))
    assert refused == {
        "Kubernetes//Pod/shop/server": "unknown enum: unsupported tunnel protocol: legacy istio mtls",
        "Kubernetes//Pod/shop/short": "failed to parse address, had 3 bytes",
    }
    assert named(state, "server").addresses
    assert named(state, "late").hbone


def test_removed_resources_are_gone_from_every_lookup() -> None:
    state = state_of(CLIENT, SERVER, SERVICE, policies=(policy("p", "DENY", destination_ports=[80]),))
    state.apply(update(ADDRESS_TYPE, removed=("Kubernetes//Pod/shop/server", f"shop/{HOST}", "never was")))
    state.apply(update(AUTHORIZATION_TYPE, removed=("shop/p",)))
    client = named(state, "client")
    assert state.workload_at(ip_address("10.2.0.2")) is None
    assert state.service_at(ip_address(VIP4), client) is None
    assert state.policies == {}


def test_of_two_claims_to_an_address_the_pods_wins() -> None:
    entry = message("istio.workload.Address")()
    entry.CopyFrom(workload("entry", "10.2.0.2"))
    entry.workload.uid = "Kubernetes/networking.istio.io/WorkloadEntry/shop/entry"
    state = state_of(SERVER, entry)
    assert state.workload_at(ip_address("10.2.0.2")) is named(state, "server")


def test_a_workload_that_comes_late_is_waited_for() -> None:
    async def scenario() -> None:
        state = state_of()
        pod = ZdsPod(uid="u", name="server", namespace="shop", service_account="server")
        waiting = asyncio.ensure_future(state.local_workload(pod))
        await asyncio.sleep(0)
        assert not waiting.done()
        state.apply(update(ADDRESS_TYPE, SERVER))
        assert await waiting is named(state, "server")
        assert await state.wait_for(lambda: state.workloads.get("nobody"), 0.0) is None

    asyncio.run(scenario())


def test_another_service_account_in_zds_is_another_workload() -> None:
    state = state_of(SERVER)
    assert state.workload_of(ZdsPod(uid="u", name="server", namespace="shop", service_account="else")) is None
