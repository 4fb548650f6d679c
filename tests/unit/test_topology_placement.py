"""Where pods go that name no node, and what Services add to the pods behind them."""

from __future__ import annotations

import pytest

from meshlab.model import ContainerPort
from meshlab.topology import load, read

AMBIENT = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n"


def _lab(pods: str, nodes: str = "", more: str = "") -> str:
    head = "apiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {name: x}\n"
    return f"{head}spec: {{{nodes}pods: {{{pods}}}}}{AMBIENT}{more}"


def _nodes(text: str) -> dict[str, str]:
    return {pod.key: pod.node for pod in load(text, "x.yaml").mesh.pods}


@pytest.mark.parametrize(
    "pods",
    [
        "shop/server: {ports: [80]}, plain/other: {}, shop/client: {}",
        "plain/other: {}, plain/more: {}, shop/server: {ports: [80]}, plain/last: {}, shop/client: {}",
        "shop/client: {}, shop/server: {ports: [80], node: node-1}",
        "shop/client: {node: node-2}, shop/server: {ports: [80]}",
    ],
)
def test_two_pods_of_the_mesh_are_on_two_nodes_whatever_stands_between_them(pods: str) -> None:
    nodes = _nodes(_lab(pods))
    assert nodes["shop/client"] != nodes["shop/server"]


def test_pods_outside_the_mesh_fill_what_the_mesh_left_empty() -> None:
    assert _nodes(_lab("shop/one: {}, plain/a: {}, plain/b: {}")) == {
        "shop/one": "node-1",
        "plain/a": "node-2",
        "plain/b": "node-1",
    }


def test_a_pod_of_no_other_kind_begins_at_the_first_node() -> None:
    assert _nodes(_lab("plain/a: {}")) == {"plain/a": "node-1"}


def test_many_pods_are_spread_evenly() -> None:
    pods = ", ".join(f"shop/p{n}: {{}}" for n in range(9))
    nodes = list(_nodes(_lab(pods, "nodes: [a, b, c], ")).values())
    assert {node: nodes.count(node) for node in nodes} == {"a": 3, "b": 3, "c": 3}


def _service(spec: str) -> str:
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"


BEHIND = "shop/web: {ports: [80], labels: {app: web}}"


def test_the_echo_listens_where_a_service_leads_and_validate_says_so() -> None:
    reading = read(_lab(BEHIND, more=_service("{selector: {app: web}, ports: [{port: 80, targetPort: 7777}]}")), "x")
    assert reading.topology.mesh.pods[0].ports == (ContainerPort(number=80), ContainerPort(number=7777))
    (warning,) = reading.warnings
    assert "Service 'web.shop' leads to port 7777 of pod 'shop/web', which does not declare it" in warning.message
    assert warning.line > 1


def test_a_program_of_its_own_is_not_said_to_listen_where_it_does_not_say_so() -> None:
    own = "shop/web: {run: [nginx], ports: [80], labels: {app: web}}"
    reading = read(_lab(own, more=_service("{selector: {app: web}, ports: [{port: 80, targetPort: 7777}]}")), "x")
    assert reading.topology.mesh.pods[0].ports == (ContainerPort(number=80),)
    assert reading.warnings == ()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("{ports: [{port: 80}]}", "it has no selector, and no Endpoints or EndpointSlice of it holds a pod's address"),
        ("{selector: {app: wbe}, ports: [{port: 80}]}", "no pod of namespace 'shop' has its labels (app=wbe)"),
        (
            "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}",
            "no pod with its labels (app=web) has a port named 'http'",
        ),
    ],
    ids=["no selector", "a slip", "no such port"],
)
def test_validate_says_of_a_service_that_nobody_stands_behind_it(spec: str, why: str) -> None:
    (warning,) = read(_lab(BEHIND, more=_service(spec)), "x").warnings
    assert warning.message == f"nobody stands behind Service 'web.shop': {why}"


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_echo_leaves_the_node_proxys_own_ports_alone(port: int) -> None:
    reading = read(_lab(BEHIND, more=_service(f"{{selector: {{app: web}}, ports: [{{port: {port}}}]}}")), "x")
    assert [entry.number for entry in reading.topology.mesh.pods[0].ports] == [80]
