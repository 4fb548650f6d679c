"""What a node proxy is sent of PeerAuthentications: nothing, one static policy, or one with exceptions."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from meshlab.model import Mesh, MtlsMode, PeerAuthentication, Pod
from meshlab.translate import ADDRESS_TYPE, AUTHORIZATION_TYPE, resources

UNSET, DISABLE, PERMISSIVE, STRICT = MtlsMode.UNSET, MtlsMode.DISABLE, MtlsMode.PERMISSIVE, MtlsMode.STRICT
STATIC = "istio-system/istio_converted_static_strict"
CONVERTED = "shop/converted_peer_authentication_own"
WEB = {"app": "web"}
POD = Pod(
    name="web", namespace="shop", node="node-1", ipv4=IPv4Address("10.0.0.1"), ipv6=IPv6Address("fd00::1"), labels=WEB
)
NO_IDENTITY: dict[str, Any] = {"not_principals": [{"presence": {}}]}


def _mesh_wide(mode: MtlsMode) -> PeerAuthentication:
    return PeerAuthentication(name="mesh", namespace="istio-system", mode=mode)


def _wide(mode: MtlsMode) -> PeerAuthentication:
    return PeerAuthentication(name="wide", namespace="shop", mode=mode)


def _own(mode: MtlsMode, ports: dict[int, MtlsMode] | None = None) -> PeerAuthentication:
    return PeerAuthentication(name="own", namespace="shop", selector=WEB, mode=mode, port_level_mtls=ports or {})


def _listed(*policies: PeerAuthentication, pod: Pod = POD) -> list[str]:
    sent = resources(Mesh(pods=(pod,), peer_authentications=policies), ())
    workload: Any = sent[ADDRESS_TYPE][f"Kubernetes//Pod/{pod.key}"]
    listed = list(workload.workload.authorization_policies)
    assert set(listed) <= set(sent[AUTHORIZATION_TYPE]), "a listed policy is not sent"
    return listed


def _sent(*policies: PeerAuthentication) -> dict[str, Any]:
    messages = resources(Mesh(peer_authentications=policies), ())[AUTHORIZATION_TYPE]
    return {name: MessageToDict(sent, preserving_proto_field_name=True) for name, sent in messages.items()}


def _clauses(*policies: PeerAuthentication) -> list[list[list[dict[str, Any]]]]:
    return [[clause["matches"] for clause in group["rules"]] for group in _sent(*policies)[CONVERTED]["groups"]]


def test_without_any_peer_authentication_nothing_is_sent() -> None:
    assert _sent() == {}


def test_the_static_policy_denies_whoever_has_no_identity() -> None:
    assert _sent(_mesh_wide(UNSET)) == {
        STATIC: {
            "name": "istio_converted_static_strict",
            "namespace": "istio-system",
            "scope": "WORKLOAD_SELECTOR",
            "action": "DENY",
            "groups": [{"rules": [{"matches": [NO_IDENTITY]}]}],
        }
    }


@pytest.mark.parametrize(
    ("mesh", "namespace", "workload", "strict"),
    [
        (UNSET, UNSET, UNSET, False),
        (STRICT, UNSET, UNSET, True),
        (STRICT, PERMISSIVE, UNSET, False),
        (STRICT, DISABLE, UNSET, False),
        (PERMISSIVE, STRICT, UNSET, True),
        (PERMISSIVE, UNSET, STRICT, True),
        (STRICT, STRICT, PERMISSIVE, False),
        (STRICT, STRICT, DISABLE, False),
        (PERMISSIVE, UNSET, UNSET, False),
    ],
)
def test_the_nearest_level_that_is_set_decides(
    mesh: MtlsMode, namespace: MtlsMode, workload: MtlsMode, strict: bool
) -> None:
    assert _listed(_mesh_wide(mesh), _wide(namespace), _own(workload)) == ([STATIC] if strict else [])


@pytest.mark.parametrize("make", [_mesh_wide, _wide, _own])
@pytest.mark.parametrize(("first", "second", "strict"), [(STRICT, PERMISSIVE, True), (PERMISSIVE, STRICT, False)])
def test_of_one_level_the_oldest_wins(make: Any, first: MtlsMode, second: MtlsMode, strict: bool) -> None:
    assert _listed(make(first), replace(make(second), name="younger")) == ([STATIC] if strict else [])


@pytest.mark.parametrize(
    "policy",
    [
        replace(_own(STRICT), selector={"app": "x"}),
        replace(_own(STRICT), namespace="other"),
        replace(_own(STRICT), namespace="istio-system"),
        replace(_wide(STRICT), namespace="other"),
    ],
    ids=["other labels", "another namespace", "a selector in the root namespace", "all of another namespace"],
)
def test_a_pod_is_not_under_a_policy_for(policy: PeerAuthentication) -> None:
    assert _listed(policy) == []


@pytest.mark.parametrize("mode", [PERMISSIVE, DISABLE])
def test_a_strict_workload_excepts_its_open_ports(mode: MtlsMode) -> None:
    own = _own(STRICT, {8080: mode, 9090: STRICT, 7070: mode})
    assert _listed(own) == [CONVERTED]
    assert _clauses(own) == [[[NO_IDENTITY], [{"not_destination_ports": [7070]}], [{"not_destination_ports": [8080]}]]]


@pytest.mark.parametrize("mode", [PERMISSIVE, DISABLE, UNSET])
def test_an_open_workload_has_a_group_for_each_strict_port(mode: MtlsMode) -> None:
    own = _own(mode, {8080: STRICT, 9090: PERMISSIVE, 7070: STRICT})
    assert _listed(own) == [CONVERTED]
    assert _clauses(own) == [
        [[{**NO_IDENTITY, "destination_ports": [7070]}]],
        [[{**NO_IDENTITY, "destination_ports": [8080]}]],
    ]


@pytest.mark.parametrize("wide", [_mesh_wide, _wide])
def test_ports_are_excepted_from_the_mode_that_is_inherited(wide: Any) -> None:
    own = _own(UNSET, {8080: DISABLE})
    assert _listed(wide(STRICT), own) == [CONVERTED]
    assert _clauses(wide(STRICT), own) == [[[NO_IDENTITY], [{"not_destination_ports": [8080]}]]]


def test_a_namespace_without_a_mode_hands_down_the_meshs_with_ports_too() -> None:
    assert _listed(_mesh_wide(STRICT), _wide(UNSET), _own(UNSET, {8080: PERMISSIVE})) == [CONVERTED]


def test_a_strict_port_of_an_open_workload_is_strict_in_a_strict_mesh_too() -> None:
    assert _listed(_mesh_wide(STRICT), _own(PERMISSIVE, {8080: STRICT})) == [CONVERTED]


@pytest.mark.parametrize(
    ("own", "listed"),
    [
        (_own(STRICT, {8080: STRICT, 9090: UNSET}), [STATIC]),
        (_own(PERMISSIVE, {8080: DISABLE, 9090: UNSET}), []),
        (replace(_own(STRICT, {8080: PERMISSIVE}), selector=None), [STATIC]),
        (replace(_own(PERMISSIVE, {8080: STRICT}), selector={}), []),
    ],
    ids=["all strict", "all open", "no selector", "empty selector"],
)
def test_ports_make_no_policy_of_their_own_with(own: PeerAuthentication, listed: list[str]) -> None:
    assert _listed(own) == listed
    assert set(_sent(own)) == {STATIC}
