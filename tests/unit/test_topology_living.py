"""Pods, Deployments, Services and Namespaces that come, change and go, on the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.errors import TopologyError
from meshlab.model import Address, ContainerPort, Mesh, Pod, Program, Topology, addresses
from meshlab.plan import network
from meshlab.topology import dump, load, load_manifests, replaced, without

FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: living}
spec:
  nodes: [node-1, node-2]
  images: {"*/corp/tool:*": {run: [tool]}}
  pods:
    shop/client: {node: node-1}
    shop/server: {node: node-2, ports: [80], labels: {app: server}, serviceAccount: server}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {replicas: 2, template: {metadata: {labels: {app: web}}, spec: {containers: [{}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80}]}
"""


BASE = load(FILE, "living.yaml")


@pytest.fixture
def topology() -> Topology:
    return BASE


def _pod(name: str, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A Pod of namespace shop whose container says nothing."""
    about = {"name": name, "namespace": "shop", **more.pop("metadata", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": about,
        "spec": {"containers": [more.pop("container", {})], **(spec or {})},
        **more,
    }


def _web(replicas: int, **template: Any) -> dict[str, Any]:
    pods = {"metadata": {"labels": {"app": "web"}, **template}, "spec": {"containers": [{}]}}
    about = {"name": "web", "namespace": "shop"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": about,
        "spec": {"replicas": replicas, "template": pods},
    }


def _object(kind: str, name: str, version: str = "v1", **more: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, **more}


def _namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


SERVER = _pod(
    "server",
    {"nodeName": "node-2", "serviceAccountName": "server"},
    container={"ports": [{"containerPort": 80}]},
    metadata={"labels": {"app": "server"}},
)

Change = Callable[[str, str, Topology], Mesh]


def _do(change: Change, topology: Topology, *documents: Any) -> Topology:
    return replace(topology, mesh=change("\n---\n".join(map(json.dumps, documents)), "<text>", topology))


def _apply(topology: Topology, *documents: Any) -> Mesh:
    return _do(load_manifests, topology, *documents).mesh


def _refused(change: Change, topology: Topology, *documents: Any) -> str:
    with pytest.raises(TopologyError) as refused:
        _do(change, topology, *documents)
    (issue,) = refused.value.issues
    return issue.message


# --- pods ------------------------------------------------------------------------------------------------------------


def test_a_new_pod_goes_where_the_fewest_of_its_kind_are_and_has_the_addresses_of_the_next_place(
    topology: Topology,
) -> None:
    mesh = _apply(topology, _pod("new", {"nodeName": "node-2"}), _pod("other"))
    new, other = mesh.pod("shop/new"), mesh.pod("shop/other")
    assert (new.node, new.ipv4, new.ipv6) == ("node-2", addresses.pod4(1, 4), addresses.pod6(1, 4))
    assert (other.node, other.ipv4) == ("node-1", addresses.pod4(0, 5))
    assert (topology.mesh.places, mesh.places) == (4, 6)
    assert mesh.pods[:4] == topology.mesh.pods


def test_a_place_whose_address_somebody_has_is_passed_over(topology: Topology) -> None:
    taker = _pod("taker", status={"podIPs": [{"ip": str(addresses.pod4(0, 5))}]})
    mesh = _apply(replace(topology, mesh=_apply(topology, taker)), _pod("new", {"nodeName": "node-1"}))
    assert mesh.pod("shop/new").ipv4 == addresses.pod4(0, 6)
    assert mesh.places == 7


def test_places_come_round_again_when_all_were_had(topology: Topology) -> None:
    late = replace(topology, mesh=replace(topology.mesh, places=addresses.PLACES))
    mesh = _apply(late, _pod("new", {"nodeName": "node-1"}))
    assert mesh.pod("shop/new").ipv4 == addresses.pod4(0, 1)  # the first place on node-1 is the client's


def test_a_pod_has_the_addresses_of_its_status_and_of_its_place_for_the_family_that_is_left_out(
    topology: Topology,
) -> None:
    status = {"podIP": "192.0.2.7", "podIPs": [{"ip": "192.0.2.7"}], "phase": "Running"}
    pod = _apply(topology, _pod("new", {"nodeName": "node-1"}, status=status)).pod("shop/new")
    assert (pod.ipv4, pod.ipv6) == (IPv4Address("192.0.2.7"), addresses.pod6(0, 4))


def test_labels_and_annotations_of_a_pod_change_where_it_stands(topology: Topology) -> None:
    labels = {"app": "server", "istio.io/dataplane-mode": "none"}
    changed = {**SERVER, "metadata": {**SERVER["metadata"], "labels": labels, "annotations": {"note": "x"}}}
    mesh, old = _apply(topology, changed), topology.mesh.pod("shop/server")
    assert mesh.pod("shop/server") == replace(old, labels=labels, annotations={"note": "x"})
    assert [pod.key for pod in mesh.pods] == [pod.key for pod in topology.mesh.pods]
    assert not mesh.is_enrolled(mesh.pod("shop/server"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"nodeName": "node-1"}, "node"),
        ({"serviceAccountName": "other"}, "service account"),
        ({"containers": [{"ports": [{"containerPort": 81}]}]}, "list of ports"),
        ({"containers": [{"ports": [{"containerPort": 80}], "command": ["serve"]}]}, "program"),
        ({"restartPolicy": "Never"}, "restartPolicy"),
        ({"initContainers": [{"command": ["wait"]}]}, "init container"),
        (
            {"containers": [{"ports": [{"containerPort": 80}], "image": "corp/tool", "workingDir": "/x"}]},
            "program, image",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_of_a_pod_that_is_there_cannot_change(
    topology: Topology, change: dict[str, Any], what: str
) -> None:
    server = {**SERVER, "spec": {**SERVER["spec"], **change}}
    assert _refused(load_manifests, topology, server) == (
        f"pod 'shop/server' is there already, and with another {what}: of a pod that is there only labels and "
        "annotations can change. Delete it first, or use replace"
    )


def test_an_address_of_a_pod_that_is_there_cannot_change(topology: Topology) -> None:
    moved = {**SERVER, "status": {"podIP": "192.0.2.9"}}
    assert "with another address" in _refused(load_manifests, topology, moved)
    stays = {**SERVER, "status": {"podIP": str(topology.mesh.pod("shop/server").ipv4)}}
    assert _apply(topology, stays) == topology.mesh


def test_a_pod_that_comes_back_is_another_pod(topology: Topology) -> None:
    gone = _do(without, topology, _object("Pod", "server"))
    assert gone.mesh.former == {"shop/server": 1}
    back = _do(load_manifests, gone, SERVER)
    server = back.mesh.pod("shop/server")
    assert (server.incarnation, server.uid) == (1, "uid1-shop.server")
    assert server.ipv4 != topology.mesh.pod("shop/server").ipv4
    assert back.mesh.former == {}
    again = _do(load_manifests, _do(without, back, _object("Pod", "server")), SERVER)
    assert again.mesh.pod("shop/server").incarnation == 2


def test_a_pod_that_is_replaced_is_another_pod_at_the_same_address(topology: Topology) -> None:
    other = {**SERVER, "spec": {"containers": [{}], "serviceAccountName": "other"}}
    mesh, old = _do(replaced, topology, other).mesh, topology.mesh.pod("shop/server")
    new = mesh.pod("shop/server")
    assert (new.node, new.ipv4, new.ipv6, new.incarnation) == ("node-2", old.ipv4, old.ipv6, 1)
    assert new.service_account == "other"
    assert [pod.key for pod in mesh.pods] == [pod.key for pod in topology.mesh.pods]


def test_a_pod_that_is_replaced_on_another_node_has_another_address(topology: Topology) -> None:
    mesh = _do(replaced, topology, {**SERVER, "spec": {**SERVER["spec"], "nodeName": "node-1"}}).mesh
    assert mesh.pod("shop/server").ipv4 == addresses.pod4(0, 4)


@pytest.mark.parametrize(
    ("document", "issue"),
    [
        (
            _pod("new", status={"podIP": str(addresses.pod4(0, 0))}),
            f"{addresses.pod4(0, 0)} of pod 'shop/new' is also that of pod 'shop/client'",
        ),
        (
            _pod("new", status={"podIP": str(addresses.service4(0))}),
            f"{addresses.service4(0)} of pod 'shop/new' is also that of Service 'server.shop'",
        ),
        (
            _object("Service", "new", spec={"clusterIP": str(addresses.pod4(0, 0)), "ports": [{"port": 80}]}),
            f"{addresses.pod4(0, 0)} of Service 'new.shop' is also that of pod 'shop/client'",
        ),
        (
            _pod("new", {"nodeName": "node-3"}),
            "pod 'shop/new' is on node 'node-3', which is not under 'nodes:' (node-1, node-2). Did you mean 'node-2'?",
        ),
        (
            _pod("new", container={"image": "corp/toll"}),
            "no program stands for the image 'corp/toll' of pod 'shop/new'. Add to the Lab's spec.images: "
            '"docker.io/corp/toll*": {run: [PROGRAM, ARGUMENT]}, or {} in place of {run: ...} for the built-in echo',
        ),
        (_web(70000), "70000 replicas; a lab has at most 65534 pods"),
        (_web(65533), "65535 pods; a lab has at most 65534"),
    ],
    ids=["pod", "service", "clusterIP", "node", "image", "replicas", "pods"],
)
def test_what_comes_by_apply_is_checked_as_a_file_is(topology: Topology, document: Any, issue: str) -> None:
    assert _refused(load_manifests, topology, document) == issue


@pytest.mark.parametrize(
    ("ips", "issue"),
    [
        ('["127.0.0.1"]', "'127.0.0.1' must be an address that a pod can have"),
        ('["169.254.1.1"]', "'169.254.1.1' must be an address that a pod can have"),
        ('["fe80::1"]', "'fe80::1' must be an address that a pod can have"),
        ('["224.0.0.1"]', "'224.0.0.1' must be an address that a pod can have"),
        ('["255.255.255.255"]', "'255.255.255.255' must be an address that a pod can have"),
        ('["::ffff:10.0.0.1"]', "'::ffff:10.0.0.1' must be an address that a pod can have"),
        ('["100.77.0.1"]', "'100.77.0.1' must be an address that a pod can have"),
        ('["10.0.0.1", "10.0.0.2"]', "10.0.0.2 beside 10.0.0.1: a pod has one address of each family"),
    ],
)
def test_an_address_that_no_pod_can_have_is_refused(ips: str, issue: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(FILE.replace("{node: node-1}", f"{{ips: {ips}}}"), "living.yaml")
    assert issue in str(refused.value)


def test_two_pods_with_one_address_in_one_file_are_refused_at_the_one_that_asks_for_it() -> None:
    text = FILE.replace("{node: node-1}", f"{{node: node-1, ips: [{addresses.pod4(1, 1)}]}}")
    with pytest.raises(TopologyError) as refused:
        load(text, "living.yaml")
    (issue,) = refused.value.issues
    assert issue.message == f"{addresses.pod4(1, 1)} of pod 'shop/client' is also that of pod 'shop/server'"
    assert issue.line == 9


@pytest.mark.parametrize(
    "own",
    [network.CONTROL_PLANE4, network.CONTROL_PLANE6, network._NODES4[7], network._NODES6[7], network._PROXIES4[7]],
    ids=str,
)
def test_no_pod_takes_an_address_of_the_labs_own(own: Address) -> None:
    with pytest.raises(TopologyError, match="must be an address that a pod can have"):
        load(FILE.replace("{node: node-1}", f'{{ips: ["{own}"]}}'), "living.yaml")


# --- Deployments -----------------------------------------------------------------------------------------------------


def _web_pods(mesh: Mesh) -> list[Pod]:
    return [pod for pod in mesh.pods if pod.workload == "web"]


def test_more_replicas_are_added_at_the_end_and_the_others_stay(topology: Topology) -> None:
    mesh = _apply(topology, _web(3))
    assert [pod.name for pod in _web_pods(mesh)] == ["web-0", "web-1", "web-2"]
    assert mesh.pods[:4] == topology.mesh.pods


def test_fewer_replicas_are_taken_away_at_the_end(topology: Topology) -> None:
    mesh = _apply(topology, _web(1))
    assert [pod.name for pod in _web_pods(mesh)] == ["web-0"]
    assert mesh.former == {"shop/web-1": 1}
    assert _apply(replace(topology, mesh=mesh), _web(2)).pod("shop/web-1").incarnation == 1


def test_another_template_makes_other_pods(topology: Topology) -> None:
    mesh = _apply(topology, _web(2, labels={"app": "web", "version": "v2"}))
    for old, new in zip(_web_pods(topology.mesh), _web_pods(mesh), strict=True):
        assert new == replace(old, labels={"app": "web", "version": "v2"}, incarnation=1)


def test_a_deployment_does_not_take_a_pod_that_is_not_its_own(topology: Topology) -> None:
    alone = _do(without, topology, _object("Deployment", "web", "apps/v1"))
    with_pod = _do(load_manifests, alone, _pod("web-1"))
    assert _refused(load_manifests, with_pod, _web(2)) == (
        "pod 'shop/web-1' is there already, and not of the Deployment 'web': delete it first"
    )


def test_a_deployment_takes_its_pods_with_it(topology: Topology) -> None:
    mesh = _do(without, topology, _object("Deployment", "web", "apps/v1")).mesh
    assert [pod.key for pod in mesh.pods] == ["shop/client", "shop/server"]


# --- Services and namespaces -----------------------------------------------------------------------------------------


def test_a_service_keeps_its_address_where_it_names_none(topology: Topology) -> None:
    changed = _object("Service", "server", spec={"selector": {"app": "web"}, "ports": [{"port": 81}]})
    (old,) = topology.mesh.services
    (new,) = _apply(topology, changed).services
    assert (new.ipv4, new.ipv6, new.selector) == (old.ipv4, old.ipv6, {"app": "web"})


def test_a_service_without_an_address_stays_headless_where_it_names_none(topology: Topology) -> None:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 81}]}
    headless = _do(load_manifests, topology, _object("Service", "server", spec={**spec, "clusterIP": "None"}))
    (service,) = _apply(headless, _object("Service", "server", spec=spec)).services
    assert (service.ipv4, service.ipv6) == (None, None)


def test_a_new_service_has_the_next_free_address(topology: Topology) -> None:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    two = _do(load_manifests, topology, _object("Service", "second", spec=spec))
    one = _do(without, two, _object("Service", "server"))
    mesh = _apply(one, _object("Service", "third", spec=spec))
    assert [(service.name, service.ipv4) for service in mesh.services] == [
        ("second", addresses.service4(1)),
        ("third", addresses.service4(2)),
    ]


def test_the_echo_of_a_pod_that_is_there_listens_where_a_new_service_leads(topology: Topology) -> None:
    spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 7777}]}
    more = _do(load_manifests, topology, _object("Service", "more", spec=spec))
    server = more.mesh.pod("shop/server")
    assert server.ports == (ContainerPort(number=80), ContainerPort(number=7777))
    assert server.incarnation == 0
    assert _apply(more, SERVER) == more.mesh  # its manifest does not say so, and still is the same


def test_labels_of_a_namespace_are_replaced(topology: Topology) -> None:
    mesh = _apply(topology, _namespace("shop", team="a"))
    assert mesh.namespace_labels("shop") == {"team": "a"}
    assert not any(map(mesh.is_enrolled, mesh.pods))


def test_a_namespace_in_which_something_is_exists(topology: Topology) -> None:
    account = _object("ServiceAccount", "x")
    account["metadata"]["namespace"] = "new"
    assert [namespace.name for namespace in _apply(topology, account).namespaces] == ["shop", "new"]
    assert _do(without, topology, account).mesh == topology.mesh


def test_a_namespace_takes_everything_in_it_with_it(topology: Topology) -> None:
    mesh = _do(without, topology, _namespace("shop")).mesh
    assert replace(mesh, former={}, places=0) == Mesh()
    assert mesh.former == {"shop/client": 1, "shop/server": 1, "shop/web-0": 1, "shop/web-1": 1}


def test_a_text_that_was_applied_can_be_deleted_as_it_is(topology: Topology) -> None:
    text = [_namespace("shop"), SERVER, _web(2), _object("ServiceAccount", "server")]
    assert _do(without, topology, *text).mesh.pods == ()


@pytest.mark.parametrize(
    ("document", "issue"),
    [
        (
            _object("Pod", "sever"),
            "no Pod 'shop/sever' to take away (shop/client, shop/server, shop/web-0, shop/web-1).",
        ),
        (_object("Deployment", "webb", "apps/v1"), "no Deployment 'shop/webb' to take away (shop/web)."),
        (_object("Service", "serve"), "no Service 'shop/serve' to take away (shop/server)."),
        (_object("Endpoints", "server"), "no Endpoints 'shop/server' to take away (there is none)."),
        (_namespace("shopp"), "no Namespace 'shopp' to take away (shop)."),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_taking_away_what_is_not_there_is_refused(topology: Topology, document: Any, issue: str) -> None:
    assert _refused(without, topology, document).startswith(issue)


# --- init containers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "program"),
    [
        ({"command": ["wait"], "args": ["-n"]}, Program(argv=("wait", "-n"))),
        ({"image": "busybox", "command": ["sh"]}, Program(argv=("sh",))),
        ({"image": "corp/tool:1", "args": ["-x"]}, Program(argv=("tool", "-x"))),
        ({"image": "corp/tool:1", "command": ["other"]}, Program(argv=("other",))),
    ],
    ids=["command", "command of an unknown image", "image", "command of an image"],
)
def test_an_init_container_runs_its_command_or_the_program_of_its_image(
    topology: Topology, container: dict[str, Any], program: Program
) -> None:
    mesh = _apply(topology, _pod("new", {"initContainers": [container, {"command": ["second"]}]}))
    assert mesh.pod("shop/new").init == (program, Program(argv=("second",)))


@pytest.mark.parametrize(
    ("container", "add"),
    [
        ({}, ""),
        (
            {"image": "busybox"},
            ', or add to the Lab\'s spec.images: "docker.io/library/busybox*": {run: [PROGRAM, ARGUMENT]}',
        ),
    ],
    ids=["nothing", "an unknown image"],
)
def test_an_init_container_without_a_program_is_refused(
    topology: Topology, container: dict[str, Any], add: str
) -> None:
    assert _refused(load_manifests, topology, _pod("new", {"initContainers": [container]})) == (
        "init container 0 of pod 'shop/new' has no program, and the built-in echo never ends: give it a command" + add
    )


def test_a_volume_has_one_path_in_all_containers_of_a_pod(topology: Topology) -> None:
    spec: dict[str, Any] = {
        "volumes": [{"name": "work", "emptyDir": {}}],
        "containers": [{"volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
        "initContainers": [{"command": ["a"], "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
    }
    assert _apply(topology, _pod("new", spec)).pod("shop/new").empty_dirs == ("/work",)
    spec["initContainers"][0]["volumeMounts"] = [{"name": "work", "mountPath": "/other"}]
    assert _refused(load_manifests, topology, _pod("new", spec)) == (
        "volume 'work' is at /work in another container: it has one path in a pod"
    )


@pytest.mark.parametrize(("value", "bypasses"), [("true", True), ("T", True), ("false", False), ("yes", False)])
def test_plaintext_goes_past_the_proxy_where_an_annotation_says_true_in_go(
    topology: Topology, value: str, bypasses: bool
) -> None:
    annotations = {"ambient.istio.io/bypass-inbound-capture": value}
    pod = _apply(topology, _pod("new", metadata={"annotations": annotations})).pod("shop/new")
    assert pod.bypasses_inbound is bypasses
    assert not topology.mesh.pods[0].bypasses_inbound


# --- laws ------------------------------------------------------------------------------------------------------------

_labels = st.dictionaries(st.sampled_from(["app", "version"]), st.sampled_from(["web", "v1", "new"]), max_size=2)
_new_pods = st.builds(
    lambda name, node, labels: _pod(name, {"nodeName": node} if node else {}, metadata={"labels": labels}),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["", "node-1", "node-2"]),
    _labels,
)
_deployments = st.builds(
    lambda name, replicas, labels: {
        **_web(replicas, labels=labels),
        "metadata": {"name": name, "namespace": "shop"},
    },
    st.sampled_from(["x", "y"]),
    st.integers(1, 3),
    _labels,
)
_texts = st.lists(_new_pods | _deployments, max_size=4, unique_by=lambda document: document["metadata"]["name"])


@settings(deadline=None, max_examples=30)
@given(_texts)
def test_applying_and_deleting_gives_the_same_pods(documents: list[Any]) -> None:
    before = BASE
    after = _do(load_manifests, before, *documents)
    back = _do(without, after, *documents).mesh
    assert replace(back, former={}, places=before.mesh.places) == before.mesh


@settings(deadline=None, max_examples=30)
@given(_texts)
def test_applying_twice_is_applying_once(documents: list[Any]) -> None:
    once = _do(load_manifests, BASE, *documents)
    assert _do(load_manifests, once, *documents) == once


_services = st.builds(
    lambda name, selector, port, family: _object(
        "Service", name, spec={"selector": selector, "ports": [{"port": 80, "targetPort": port}], **family}
    ),
    st.sampled_from(["server", "s", "t"]),
    st.sampled_from([{}, {"app": "server"}, {"app": "web"}]),
    st.sampled_from([80, 7777, "http"]),
    st.sampled_from([{}, {"clusterIP": "None"}, {"ipFamilies": ["IPv6"]}]),
)
_by_hand = st.builds(
    lambda name, place: _object(
        "Endpoints", name, subsets=[{"addresses": [{"ip": str(addresses.pod4(0, place))}], "ports": [{"port": 90}]}]
    ),
    st.sampled_from(["s", "t"]),
    st.integers(0, 5),
)
_others = st.builds(lambda labels: _namespace("shop", **labels), _labels) | _services | _by_hand
_anything = st.lists(
    _new_pods | _deployments | _others, max_size=4, unique_by=lambda d: (d["kind"], d["metadata"]["name"])
)
_histories = st.lists(st.tuples(st.sampled_from([load_manifests, replaced, without]), _anything), max_size=5)


@settings(deadline=None, max_examples=30)
@given(_histories)
def test_a_mesh_that_changed_is_dumped_as_it_is_but_for_what_was_there_before(
    history: list[tuple[Change, list[Any]]],
) -> None:
    topology = BASE
    for change, documents in history:
        with suppress(TopologyError):  # a pod that is there on another node, or that is not there
            topology = _do(change, topology, *documents)
    loaded = load(dump(topology), "dumped.yaml").mesh
    pods = tuple(replace(pod, incarnation=0) for pod in topology.mesh.pods)
    assert replace(loaded, places=0) == replace(topology.mesh, pods=pods, places=0, former={})
