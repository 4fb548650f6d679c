"""What is dumped loads as the same topology, whatever the file was like."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.topology import dump, load

ROOT = Path(__file__).parents[2]
FILES = sorted((*ROOT.glob("topologies/*.yaml"), *ROOT.glob("fixtures/manifests/*.yaml")))
NODES = ("node-1", "node-2", "spare")

_names = st.from_regex(r"[a-z]([-a-z0-9]{0,6}[a-z0-9])?", fullmatch=True)
_namespaces = st.sampled_from(["default", "shop", "istio-system"])
_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
_label_keys = st.sampled_from(["app", "version", "istio.io/dataplane-mode", "example.com/a_b"])
_labels = st.dictionaries(
    _label_keys, st.sampled_from(["", "ambient", "v1", "true", "1.0", "null", "a_b.c"]), max_size=3
)
_ports = st.lists(st.integers(1, 14000), unique=True, max_size=3)
_paths = _texts.map(lambda text: f"/{text}")
_capabilities = st.lists(st.sampled_from(["NET_ADMIN", "SYS_TIME"]), unique=True, max_size=2)


def _optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_programs = st.fixed_dictionaries(
    {"run": st.lists(_texts, min_size=1, max_size=3)},
    optional={"env": st.dictionaries(_texts, _texts, max_size=2), "workingDir": _paths},
)
_images = st.sampled_from(["nginx", "curlimages/curl:8", "corp/tool:1", "registry:5000/x/y@sha256:0"])
_ips = st.lists(st.sampled_from(["192.0.2.0", "fd00::"]), unique=True, max_size=2)
"""Networks; ``_numbered`` makes addresses of them."""
_short_pods = st.builds(
    lambda pod, program: pod | program,
    _optional(
        node=st.sampled_from(NODES),
        ports=_ports,
        serviceAccount=_names,
        labels=_labels,
        annotations=st.dictionaries(_label_keys, _texts, max_size=2),
        image=_images,
        capabilities=_capabilities,
        emptyDirs=st.lists(_paths, max_size=2),
        workload=_names,
        ips=_ips,
        init=st.lists(_programs, max_size=2),
        restartPolicy=st.sampled_from(["Always", "OnFailure", "Never"]),
    ),
    st.just({}) | _programs,
)


def _object(kind: str, version: str, spec: st.SearchStrategy[Any], **metadata: Any) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "apiVersion": st.just(version),
            "kind": st.just(kind),
            "metadata": st.fixed_dictionaries({"name": _names, "namespace": _namespaces}, optional=metadata),
            "spec": spec,
        }
    )


def _without_spec(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "spec"}


def _labelled(document: dict[str, Any], service: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service}
    return {**document, "metadata": {**document["metadata"], "labels": labels}}


_container_ports = _ports.map(lambda numbers: [{"containerPort": number, "name": f"p{number}"} for number in numbers])
_pod_specs = st.builds(
    lambda container, rest: {"containers": [container], **rest},
    _optional(
        image=_images,
        command=st.lists(_texts, max_size=2),
        args=st.lists(_texts, max_size=2),
        ports=_container_ports,
        env=st.lists(st.fixed_dictionaries({"name": _texts, "value": _texts}), max_size=2),
    ),
    _optional(
        nodeName=st.sampled_from(NODES),
        serviceAccountName=_names,
        initContainers=st.lists(
            st.fixed_dictionaries({"command": st.lists(_texts, min_size=1, max_size=2)}), max_size=2
        ),
    ),
)
_deployments = st.builds(
    lambda labels, spec, replicas: {"replicas": replicas, "template": {"metadata": {"labels": labels}, "spec": spec}},
    _labels,
    _pod_specs,
    st.integers(0, 3),
)
_services = st.builds(
    lambda ports, rest: {"ports": [{**port, "name": f"p{n}"} for n, port in enumerate(ports)], **rest},
    st.lists(
        st.fixed_dictionaries(
            {"port": st.integers(1, 65535)},
            optional={"targetPort": st.sampled_from([80, "http"]), "appProtocol": st.sampled_from(["http", "own/x"])},
        ),
        unique_by=lambda port: port["port"],
        max_size=3,
    ),
    st.one_of(
        st.just({}),
        st.just({"clusterIP": "None"}),
        st.sampled_from([["IPv4"], ["IPv6"], ["IPv6", "IPv4"]]).map(lambda families: {"ipFamilies": families}),
        st.just({"selector": {"app": "web"}, "ipFamilyPolicy": "SingleStack"}),
    ),
)
_strings = st.lists(_texts, min_size=1, max_size=2)
_cidrs = st.lists(st.sampled_from(["10.0.0.1", "10.1.2.3/8", "fd00::/8", "::1"]), min_size=1, max_size=2)
_port_texts = st.lists(st.sampled_from(["80", "65535"]), min_size=1, max_size=2)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return _optional(**fields).filter(bool)


_sources = _some(
    principals=_strings, notNamespaces=_strings, ipBlocks=_cidrs, notIpBlocks=_cidrs, requestPrincipals=_strings
) | _some(serviceAccounts=st.just(["shop/a", "b"]), notServiceAccounts=st.just(["c"]))
_url_paths = st.lists(_paths.filter(lambda path: not {*path} & {*"{}"}), min_size=1, max_size=2)
_operations = _some(ports=_port_texts, notPorts=_port_texts, paths=_url_paths, methods=_strings)
_conditions = st.sampled_from(
    [
        {"key": "source.ip", "values": ["10.0.0.0/8"]},
        {"key": "source.namespace", "notValues": ["a"], "values": ["*"]},
        {"key": "request.headers[X]", "values": ["y"]},
    ]
)
_rules = _optional(
    **{"from": st.lists(_sources.map(lambda source: {"source": source}), min_size=1, max_size=2)},
    to=st.lists(_operations.map(lambda operation: {"operation": operation}), min_size=1, max_size=2),
    when=st.lists(_conditions, min_size=1, max_size=2),
)
_selectors = st.just({}) | st.sampled_from([{"selector": {}}, {"selector": {"matchLabels": {"app": "web"}}}])
_targets = st.just({"targetRef": {"group": "", "kind": "Service", "name": "web"}})
_authorization_policies = st.builds(
    lambda where, action, rules: {**where, "action": action, "rules": rules},
    _selectors | _targets,
    st.sampled_from(["ALLOW", "DENY"]),
    st.lists(_rules, max_size=2),
)
_modes = st.sampled_from(["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]).map(lambda mode: {"mode": mode})
_peer_authentications = _optional(
    mtls=_modes, selector=st.just({"matchLabels": {"app": "web"}})
) | st.fixed_dictionaries(
    {
        "selector": st.just({"matchLabels": {"app": "web"}}),
        "portLevelMtls": st.dictionaries(st.sampled_from(["80", "8080"]), _modes, min_size=1),
    }
)
_dry_run = st.sampled_from(["true", "false"]).map(lambda value: {"istio.io/dry-run": value})

_labs = st.builds(
    lambda pods, rest: {
        "apiVersion": "meshlab.dev/v1alpha1",
        "kind": "Lab",
        "metadata": {"name": "lab"},
        "spec": {"nodes": ["node-1", {"name": "node-2", "ztunnel": "none"}, "spare"], "pods": pods, **rest},
    },
    st.dictionaries(_names.map(lambda name: f"lab/{name}"), _short_pods, max_size=3),
    _optional(
        dataplane=st.just({"ztunnel": "NAME=./path"}),
        images=st.dictionaries(st.sampled_from(["*nginx*", "*corp/*", "*"]), st.just({}) | _programs),
        mounts=st.lists(_paths, max_size=2),
        readyTimeoutSeconds=st.sampled_from([1, 2.5, 10]),
    ),
)
_endpoint_ports = st.lists(
    st.builds(lambda name, port: {"name": name, "port": port}, _names, st.integers(1, 65535)),
    max_size=2,
    unique_by=lambda port: port["name"],
)
_endpoints = st.builds(
    lambda about, ips, ports: {**about, "subsets": [{"addresses": [{"ip": ip} for ip in ips], "ports": ports}]},
    _object("Endpoints", "v1", st.none()).map(_without_spec),
    _ips,
    _endpoint_ports,
)
_slices = st.builds(
    lambda about, ips, ports: {
        **about,
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip]} for ip in ips if ":" not in ip],
        "ports": ports,
    },
    _object(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        st.none(),
    )
    .map(_without_spec)
    .flatmap(lambda about: _names.map(lambda name: _labelled(about, name))),
    _ips,
    _endpoint_ports,
)
_matches = _optional(exact=_texts) | _optional(prefix=_texts) | st.just({"regex": ".*"})
_edits = _optional(
    set=st.dictionaries(st.just("x-a"), st.just("a, 1")),
    add=st.dictionaries(st.just("host"), st.just("a")),
    remove=st.just(["x-b"]),
)
_headers = _optional(request=_edits, response=_edits)
_durations = st.sampled_from(["1ms", "1.5s", "1h1m1s1ms", "300m"])
_percentages = st.floats(0, 100).map(lambda value: {"value": value})
_destinations = st.lists(
    st.fixed_dictionaries(
        {"destination": st.fixed_dictionaries({"host": _names}, optional={"subset": _names})},
        optional={"weight": st.integers(1, 100), "headers": _headers},
    ),
    min_size=1,
    max_size=1,
)
_routed = st.fixed_dictionaries(
    {"route": _destinations},
    optional={
        "rewrite": _some(uri=_texts, authority=_texts),
        "timeout": _durations,
        "fault": _optional(
            delay=st.fixed_dictionaries({"fixedDelay": _durations}, optional={"percentage": _percentages}),
            abort=st.fixed_dictionaries({"httpStatus": st.integers(200, 599)}, optional={"percentage": _percentages}),
        ),
        "match": _optional(
            uri=_matches,
            ignoreUriCase=st.booleans(),
            method=_matches,
            authority=_matches,
            headers=st.dictionaries(st.sampled_from(["X-A", "b"]), _matches),
            withoutHeaders=st.dictionaries(st.sampled_from(["X-A", "b"]), _matches),
            queryParams=st.dictionaries(_texts, _matches, max_size=2),
            port=st.integers(1, 65535),
        ).map(lambda match: [match]),
        "headers": _headers,
        "name": _texts,
    },
)
_answered = st.sampled_from(
    [
        {"redirect": {"uri": "/b", "redirectCode": 307}},
        {"redirect": {"prefixRewrite": "/b", "scheme": "https", "port": 8443}},
        {"directResponse": {"status": 200}},
        {"directResponse": {"status": 404, "body": {"string": "no\n"}}},
    ]
)
_tcp_rules = st.fixed_dictionaries(
    {"route": st.just([{"destination": {"host": "web", "subset": "v1"}, "weight": 3}, {"destination": {"host": "9"}}])},
    optional={"match": st.lists(st.fixed_dictionaries({}, optional={"port": st.just(90)}), min_size=1, max_size=2)},
)
_virtual_services = st.fixed_dictionaries(
    {"hosts": st.lists(_names, min_size=1, max_size=2), "http": st.lists(_routed | _answered, max_size=3)},
    optional={"gateways": st.sampled_from([["mesh"], ["edge"]]), "tcp": st.lists(_tcp_rules, max_size=2)},
)
_http_rules = st.sampled_from(
    [
        {"timeouts": {"request": "0s"}, "name": "one"},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/a+"}, "method": "GET"}, {}]},
        {"backendRefs": [{"name": "web", "port": 80}, {"name": "web", "port": 81, "weight": 0}]},
        {"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a"}}], "timeouts": {"request": "1h1ms"}},
        {"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 80, "statusCode": 301}}]},
    ]
)
_http_routes = _optional(
    parentRefs=st.lists(
        st.sampled_from([{"name": "edge"}, {"group": "", "kind": "Service", "name": "9web", "port": 80}]), max_size=2
    ),
    rules=st.lists(_http_rules, max_size=3),
)
_tcp_routes = st.fixed_dictionaries(
    {
        "parentRefs": st.just([{"group": "", "kind": "Service", "name": "9tcp", "port": 90}]),
        "rules": st.just([{"backendRefs": [{"name": "web", "port": 90, "weight": 2}, {"name": "web", "port": 91}]}]),
    }
)
_destination_rules = st.builds(
    lambda host, subsets: {
        "host": host,
        "subsets": [{"name": name, "labels": labels} for name, labels in subsets.items()],
    },
    _names,
    st.dictionaries(_names, _labels, max_size=2),
)
_manifests = st.one_of(
    _object("HTTPRoute", "gateway.networking.k8s.io/v1", _http_routes),
    _object("TCPRoute", "gateway.networking.k8s.io/v1", _tcp_routes),
    _object("VirtualService", "networking.istio.io/v1", _virtual_services),
    _object("DestinationRule", "networking.istio.io/v1", _destination_rules),
    _endpoints,
    _slices,
    _object("Pod", "v1", _pod_specs, labels=_labels),
    _object("Deployment", "apps/v1", _deployments),
    _object("Service", "v1", _services, labels=_labels),
    _object("AuthorizationPolicy", "security.istio.io/v1", _authorization_policies, annotations=_dry_run),
    _object("PeerAuthentication", "security.istio.io/v1", _peer_authentications),
    st.fixed_dictionaries(
        {
            "apiVersion": st.just("v1"),
            "kind": st.just("Namespace"),
            "metadata": st.fixed_dictionaries({"name": _namespaces}, optional={"labels": _labels}),
        }
    ),
)


def _key(document: dict[str, Any]) -> tuple[str, str, str]:
    kind = "Pod" if document["kind"] == "Deployment" else document["kind"]
    return kind, document["metadata"].get("namespace", ""), document["metadata"]["name"]


_files = st.builds(
    lambda lab, manifests, place: [*manifests[:place], lab, *manifests[place:]],
    _labs,
    st.lists(_manifests, max_size=5, unique_by=_key),
    st.integers(0, 5),
)


def _numbered(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names made different, so that no Deployment's replica is a Pod of the file, and addresses of pods as well."""
    for number, document in enumerate(documents):
        if document["kind"] in ("Pod", "Deployment"):
            document["metadata"]["name"] = f"{document['kind'].lower()}{number}"
        if document["kind"] == "Lab":
            for place, pod in enumerate(document["spec"]["pods"].values()):
                pod["ips"] = [str(ip_address(network) + place + 1) for network in pod.get("ips", [])]
    return documents


@settings(deadline=None, max_examples=50)
@given(_files.map(_numbered))
def test_a_dump_loads_as_the_same_topology(documents: list[dict[str, Any]]) -> None:
    topology = load("\n---\n".join(map(json.dumps, documents)), "generated.yaml")
    assert load(dump(topology), "dumped.yaml") == topology


@settings(deadline=None, max_examples=50)
@given(_files.map(_numbered))
def test_a_dump_of_a_dump_is_the_dump(documents: list[dict[str, Any]]) -> None:
    once = dump(load("\n---\n".join(map(json.dumps, documents)), "generated.yaml"))
    assert dump(load(once, "dumped.yaml")) == once


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_we_ship_survives_a_dump(path: Path) -> None:
    topology = load(path.read_text(), path.name)
    assert load(dump(topology), "dumped.yaml") == topology


def test_a_dump_is_for_reading() -> None:
    text = dump(load((ROOT / "topologies/two-nodes.yaml").read_text(), "two-nodes.yaml"))
    assert "shop/client: {node: node-1, serviceAccount: client}" in text
    assert "&" not in text
