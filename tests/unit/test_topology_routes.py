"""Routes as a file has them: what a waypoint would do with them, what it would not, and what the lab refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshlab.errors import TopologyError
from meshlab.model import (
    Abort,
    Backend,
    Delay,
    DestinationRule,
    DirectResponse,
    HeaderEdits,
    HttpRule,
    Mesh,
    Mirror,
    NamedMatch,
    Redirect,
    RequestMatch,
    Rewrite,
    Route,
    StringMatch,
    TcpRule,
    Topology,
)
from meshlab.topology import dump, load, load_manifests, read, replaced, without

SERVICES = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
TO_WEB = {"destination": {"host": "web"}}
TO_MIRROR = {"backendRef": {"name": "web", "port": 80}}
MIRROR = {"type": "RequestMirror", "requestMirror": TO_MIRROR}
EVERYTHING = RequestMatch(path=StringMatch("segments", "/"))


def _object(kind: str, version: str, spec: dict[str, Any], name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _http_route(*rules: dict[str, Any], name: str = "route", namespace: str = "shop", **more: Any) -> dict[str, Any]:
    spec = {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": list(rules), **more}
    return _object("HTTPRoute", "gateway.networking.k8s.io/v1", spec, name, namespace)


def _virtual(*rules: dict[str, Any], name: str = "route", namespace: str = "shop", **more: Any) -> dict[str, Any]:
    spec = {"hosts": ["web"], "http": list(rules) or [{"route": [TO_WEB]}], **more}
    return _object("VirtualService", "networking.istio.io/v1", spec, name, namespace)


def _destination_rule(namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    return _object("DestinationRule", "networking.istio.io/v1", {"host": "web", **spec}, "web", namespace)


def _text(*documents: dict[str, Any]) -> str:
    return "\n---\n".join([SERVICES, *map(json.dumps, documents)])


def _topology(*documents: dict[str, Any]) -> Topology:
    """It also survives a dump, and nothing of it is without effect."""
    reading = read(_text(*documents), "t.yaml")
    assert reading.warnings == ()
    assert load(dump(reading.topology), "dumped.yaml") == reading.topology
    return reading.topology


def _rule(document: dict[str, Any]) -> HttpRule:
    (route,) = _topology(document).mesh.routes
    return route.rules[0]


def _warnings(*documents: dict[str, Any]) -> tuple[Mesh, list[str]]:
    reading = read(_text(*documents), "t.yaml")
    return reading.topology.mesh, [issue.message for issue in reading.warnings]


def _refused(*documents: dict[str, Any]) -> str:
    with pytest.raises(TopologyError) as refused:
        load(_text(*documents), "t.yaml")
    return "\n".join(issue.message for issue in refused.value.issues)


# --- what a port speaks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ({"name": "http"}, "http"),
        ({"name": "http-web"}, "http"),
        ({"name": "http2-web"}, "http2"),
        ({"name": "grpc-web"}, "grpc"),
        ({"name": "grpc-web-api"}, "grpc"),
        ({"name": "mysql-db"}, "mysql"),
        ({"name": "httpx"}, ""),
        ({"name": "web-http"}, ""),
        ({}, ""),
        ({"name": "tcp", "appProtocol": "HTTP"}, "http"),
        ({"appProtocol": "kubernetes.io/h2c"}, "http2"),
        ({"appProtocol": "kubernetes.io/ws"}, "http"),
        ({"appProtocol": "kubernetes.io/wss"}, "https"),
        ({"name": "http", "appProtocol": "example.com/Own"}, "example.com/own"),
    ],
    ids=str,
)
def test_a_port_speaks_what_app_protocol_says_or_else_the_first_part_of_its_name(
    port: dict[str, Any], protocol: str
) -> None:
    service = _object("Service", "v1", {"selector": {"app": "web"}, "ports": [{"port": 80, **port}]}, "other", "shop")
    topology = _topology(service)
    assert topology.mesh.services[1].ports[0].protocol == protocol


# --- HTTPRoute -------------------------------------------------------------------------------------------------------


def test_an_http_route_is_for_the_services_that_are_its_parents() -> None:
    parents = [{"group": "", "kind": "Service", "name": "web", "port": 80}]
    (route,) = _topology(_http_route({"backendRefs": [{"name": "web", "port": 80}]}, parentRefs=parents)).mesh.routes
    backends = (Backend(service="web.shop", port=80),)
    assert route == Route(
        kind="HTTPRoute",
        name="route",
        namespace="shop",
        services=(("web.shop", 80),),
        rules=(HttpRule(matches=(EVERYTHING,), backends=backends),),
    )


def test_an_http_route_without_rules_has_one_that_matches_everything() -> None:
    assert _rule(_http_route()) == HttpRule(matches=(EVERYTHING,))


def test_the_matches_of_an_http_route() -> None:
    match = {
        "path": {"type": "Exact", "value": "/a"},
        "method": "GET",
        "headers": [{"name": "X-A", "value": "1"}, {"name": "b", "value": ".*", "type": "RegularExpression"}],
        "queryParams": [{"name": "Q", "value": "1"}],
    }
    assert _rule(_http_route({"matches": [match]})).matches == (
        RequestMatch(
            path=StringMatch("exact", "/a"),
            method=StringMatch("exact", "GET"),
            headers=(NamedMatch("x-a", StringMatch("exact", "1")), NamedMatch("b", StringMatch("regex", ".*"))),
            query=(NamedMatch("Q", StringMatch("exact", "1")),),
        ),
    )


def test_the_filters_of_an_http_route() -> None:
    edits = {"set": [{"name": "A", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["C"]}
    read_as = HeaderEdits(set=(("a", "1"),), add=(("b", "2"),), remove=("c",))
    on_request = {"type": "RequestHeaderModifier", "requestHeaderModifier": edits}
    on_response = {"type": "ResponseHeaderModifier", "responseHeaderModifier": edits}
    path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "a.example", "path": path}}
    backend = {"name": "web", "port": 80, "weight": 0, "filters": [on_request, on_response]}
    rule = _rule(_http_route({"filters": [on_request, on_response, rewrite], "backendRefs": [backend]}))
    assert (rule.request_headers, rule.response_headers) == (read_as, read_as)
    assert rule.rewrite == Rewrite(prefix="/", authority="a.example")
    (to,) = rule.backends
    assert (to.weight, to.request_headers, to.response_headers) == (0, read_as, read_as)


@pytest.mark.parametrize(
    ("part", "percent"),
    [
        ({}, 100),
        ({"percent": 20}, 20),
        ({"percent": 0}, 0),
        ({"fraction": {"numerator": 25, "denominator": 50}}, 50),
        ({"fraction": {"numerator": 1, "denominator": 3}}, 33.3333),
        ({"fraction": {"numerator": 7}}, 7),
    ],
    ids=str,
)
def test_a_mirror_of_an_http_route(part: dict[str, Any], percent: float) -> None:
    mirrors = [MIRROR | {"requestMirror": {**TO_MIRROR, **part}}, MIRROR]
    to_web = Backend(service="web.shop", port=80)
    assert _rule(_http_route({"filters": mirrors})).mirrors == (
        Mirror(backend=to_web, percent=percent),
        Mirror(backend=to_web),
    )


@pytest.mark.parametrize(
    "rule",
    [
        {"mirror": {"host": "web", "subset": "v1"}, "mirrorPercentage": {"value": 0.5}},
        {"mirrors": [{"destination": {"host": "web", "subset": "v1"}, "percentage": {"value": 0.5}}]},
    ],
    ids=["one", "several"],
)
def test_a_mirror_of_a_virtual_service(rule: dict[str, Any]) -> None:
    to_v1 = Backend(service="web.shop", port=0, subset="v1")
    assert _rule(_virtual({"route": [TO_WEB], **rule})).mirrors == (Mirror(backend=to_v1, percent=0.5),)
    assert _rule(_virtual({"route": [TO_WEB], "mirror": {"host": "web"}})).mirrors[0].percent == 100
    mesh, warnings = _warnings(_virtual({"route": [TO_WEB], "mirror": {"host": "web"}, "mirrorPercentage": {}}))
    assert mesh.routes[0].rules[0].mirrors[0].percent == 0
    assert warnings == ["nothing is mirrored: the percentage is 0"]


def test_a_redirect_of_an_http_route_is_302_unless_it_says_otherwise() -> None:
    path = {"type": "ReplaceFullPath", "replaceFullPath": "/b"}
    one = {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "path": path}}
    other = {"type": "RequestRedirect", "requestRedirect": {"statusCode": 301}}
    assert _rule(_http_route({"filters": [one]})).redirect == Redirect(status=302, scheme="https", port=8443, path="/b")
    assert _rule(_http_route({"filters": [other]})).redirect == Redirect(status=301)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", None), ("500ms", 0.5), ("1m30s", 90), ("1h1ms", 3600.001), ("99999s", 99999)]
)
def test_a_timeout_of_an_http_route(text: str, seconds: float | None) -> None:
    assert _rule(_http_route({"timeouts": {"request": text}})).timeout_s == seconds


@pytest.mark.parametrize(
    ("parent", "why"),
    [
        ({"name": "gate"}, "the parent Gateway 'gate' has no effect: the lab has no ingress"),
        (
            {"group": "", "kind": "Service", "name": "web", "namespace": "other"},
            "the parent Service 'web.other' has no",
        ),
    ],
    ids=["a Gateway", "a Service of another namespace"],
)
def test_a_route_without_a_service_of_its_namespace_is_not_in_the_mesh(parent: dict[str, Any], why: str) -> None:
    mesh, warnings = _warnings(_http_route(parentRefs=[parent]))
    assert mesh.routes == ()
    assert warnings[0] == (
        "the HTTPRoute 'shop/route' has no effect: no Service of its namespace is among its parentRefs"
    )
    assert why in warnings[1]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"timeouts": {"backendRequest": "1s"}}, "spec.rules[0].timeouts.backendRequest is refused: the lab does not"),
        ({"timeouts": {"request": "1.5s"}}, "'1.5s' must be a duration"),
        ({"retry": {"attempts": 1}}, "spec.rules[0].retry is refused"),
        ({"filters": [{"type": "RequestMirror", "requestMirror": {}}]}, "requestMirror needs the key 'backendRef'"),
        (
            {"filters": [MIRROR | {"requestMirror": {**TO_MIRROR, "percent": 1, "fraction": {"numerator": 1}}}]},
            "exclude",
        ),
        ({"filters": [MIRROR | {"requestMirror": {**TO_MIRROR, "fraction": {"numerator": 101}}}]}, "101/100 is none"),
        ({"filters": [MIRROR, {"type": "RequestRedirect", "requestRedirect": {}}]}, "mirrors nothing"),
        ({"filters": [{"type": "URLRewrite"}]}, "a filter of the type URLRewrite needs the key 'urlRewrite'"),
        (
            {"filters": [{"type": "URLRewrite", "urlRewrite": {}, "requestRedirect": {}}]},
            "requestRedirect does not go with the type URLRewrite",
        ),
        ({"filters": [{"type": "URLRewrite", "urlRewrite": {}}] * 2}, "the filter URLRewrite is there twice"),
        (
            {
                "filters": [{"type": "RequestRedirect", "requestRedirect": {}}],
                "backendRefs": [{"name": "a", "port": 1}],
            },
            "a rule with a RequestRedirect has neither backendRefs nor a URLRewrite",
        ),
        (
            {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath"}}}]},
            "a path of the type ReplaceFullPath has the key 'replaceFullPath', and no other",
        ),
        (
            {
                "matches": [{"path": {"type": "Exact", "value": "/a"}}],
                "filters": [
                    {
                        "type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
                    }
                ],
            },
            "ReplacePrefixMatch needs a match of the type PathPrefix in every match",
        ),
        ({"backendRefs": [{"name": "web"}]}, "needs the key 'port'"),
        ({"backendRefs": [{"name": "web", "port": 80, "kind": "Bucket"}]}, "the lab routes to Services only"),
        ({"backendRefs": [{"name": "web", "port": 80, "namespace": "other"}]}, "it needs a ReferenceGrant"),
        ({"matches": [{"path": {"value": "a"}}]}, "value: 'a' must be a path"),
        ({"matches": [{"path": {"type": "RegularExpression", "value": "(?=a)"}}]}, "that RE2 and Python read alike"),
        (
            {"matches": [{"headers": [{"name": "a", "value": "1"}, {"name": "A", "value": "2"}]}]},
            "'a' is there twice in one match",
        ),
        (
            {"matches": [{"headers": [{"name": "a", "value": "[", "type": "RegularExpression"}]}]},
            "value: '[' must be a regular expression",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_http_route_may_not_say(rule: dict[str, Any], why: str) -> None:
    assert why in _refused(_http_route(rule))


def test_a_service_is_a_parent_by_its_own_group() -> None:
    assert 'write `group: ""`' in _refused(_http_route(parentRefs=[{"kind": "Service", "name": "web"}]))


# --- VirtualService --------------------------------------------------------------------------------------------------


def test_a_virtual_service_is_for_the_services_that_are_its_hosts() -> None:
    hosts = ["web", "web.shop.svc.cluster.local"]
    (route,) = _topology(_virtual(hosts=hosts)).mesh.routes
    assert route == Route(
        kind="VirtualService",
        name="route",
        namespace="shop",
        services=(("web.shop", None),),
        rules=(HttpRule(backends=(Backend(service="web.shop", port=0),)),),
    )


def test_the_matches_of_a_virtual_service() -> None:
    match = {
        "uri": {"prefix": "/a"},
        "ignoreUriCase": True,
        "method": {"regex": "GET|PUT"},
        "authority": {"prefix": "web"},
        "headers": {"X-A": {"exact": ""}, "b": {}, "c": {"regex": "*"}},
        "withoutHeaders": {"d": {"prefix": "1"}, "e": {}},
        "queryParams": {"Q": {"exact": "1"}, "r": {}},
        "port": 80,
    }
    assert _rule(_virtual({"match": [match], "route": [TO_WEB]})).matches == (
        RequestMatch(
            path=StringMatch("prefix", "/a", ignore_case=True),
            method=StringMatch("regex", "GET|PUT"),
            authority=StringMatch("prefix", "web"),
            headers=(
                NamedMatch("x-a", StringMatch("exact", "")),
                NamedMatch("b", None),
                NamedMatch("c", None),
                NamedMatch("d", StringMatch("prefix", "1"), inverted=True),
                NamedMatch("e", None, inverted=True),
            ),
            query=(NamedMatch("Q", StringMatch("exact", "1")), NamedMatch("r", None)),
            port=80,
        ),
    )


def test_the_pseudo_headers_of_a_virtual_service_are_the_method_and_the_authority() -> None:
    match = {"headers": {":method": {"exact": "GET"}, ":authority": {"prefix": "web"}, "a": {}}}
    assert _rule(_virtual({"match": [match], "route": [TO_WEB]})).matches == (
        RequestMatch(
            method=StringMatch("exact", "GET"),
            authority=StringMatch("prefix", "web"),
            headers=(NamedMatch("a", None),),
        ),
    )


def test_an_empty_match_matches_every_request() -> None:
    assert _rule(_virtual({"match": [{}], "route": [TO_WEB]})).matches == (RequestMatch(),)


@pytest.mark.parametrize(
    ("weights", "read_as"),
    [((None,), (1,)), ((0,), (1,)), ((100,), (100,)), ((90, 10), (90, 10)), ((None, 10), (0, 10))],
    ids=str,
)
def test_the_only_destination_gets_everything_and_one_of_several_what_it_says(
    weights: tuple[int | None, ...], read_as: tuple[int, ...]
) -> None:
    route = [TO_WEB | ({} if weight is None else {"weight": weight}) for weight in weights]
    assert tuple(backend.weight for backend in _rule(_virtual({"route": route})).backends) == read_as


def test_what_becomes_of_a_request_by_a_virtual_service() -> None:
    edits = {"request": {"set": {"A": "1"}, "add": {"b": "2"}, "remove": ["C"]}, "response": {"remove": ["d"]}}
    on_request = HeaderEdits(set=(("a", "1"),), add=(("b", "2"),), remove=("c",))
    on_response = HeaderEdits(remove=("d",))
    destination = {"host": "web.shop.svc.cluster.local", "port": {"number": 80}, "subset": "v1"}
    rule = {
        "name": "all",
        "route": [{"destination": destination, "headers": edits}],
        "rewrite": {"uri": "/b", "authority": "b"},
        "timeout": "1m0.5s",
        "fault": {
            "delay": {"fixedDelay": "500ms", "percentage": {"value": 0.1}},
            "abort": {"httpStatus": 503, "percentage": {"value": 50}},
        },
        "headers": edits,
        "retries": {"attempts": 0},
    }
    backend = Backend(
        service="web.shop", port=80, subset="v1", request_headers=on_request, response_headers=on_response
    )
    assert _rule(_virtual(rule)) == HttpRule(
        name="all",
        backends=(backend,),
        rewrite=Rewrite(prefix="/b", authority="b"),
        timeout_s=60.5,
        delay=Delay(seconds=0.5, percent=0.1),
        abort=Abort(status=503, percent=50),
        request_headers=on_request,
        response_headers=on_response,
    )


@pytest.mark.parametrize(
    ("uri", "rewrite"),
    [
        ({"prefix": "/a"}, Rewrite(prefix="/b")),
        ({"exact": "/a"}, Rewrite(path="/b")),
        ({"regex": "/.*"}, Rewrite(path="/b")),
        ({}, Rewrite(prefix="/b")),
    ],
    ids=str,
)
def test_a_rewrite_is_of_the_prefix_that_matched_or_else_of_the_whole_path(
    uri: dict[str, str], rewrite: Rewrite
) -> None:
    assert _rule(_virtual({"match": [{"uri": uri}], "route": [TO_WEB], "rewrite": {"uri": "/b"}})).rewrite == rewrite


def test_a_redirect_of_a_virtual_service_is_301_unless_it_says_otherwise() -> None:
    whole = {"uri": "/b", "authority": "b", "scheme": "https", "port": 8443, "redirectCode": 307}
    assert _rule(_virtual({"redirect": {"authority": "b", "uri": ""}})).redirect == Redirect(status=301, authority="b")
    assert _rule(_virtual({"redirect": {"prefixRewrite": "/b"}})).redirect == Redirect(status=301, prefix="/b")
    assert _rule(_virtual({"redirect": whole})).redirect == Redirect(
        status=307, scheme="https", authority="b", port=8443, path="/b"
    )


def test_an_answer_of_the_waypoint_s_own() -> None:
    given = {"directResponse": {"status": 418, "body": {"string": "tea"}}}
    assert _rule(_virtual(given)).direct_response == DirectResponse(status=418, body="tea")


@pytest.mark.parametrize("kind", ["delay", "abort"])
def test_a_fault_without_a_percentage_never_happens(kind: str) -> None:
    fault = {"delay": {"fixedDelay": "1s"}, "abort": {"httpStatus": 500}}
    mesh, warnings = _warnings(_virtual({"route": [TO_WEB], "fault": {kind: fault[kind]}}))
    assert getattr(mesh.routes[0].rules[0], kind).percent == 0
    assert warnings == [f"the {kind} never happens: its percentage is 0 where it is not given"]


def test_a_virtual_service_of_an_ingress_has_no_effect() -> None:
    mesh, warnings = _warnings(_virtual(gateways=["ingress"]))
    assert mesh.routes == ()
    assert warnings == [
        "the VirtualService has no effect: the lab has no ingress, and 'mesh' is not among its gateways"
    ]
    assert _topology(_virtual(gateways=["ingress", "mesh"])).mesh.routes


@pytest.mark.parametrize("host", ["web.shop", "www.example.com", "web.shop.svc"])
def test_a_host_with_a_dot_is_no_service_unless_it_is_written_in_full(host: str) -> None:
    mesh, warnings = _warnings(_virtual(hosts=[host]))
    assert mesh.routes == ()
    assert warnings == [
        f"the host '{host}' has no effect: Istio takes a host with a dot as it stands, and a Service is "
        f"NAME.NAMESPACE.svc.cluster.local"
    ]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({}, "a rule has one of route, redirect and directResponse; this one has none"),
        ({"route": [TO_WEB], "redirect": {}}, "this one has route and redirect"),
        ({"redirect": {"uri": "/"}, "rewrite": {"uri": "/"}}, "rewrite does not go with redirect"),
        ({"directResponse": {"status": 200}, "fault": {}}, "fault does not go with directResponse"),
        (
            {"directResponse": {"status": 200, "body": {"bytes": "eA=="}}},
            "body.bytes is refused: the lab compares text",
        ),
        ({"redirect": {"uri": "/"}, "mirror": {"host": "web"}}, "mirror does not go with redirect"),
        ({"route": [TO_WEB], "mirror": {"host": "web"}, "mirrors": [{"destination": {"host": "web"}}]}, "exclude"),
        ({"route": [TO_WEB], "mirrorPercentage": {"value": 1}}, "mirrorPercentage goes with mirror"),
        ({"route": [TO_WEB], "mirror": {"host": "web"}, "mirrorPercent": 1}, "write mirrorPercentage, which took its"),
        ({"directResponse": {"status": 700}}, "700 must be an HTTP status, 200 to 599"),
        ({"redirect": {"uri": "/", "prefixRewrite": "/"}}, "uri and prefixRewrite exclude each other"),
        ({"redirect": {"prefixRewrite": "/"}, "match": [{"uri": {"exact": "/a"}}]}, "does not go with an exact match"),
        ({"route": [TO_WEB], "rewrite": {}}, "a rewrite needs uri or authority"),
        (
            {
                "route": [TO_WEB],
                "rewrite": {"uri": "/"},
                "match": [{"uri": {"exact": "/a"}}, {"uri": {"prefix": "/b"}}],
            },
            "write two rules",
        ),
        ({"route": [TO_WEB, TO_WEB]}, "the weights of several destinations must not all be 0"),
        ({"route": [{"destination": {"host": "web.shop"}}]}, "'web.shop' must be the host of a Service"),
        ({"route": [TO_WEB], "timeout": "0s"}, "'0s' must be a duration in whole milliseconds"),
        ({"route": [TO_WEB], "timeout": "0.0001s"}, "'0.0001s' must be a duration in whole milliseconds"),
        (
            {"route": [TO_WEB], "retries": {"attempts": 2}},
            "retries.attempts is refused: the lab does not support retries",
        ),
        ({"route": [TO_WEB], "corsPolicy": {}}, "corsPolicy is refused: the lab does not support it yet"),
        ({"delegate": {"name": "a"}}, "delegate is refused: the lab does not support it yet"),
        ({"route": [TO_WEB], "match": [{"sourceLabels": {"a": "b"}}]}, "a waypoint ignores it, so the match would be"),
        ({"route": [TO_WEB], "match": [{"uri": {"exact": "/", "prefix": "/"}}]}, "exact and prefix exclude each other"),
        ({"route": [TO_WEB], "match": [{"uri": {"regex": "a++"}}]}, "regex: 'a++' must be a regular expression"),
        ({"route": [TO_WEB], "match": [{"headers": {"a": {}, "A": {}}}]}, "'a' is there twice"),
        (
            {"route": [TO_WEB], "match": [{"method": {"exact": "GET"}, "headers": {":method": {"exact": "PUT"}}}]},
            "method is asked for twice, also as the header ':method'",
        ),
        (
            {"route": [TO_WEB], "match": [{"headers": {":path": {"exact": "/"}}}]},
            "the key ':path' must be the name of a header, ':method' or ':authority'",
        ),
        (
            {"route": [TO_WEB], "headers": {"request": {"set": {"a": "%HOSTNAME%"}}}},
            "'%HOSTNAME%' must be visible ASCII without '%', which Envoy takes for a variable",
        ),
        (
            {"route": [TO_WEB], "fault": {"abort": {"httpStatus": 500, "percentage": {"value": 101}}}},
            "101 must be a number, 0 to 100",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_virtual_service_may_not_say(rule: dict[str, Any], why: str) -> None:
    assert why in _refused(_virtual(rule))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"hosts": ["*"]}, "Istio refuses the host '*' in the mesh: name the Services"),
        ({"hosts": ["*.shop.svc.cluster.local"]}, "the lab does not support the wildcard"),
        ({"tls": []}, "spec.tls is refused: the lab does not route TLS by its server names"),
        ({"tcp": [{}]}, "a rule for TCP needs `route`"),
        ({"tcp": [{"route": [TO_WEB, TO_WEB]}]}, "the weights of several destinations must not all be 0"),
        (
            {"tcp": [{"match": [{"port": 90, "sourceLabels": {"a": "b"}}], "route": [TO_WEB]}]},
            "match[0].sourceLabels is refused: a waypoint ignores it",
        ),
        ({"http": None}, "a VirtualService needs `http` or `tcp`: its rules"),
        ({"gateways": ["a/*"]}, "'a/*' must be `mesh`, GATEWAY or NAMESPACE/GATEWAY"),
    ],
    ids=str,
)
def test_what_a_virtual_service_may_not_be_for(spec: dict[str, Any], why: str) -> None:
    document = _virtual(**spec)
    if spec.get("http", ()) is None:
        del document["spec"]["http"]
    assert why in _refused(document)


# --- DestinationRule -------------------------------------------------------------------------------------------------


def test_a_destination_rule_names_the_subsets_of_a_service() -> None:
    subsets = [{"name": "v1", "labels": {"version": "v1"}}, {"name": "all"}]
    tls = {"tls": {"mode": "ISTIO_MUTUAL"}}
    mesh = _topology(_destination_rule(subsets=subsets, trafficPolicy=tls)).mesh
    rule = DestinationRule(
        name="web", namespace="shop", service="web.shop", subsets={"v1": {"version": "v1"}, "all": {}}
    )
    assert mesh.destination_rules == (rule,)
    assert mesh.subset(mesh.services[0], "v1") == {"version": "v1"}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"subsets": [{"name": "a"}, {"name": "a"}]}, "the subset 'a' is there twice"),
        ({"trafficPolicy": {"loadBalancer": {}}}, "spec.trafficPolicy.loadBalancer is refused: the lab does not"),
        ({"trafficPolicy": {"tls": {"mode": "SIMPLE"}}}, "ISTIO_MUTUAL and DISABLE change nothing at a waypoint"),
        ({"subsets": [{"name": "a", "trafficPolicy": {"tunnel": {}}}]}, "subsets[0].trafficPolicy.tunnel is refused"),
        ({"workloadSelector": {}}, "it selects sidecars, which the lab does not have"),
        ({"host": "web.other.svc.cluster.local"}, "a DestinationRule of another namespace than its Service's ('shop')"),
    ],
    ids=str,
)
def test_what_a_destination_rule_may_not_say(spec: dict[str, Any], why: str) -> None:
    assert why in _refused(_destination_rule(**spec))


# --- TCP -------------------------------------------------------------------------------------------------------------


BYTES = _object(
    "Service",
    "v1",
    {"selector": {"app": "web"}, "ports": [{"port": 90, "targetPort": 80, "name": "tcp"}]},
    "bytes",
    "shop",
)
TO_BYTES = {"destination": {"host": "bytes", "port": {"number": 90}}}


def test_the_rules_for_tcp_of_a_virtual_service() -> None:
    first = {"match": [{"port": 90}, {"port": 91}], "route": [TO_BYTES | {"weight": 4}, TO_WEB | {"weight": 1}]}
    some = _virtual(hosts=["bytes"], tcp=[first, {"match": [{"port": 1}, {}], "route": [TO_BYTES]}])
    del some["spec"]["http"]
    (route,) = _topology(BYTES, some).mesh.routes
    to_bytes = Backend(service="bytes.shop", port=90)
    assert route.tcp == (
        TcpRule(ports=(90, 91), backends=(replace(to_bytes, weight=4), Backend(service="web.shop", port=0))),
        TcpRule(backends=(to_bytes,)),
    )


def _tcp_route(*rules: dict[str, Any], version: str = "v1", **parent: Any) -> dict[str, Any]:
    spec = {"parentRefs": [{"group": "", "kind": "Service", "name": "bytes", **parent}], "rules": list(rules)}
    return _object("TCPRoute", f"gateway.networking.k8s.io/{version}", spec, "route", "shop")


@pytest.mark.parametrize("version", ["v1", "v1alpha2"])
def test_a_tcp_route_is_for_the_services_that_are_its_parents(version: str) -> None:
    rule = {"backendRefs": [{"name": "web", "port": 80, "weight": 0}, {"name": "bytes", "port": 90}]}
    (route,) = _topology(BYTES, _tcp_route(rule, version=version, port=90)).mesh.routes
    backends = (Backend(service="web.shop", port=80, weight=0), Backend(service="bytes.shop", port=90))
    assert route == Route(
        kind="TCPRoute",
        name="route",
        namespace="shop",
        services=(("bytes.shop", 90),),
        tcp=(TcpRule(backends=backends),),
    )
    assert without(json.dumps(_tcp_route(rule)), "<delete>", _topology(BYTES, _tcp_route(rule))).routes == ()


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ((), "a TCPRoute has one rule"),
        (({"backendRefs": [{"name": "web", "port": 80}]},) * 2, "a TCPRoute has one rule"),
        (({},), "a rule of a TCPRoute needs backendRefs"),
    ],
)
def test_what_a_tcp_route_may_not_say(rules: tuple[dict[str, Any], ...], why: str) -> None:
    assert why in _refused(BYTES, _tcp_route(*rules))


def test_rules_for_tcp_have_no_effect_on_a_port_that_speaks_http() -> None:
    _, warnings = _warnings(_virtual(tcp=[{"route": [TO_WEB]}]))
    assert warnings == [
        "the VirtualService 'shop/route' has no effect on Service 'web.shop': a rule for TCP is for none of its ports "
        "that do not speak HTTP"
    ]
    rule = {"backendRefs": [{"name": "bytes", "port": 90}]}
    assert "for TCP is for none" in _warnings(BYTES, _tcp_route(rule, port=91))[1][0]


# --- beside each other, and in a running lab -------------------------------------------------------------------------


def test_both_kinds_of_route_for_one_service_are_refused() -> None:
    assert _refused(_http_route(name="one"), _virtual(name="two")) == (
        "the VirtualService 'shop/two' is for Service 'web.shop', as is the HTTPRoute 'shop/one': Istio does not "
        "support both kinds for one Service; write routes of one kind"
    )
    assert len(_topology(_virtual(name="one"), _virtual(name="two")).mesh.routes) == 2


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (_virtual(hosts=["other"]), "on Service 'other.shop': there is no such Service"),
        (_virtual(namespace="edge", hosts=["web.shop.svc.cluster.local"]), "routes of its own namespace and of the"),
        (_destination_rule(host="other"), "the DestinationRule 'shop/web' has no effect: there is no Service"),
    ],
    ids=["no such Service", "of another namespace", "of no Service"],
)
def test_a_route_that_no_waypoint_honours_loads_with_a_warning(document: dict[str, Any], why: str) -> None:
    _, (warning,) = _warnings(document)
    assert why in warning


def test_a_route_for_a_service_without_a_waypoint_loads_with_a_warning() -> None:
    without_waypoint = _text(_virtual()).replace(", istio.io/use-waypoint: gate", "")
    (warning,) = read(without_waypoint, "t.yaml").warnings
    assert warning.message == (
        "the VirtualService 'shop/route' has no effect on Service 'web.shop': calls to it pass no waypoint"
    )


def test_a_running_lab_takes_routes_changes_them_and_loses_them() -> None:
    topology = _topology(_virtual(name="first"), _virtual(name="second"), _destination_rule())
    other = json.dumps(_virtual({"directResponse": {"status": 404}}, name="first"))
    for change in (load_manifests, replaced):
        mesh = change(other, "<change>", topology)
        assert [route.name for route in mesh.routes] == ["first", "second"]
        assert mesh.routes[0].rules[0].direct_response == DirectResponse(status=404)
        assert mesh.destination_rules == topology.mesh.destination_rules
    mesh = without(
        "\n---\n".join(map(json.dumps, (_virtual(name="second"), _destination_rule()))), "<delete>", topology
    )
    assert ([route.name for route in mesh.routes], mesh.destination_rules) == (["first"], ())


def test_a_route_that_is_changed_to_one_without_effect_is_gone() -> None:
    topology = _topology(_virtual())
    assert load_manifests(json.dumps(_virtual(gateways=["ingress"])), "<apply>", topology).routes == ()


def test_a_route_of_the_other_kind_can_follow_when_the_first_is_deleted() -> None:
    topology = _topology(_virtual())
    with pytest.raises(TopologyError, match="Istio does not support both kinds"):
        load_manifests(json.dumps(_http_route()), "<apply>", topology)
    left = replace(topology, mesh=without(json.dumps(_virtual()), "<delete>", topology))
    (route,) = load_manifests(json.dumps(_http_route()), "<apply>", left).routes
    assert route.kind == "HTTPRoute"


def test_deleting_is_of_the_kind_that_is_named() -> None:
    with pytest.raises(TopologyError, match="no HTTPRoute 'shop/route' to take away"):
        without(json.dumps(_http_route()), "<delete>", _topology(_virtual()))


def test_a_namespace_takes_its_routes_with_it() -> None:
    namespace = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}'
    mesh = without(namespace, "<delete>", _topology(_virtual(), _destination_rule()))
    assert (mesh.routes, mesh.destination_rules) == ((), ())


# --- policies and Gateways -------------------------------------------------------------------------------------------


def _policy(rule: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _object("AuthorizationPolicy", "security.istio.io/v1", {"rules": [rule], **more}, "rules", "shop")


ON_WEB = {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]}
TO_GET = {"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}


@pytest.mark.parametrize(
    "target",
    [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gate"},
        {"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "istio-waypoint"},
        {"group": "", "kind": "Service", "name": "web"},
        {"group": "core", "kind": "Service", "name": "web"},
    ],
    ids=lambda target: target["kind"] + target["group"],
)
def test_a_policy_with_a_target_may_ask_for_http(target: dict[str, str]) -> None:
    (policy,) = _topology(_policy(TO_GET, targetRefs=[target])).mesh.authorization_policies
    assert policy.target_refs == (target,)


@pytest.mark.parametrize(
    ("action", "effect"),
    [
        ("ALLOW", "this rule allows nothing"),
        ("DENY", "this rule denies what its other parts match"),
    ],
)
def test_a_policy_without_a_target_says_what_no_node_proxy_reads(action: str, effect: str) -> None:
    rule = TO_GET | {"when": [{"key": "request.headers[a]", "values": ["b"]}, {"key": "source.ip", "values": ["::"]}]}
    _, warnings = _warnings(_policy(rule, action=action))
    assert warnings == [
        "no node proxy can judge methods, request.headers[a], and without targetRefs only node proxies enforce a "
        f"policy: {effect}. Give it targetRefs to have a waypoint enforce it"
    ]


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"from": [{"source": {"remoteIpBlocks": ["10.0.0.1"]}}]}, "remoteIpBlocks"),
        ({"from": [{"source": {"notRemoteIpBlocks": ["10.0.0.1"]}}]}, "notRemoteIpBlocks"),
        ({"when": [{"key": "remote.ip", "values": ["10.0.0.1"]}]}, "remote.ip"),
    ],
    ids=["remoteIpBlocks", "notRemoteIpBlocks", "remote.ip"],
)
def test_a_policy_with_a_target_may_not_ask_for_remote_addresses(rule: dict[str, Any], name: str) -> None:
    assert _refused(_policy(rule, **ON_WEB)) == f"{name} is refused: the lab does not support it at a waypoint yet"


def test_a_waypoint_listens_on_15008_for_hbone_and_another_gateway_on_what_it_likes() -> None:
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "istio", "listeners": [listener]}
    gateway = _object("Gateway", "gateway.networking.k8s.io/v1", spec, "edge", "shop")
    _, (warning,) = _warnings(gateway)
    assert "the Gateway 'edge' has no effect" in warning
    spec["gatewayClassName"] = "istio-waypoint"
    assert _refused(gateway) == (
        "port 80 is refused: a waypoint listens on 15008\n"
        "the protocol 'HTTP' is refused: a waypoint takes nothing but HBONE"
    )
