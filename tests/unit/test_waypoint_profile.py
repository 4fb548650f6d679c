"""``spec.profile``: whether destinations insist on their waypoints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.model import Mesh
from meshlab.model.profile import policies_in_force
from meshlab.oracle import expected
from meshlab.topology import dump, load, load_manifests

FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: profile}
spec:
  profile: required
  pods:
    shop/client: {serviceAccount: client}
    shop/server: {ports: [8080], labels: {app: server}}
    plain/guest: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
"""


def passages(mesh: Mesh) -> tuple[str, str, str]:
    """By the Service, round the waypoint, and from outside the mesh."""
    client, server, guest = (mesh.pod(key) for key in ("shop/client", "shop/server", "plain/guest"))
    service = next(one for one in mesh.services if one.key == "server.shop")
    return (
        expected(mesh, client, service, 80, 4).passage,
        expected(mesh, client, server, 8080, 4).passage,
        expected(mesh, guest, server, 8080, 4).passage,
    )


def test_required_closes_every_way_round_and_advisory_none() -> None:
    mesh = load(FILE, "x").mesh
    assert passages(mesh) == ("allow", "deny", "deny")
    assert passages(replace(mesh, profile="advisory")) == ("allow", "allow", "allow")
    assert policies_in_force(replace(mesh, profile="advisory")) == ()


@pytest.mark.parametrize("serves", ["none", None])
def test_a_waypoint_that_is_missing_or_serves_nothing_lets_nobody_through(serves: str | None) -> None:
    mesh = load(FILE, "x").mesh
    waypoints = tuple(replace(one, serves=serves) for one in mesh.waypoints) if serves else ()  # type: ignore[arg-type]
    assert passages(replace(mesh, waypoints=waypoints)) == ("deny", "deny", "deny")


def test_a_waypoint_for_workloads_is_passed_by_calls_to_pods_and_not_by_those_to_services() -> None:
    mesh = load(FILE, "x").mesh
    assert passages(replace(mesh, waypoints=(replace(mesh.waypoints[0], serves="workload"),))) == (
        "deny",
        "allow",
        "deny",
    )


def test_a_pod_of_two_services_lets_the_waypoints_of_both_in() -> None:
    other = FILE.replace(
        "name: server, namespace: shop}", "name: other, namespace: shop, labels: {istio.io/use-waypoint: gate2}}"
    )
    mesh = load(FILE + "---" + other.split("---")[-1], "x").mesh
    (names,) = {policy.rules[0].sources[0].not_principals for policy in policies_in_force(mesh)}
    assert names == ("cluster.local/ns/shop/sa/gate", "cluster.local/ns/shop/sa/gate2")


def test_the_profile_is_written_back() -> None:
    topology = load(FILE, "x")
    assert load(dump(topology), "again") == topology


def test_a_service_that_is_added_later_does_not_get_in_the_way_of_the_waypoints_own() -> None:
    topology = load(FILE, "x")
    service = "---\n" + FILE.split("---")[-1].replace("name: server", "name: later")
    later = replace(topology, mesh=load_manifests(service, "y", topology))
    again = load(dump(later), "again").mesh
    assert {each.key: each.ipv4 for each in again.services if each.name != "gate"} == {
        each.key: each.ipv4 for each in later.mesh.services if each.name != "gate"
    }
    assert len({each.ipv4 for each in again.services}) == len(again.services)
