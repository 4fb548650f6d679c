"""The L7 oracle on hand-made meshes: which rule takes a request, what is changed, what it comes to, and who may."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address

import pytest

from meshlab.model import (
    Abort,
    Action,
    AuthorizationPolicy,
    Backend,
    Condition,
    Delay,
    DestinationRule,
    DirectResponse,
    HeaderEdits,
    HttpRequest,
    HttpRule,
    Mesh,
    Mirror,
    NamedMatch,
    Namespace,
    Operation,
    Pod,
    Redirect,
    RequestMatch,
    Rewrite,
    Route,
    Rule,
    Service,
    ServicePort,
    Source,
    Status,
    StringMatch,
    Waypoint,
)
from meshlab.oracle import expected
from meshlab.oracle.requests import is_like_path, matches, normalised


def pod(place: int, name: str, **more: object) -> Pod:
    return Pod(
        name=name,
        namespace="shop",
        node="node-1",
        ipv4=IPv4Address("10.0.0.0") + place,
        ipv6=IPv6Address("fd00::") + place,
        service_account=name,
        **more,  # type: ignore[arg-type]
    )


def service(place: int, name: str, **selector: str) -> Service:
    return Service(
        name=name,
        namespace="shop",
        ipv4=IPv4Address("172.16.0.0") + place,
        ipv6=None,
        selector=selector,
        ports=(ServicePort(port=80, target_port=8080, name="http", protocol="http"),),
    )


MESH = Mesh(
    namespaces=(
        Namespace(name="shop", labels={"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "gate"}),
    ),
    pods=(
        pod(1, "client"),
        pod(2, "one", labels={"app": "shop", "version": "one"}),
        pod(3, "two", labels={"app": "shop", "version": "two"}),
        pod(4, "gate", gateway="gate", labels={"istio.io/dataplane-mode": "none"}),
    ),
    services=(service(1, "shop", app="shop"), service(2, "one", version="one"), service(3, "two", version="two")),
    waypoints=(Waypoint(name="gate", namespace="shop"),),
    destination_rules=(
        DestinationRule(
            name="shop",
            namespace="shop",
            service="shop.shop",
            subsets={"v1": {"version": "one"}, "v2": {"version": "two"}},
        ),
    ),
)
ONE, TWO = Backend(service="one.shop", port=80), Backend(service="two.shop", port=80)


def routed(*rules: HttpRule, kind: str = "HTTPRoute") -> Mesh:
    route = Route(kind=kind, name="r", namespace="shop", services=(("shop.shop", None),), rules=rules)  # type: ignore[arg-type]
    return replace(MESH, routes=(route,))


def comes_to(mesh: Mesh, path: str = "/", **request: object) -> list[tuple[float, str]]:
    """(chance, pods or status) of each share."""
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, HttpRequest(path=path, **request))  # type: ignore[arg-type]
    return [
        (
            float(share.chance),
            " ".join(
                str(way.response.code)
                if isinstance(way.response, Status)
                else way.path.server.pod.removeprefix("shop/")
                for way in share.ways
            ),
        )
        for share in due.shares
    ]


def path_is(how: str, value: str) -> RequestMatch:
    return RequestMatch(path=StringMatch(how, value))  # type: ignore[arg-type]


def test_where_no_rule_is_for_the_port_a_request_goes_to_the_endpoints_of_its_service() -> None:
    other = HttpRule(matches=(RequestMatch(port=81),), backends=(ONE,))
    assert comes_to(routed(other, kind="VirtualService")) == [(1.0, "one two")]
    assert comes_to(routed(kind="VirtualService")) == [(1.0, "one two")]


def copies(mesh: Mesh, path: str = "/") -> list[tuple[float, str]]:
    """(chance, pods) of the copies of a request to ``path``."""
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, HttpRequest(path=path))
    return [
        (float(copies.chance), " ".join(way.path.server.pod.removeprefix("shop/") for way in copies.ways))
        for share in due.shares
        for copies in share.copies
    ]


def test_copies_of_what_is_sent_on_go_to_mirrors() -> None:
    gone = Mirror(backend=Backend(service="gone.shop", port=80))
    mirrors = (Mirror(backend=TWO, percent=25), Mirror(backend=replace(TWO, service="shop.shop")), gone)
    mesh = routed(HttpRule(backends=(ONE,), mirrors=mirrors))
    assert copies(mesh) == [(0.25, "two"), (1.0, "one two")]
    assert not expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, HttpRequest()).is_certain
    assert copies(routed(HttpRule(backends=(ONE,), mirrors=(Mirror(backend=TWO, percent=0),)))) == []
    assert copies(routed(HttpRule(abort=Abort(status=500), backends=(ONE,), mirrors=mirrors))) == []


def test_of_what_is_denied_there_is_no_copy() -> None:
    rule = HttpRule(backends=(ONE,), mirrors=(Mirror(backend=TWO),))
    deny = policy(Action.DENY, Rule(operations=(Operation(paths=("/a",)),)))
    mesh = replace(routed(rule), authorization_policies=(deny,))
    assert (copies(mesh, "/a"), copies(mesh, "/b")) == ([], [(1.0, "two")])


def test_without_a_route_a_request_goes_to_the_endpoints_of_its_service() -> None:
    assert comes_to(MESH) == [(1.0, "one two")]


@pytest.mark.parametrize(
    ("match", "request_", "is_match"),
    [
        (path_is("exact", "/a"), HttpRequest(path="/a?x=1"), True),
        (path_is("exact", "/a"), HttpRequest(path="/a/"), False),
        (path_is("prefix", "/a"), HttpRequest(path="/ab"), True),
        (path_is("segments", "/a"), HttpRequest(path="/ab"), False),
        (path_is("segments", "/a"), HttpRequest(path="/a/b"), True),
        (path_is("segments", "/a/"), HttpRequest(path="/a"), True),
        (path_is("segments", "/"), HttpRequest(path="/any"), True),
        (path_is("regex", "/v[0-9]"), HttpRequest(path="/v1"), True),
        (path_is("regex", "/v[0-9]"), HttpRequest(path="/v1/x"), False),
        (RequestMatch(path=StringMatch("exact", "/A", ignore_case=True)), HttpRequest(path="/a"), True),
        (RequestMatch(method=StringMatch("exact", "POST")), HttpRequest(), False),
        (RequestMatch(headers=(NamedMatch("a", StringMatch("exact", "1")),)), HttpRequest(headers=(("a", "1"),)), True),
        (
            RequestMatch(headers=(NamedMatch("a", StringMatch("exact", "1,2")),)),
            HttpRequest(headers=(("a", "1"), ("a", "2"))),
            False,
        ),
        (
            RequestMatch(headers=(NamedMatch("a", StringMatch("exact", "2")),)),
            HttpRequest(headers=(("a", "1"), ("a", "2"))),
            True,
        ),
        (RequestMatch(headers=(NamedMatch("a", None),)), HttpRequest(headers=(("a", ""),)), True),
        (RequestMatch(headers=(NamedMatch("a", None, inverted=True),)), HttpRequest(), True),
        (RequestMatch(headers=(NamedMatch(":method", StringMatch("exact", "GET")),)), HttpRequest(), True),
        (RequestMatch(query=(NamedMatch("q", StringMatch("exact", "1")),)), HttpRequest(path="/?q=1&q=2"), True),
        (RequestMatch(query=(NamedMatch("q", StringMatch("exact", "2")),)), HttpRequest(path="/?q=1&q=2"), False),
        (RequestMatch(authority=StringMatch("prefix", "shop")), HttpRequest(authority="shop:80"), True),
        (RequestMatch(port=80), HttpRequest(), True),
        (RequestMatch(port=81), HttpRequest(), False),
    ],
)
def test_a_match(match: RequestMatch, request_: HttpRequest, is_match: bool) -> None:
    assert matches(match, request_, 80) is is_match


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("/public/../private", "/private"),
        ("/public/%2e%2E/private", "/private"),
        ("/public/./x", "/public/x"),
        ("/a//b", "/a//b"),
        ("/a\\b", "/a/b"),
        ("/a/..", "/"),
        ("/../../x?y=/../z", "/x?y=/../z"),
        ("/%61%2Fb", "/a%2Fb"),
        ("*", "*"),
    ],
)
def test_a_path_is_normalised_before_anything_looks_at_it(sent: str, seen: str) -> None:
    assert normalised(HttpRequest(path=sent)).path == seen


@pytest.mark.parametrize(
    ("path", "pattern", "is_like"),
    [
        ("/store/foo/cart", "/store/{**}/cart", True),
        ("/store/cart", "/store/{**}/cart", False),
        ("/store//cart", "/store/{**}/cart", True),
        ("/foo/bar", "/{*}/bar", True),
        ("//bar", "/{*}/bar", False),
        ("/a/b", "/{*}", False),
        ("/info/x", "/info*", True),
        ("/x/info", "*/info", True),
        ("/x", "*", True),
    ],
)
def test_a_policys_path(path: str, pattern: str, is_like: bool) -> None:
    assert is_like_path(path, pattern) is is_like


def test_of_an_http_route_the_most_specific_match_wins_and_of_a_virtual_service_the_first() -> None:
    rules = (
        HttpRule(matches=(path_is("segments", "/"),), backends=(ONE,)),
        HttpRule(matches=(path_is("segments", "/a"),), backends=(TWO,)),
        HttpRule(matches=(path_is("exact", "/a/b"),), direct_response=DirectResponse(status=418)),
    )
    assert comes_to(routed(*rules), "/a") == [(1.0, "two")]
    assert comes_to(routed(*rules), "/a/b") == [(1.0, "418")]
    assert comes_to(routed(*rules, kind="VirtualService"), "/a/b") == [(1.0, "one")]


def test_more_headers_beat_fewer_and_a_method_beats_none() -> None:
    plain = HttpRule(matches=(path_is("segments", "/"),), backends=(ONE,))
    headers = (NamedMatch("a", StringMatch("exact", "1")), NamedMatch("b", None))
    two = HttpRule(matches=(RequestMatch(headers=headers),), direct_response=DirectResponse(status=202))
    method = HttpRule(matches=(RequestMatch(method=StringMatch("exact", "PUT")),), backends=(TWO,))
    mesh = routed(plain, HttpRule(matches=(RequestMatch(headers=headers[:1]),), backends=(ONE,)), two, method)
    assert comes_to(mesh, headers=(("a", "1"), ("b", "x"))) == [(1.0, "202")]
    assert comes_to(mesh, method="PUT", headers=(("a", "1"),)) == [(1.0, "two")]
    assert comes_to(mesh) == [(1.0, "one")]


def test_where_no_rule_matches_the_answer_is_404() -> None:
    assert comes_to(routed(HttpRule(matches=(path_is("exact", "/a"),), backends=(ONE,)))) == [(1.0, "404")]


def test_weights_are_chances_and_one_of_0_has_none() -> None:
    mesh = routed(HttpRule(backends=(replace(ONE, weight=9), replace(TWO, weight=1), replace(TWO, weight=0))))
    assert comes_to(mesh) == [(0.9, "one"), (0.1, "two")]


@pytest.mark.parametrize(("kind", "status"), [("HTTPRoute", "500"), ("VirtualService", "503")])
def test_a_backend_that_is_not_there_has_its_share(kind: str, status: str) -> None:
    for absent in (Backend(service="no.shop", port=80), replace(ONE, port=81), replace(ONE, subset="no")):
        mesh = routed(HttpRule(backends=(ONE, absent)), kind=kind)
        assert comes_to(mesh) == [(0.5, "one"), (0.5, status)]


def test_a_server_that_answers_too_late_gets_the_request_and_the_client_504() -> None:
    mesh = routed(HttpRule(backends=(ONE,), timeout_s=0.2))
    assert comes_to(mesh) == [(1.0, "one")]
    assert comes_to(mesh, takes_s=0.5) == [(1.0, "504")]
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, HttpRequest(takes_s=0.5))
    assert [(way.too_late, way.path.server.pod) for way in due.ways] == [(True, "shop/one")]


def test_a_backend_without_endpoints_gets_503() -> None:
    mesh = replace(routed(HttpRule(backends=(ONE,))), pods=tuple(p for p in MESH.pods if p.name != "one"))
    assert comes_to(mesh) == [(1.0, "503")]


def test_a_subset_has_the_pods_of_its_labels() -> None:
    backends = tuple(Backend(service="shop.shop", port=0, subset=name) for name in ("v1", "v2"))
    assert comes_to(routed(HttpRule(backends=backends), kind="VirtualService")) == [(0.5, "one"), (0.5, "two")]


def test_a_delay_comes_before_an_abort_and_each_strikes_by_itself() -> None:
    rule = HttpRule(backends=(ONE,), delay=Delay(seconds=2, percent=50), abort=Abort(status=418, percent=10))
    mesh = routed(rule)
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4)
    assert [(share.chance, share.delay_s) for share in due.shares] == [
        (Fraction(1, 20), 0.0),
        (Fraction(9, 20), 0.0),
        (Fraction(1, 20), 2),
        (Fraction(9, 20), 2),
    ]
    assert due.passage == "mixed"
    assert due.statuses == {418}


@pytest.mark.parametrize(
    ("match", "rewrite", "sent", "seen"),
    [
        (path_is("segments", "/a"), Rewrite(prefix="/"), "/a/b?q", "/b?q"),
        (path_is("segments", "/a"), Rewrite(prefix="/"), "/a", "/"),
        (path_is("segments", "/a"), Rewrite(prefix="/x/"), "/a/b", "/x/b"),
        (path_is("prefix", "/a"), Rewrite(prefix="/"), "/a/b", "//b"),
        (path_is("exact", "/a"), Rewrite(prefix="/x"), "/a", "/x"),
        (RequestMatch(), Rewrite(prefix="/x"), "/a", "/xa"),
        (path_is("segments", "/a"), Rewrite(path="/x"), "/a/b?q", "/x?q"),
    ],
)
def test_a_rewrite(match: RequestMatch, rewrite: Rewrite, sent: str, seen: str) -> None:
    mesh = routed(HttpRule(matches=(match,), backends=(ONE,), rewrite=rewrite))
    (share,) = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, HttpRequest(path=sent)).shares
    assert share.request is not None
    assert share.request.path == seen


def test_headers_are_removed_before_they_are_set_and_a_backends_edits_come_last_but_for_the_authority() -> None:
    backend = replace(ONE, request_headers=HeaderEdits(set=(("host", "backend"), ("a", "1")), add=(("b", "2"),)))
    edits = HeaderEdits(set=((":authority", "rule"), ("a", "3")), add=(("b", "4"),), remove=("c", "b"))
    mesh = routed(HttpRule(backends=(backend,), request_headers=edits))
    sent = HttpRequest(authority="client", headers=(("b", "0"), ("c", "0"), ("d", "0")))
    (share,) = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, sent).shares
    assert share.request == HttpRequest(authority="rule", headers=(("d", "0"), ("b", "4"), ("a", "1"), ("b", "2")))


@pytest.mark.parametrize(
    ("redirect", "location"),
    [
        (Redirect(status=301, path="/new"), "http://shop/new?q"),
        (Redirect(status=302, authority="other"), "http://other/a/b?q"),
        (Redirect(status=302, scheme="https"), "https://shop/a/b?q"),
        (Redirect(status=302, port=81), "http://shop:81/a/b?q"),
        (Redirect(status=302, scheme="https", port=443), "https://shop/a/b?q"),
        (Redirect(status=302, prefix="/x"), "http://shop/x/b?q"),
    ],
)
def test_a_redirect(redirect: Redirect, location: str) -> None:
    mesh = routed(HttpRule(matches=(path_is("segments", "/a"),), redirect=redirect))
    sent = HttpRequest(path="/a/b?q", authority="shop:8080")
    (share,) = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, sent).shares
    assert share.location == location
    assert share.ways[0].verdict == "allow"


def policy(
    action: Action = Action.ALLOW, *rules: Rule, kind: str = "Gateway", name: str = "gate"
) -> AuthorizationPolicy:
    target = {"group": "", "kind": kind, "name": name}
    return AuthorizationPolicy(name="p", namespace="shop", action=action, rules=rules, target_refs=(target,))


CLIENT = Source(principals=("cluster.local/ns/shop/sa/client",))


@pytest.mark.parametrize(
    ("rule", "sent", "status"),
    [
        (Rule(operations=(Operation(paths=("/a*",)),)), HttpRequest(path="/a/b"), 403),
        (Rule(operations=(Operation(paths=("/a*",)),)), HttpRequest(path="/x/../a"), 403),
        (Rule(operations=(Operation(paths=("/a*",)),)), HttpRequest(path="/b"), 0),
        (Rule(operations=(Operation(methods=("PUT",)),)), HttpRequest(method="PUT"), 403),
        (Rule(operations=(Operation(hosts=("shop.example",)),)), HttpRequest(authority="SHOP.example"), 403),
        (Rule(operations=(Operation(hosts=("shop.example",)),)), HttpRequest(authority="shop.example:80"), 0),
        (Rule(operations=(Operation(hosts=("*.example",)),)), HttpRequest(authority="a.example"), 403),
        (Rule(operations=(Operation(not_paths=("/free",)),)), HttpRequest(path="/free"), 0),
        (Rule(operations=(Operation(ports=("80",)),)), HttpRequest(), 403),
        (Rule(sources=(CLIENT,), operations=(Operation(paths=("/a",)),)), HttpRequest(path="/a"), 403),
        (Rule(sources=(Source(request_principals=("*",)),)), HttpRequest(), 0),
        (Rule(sources=(Source(not_request_principals=("*",)),)), HttpRequest(), 403),
        (
            Rule(conditions=(Condition(key="request.headers[X-A]", values=("1*",)),)),
            HttpRequest(headers=(("x-a", "12"),)),
            403,
        ),
        (Rule(conditions=(Condition(key="request.headers[x-a]", not_values=("1",)),)), HttpRequest(), 403),
        (Rule(conditions=(Condition(key="request.headers[x-a]", values=("1",)),)), HttpRequest(), 0),
        (
            Rule(conditions=(Condition(key="request.headers[x-a]", values=("*",)),)),
            HttpRequest(headers=(("x-a", ""),)),
            403,
        ),
        (
            Rule(conditions=(Condition(key="request.headers[x-a]", values=("1",)),)),
            HttpRequest(headers=(("x-a", "1"), ("x-a", "2"))),
            403,
        ),
        (
            Rule(conditions=(Condition(key="request.headers[x-a]", not_values=("1",)),)),
            HttpRequest(headers=(("x-a", "1"), ("x-a", "2"))),
            0,
        ),
    ],
)
def test_a_policy_of_the_waypoint_judges_requests(rule: Rule, sent: HttpRequest, status: int) -> None:
    mesh = replace(MESH, authorization_policies=(policy(Action.DENY, rule),))
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, sent)
    assert due.statuses == ({status} if status else set())
    if status:
        assert due.passage == "deny"
        assert {path.server.pod for path in due.ways[0].kept_from} == {"shop/one", "shop/two"}


def test_where_there_is_an_allow_policy_one_has_to_match() -> None:
    reading = Rule(operations=(Operation(methods=("GET",)),))
    mesh = replace(MESH, authorization_policies=(policy(Action.ALLOW, reading),))
    assert comes_to(mesh) == [(1.0, "one two")]
    assert comes_to(mesh, method="PUT") == [(1.0, "403")]
    assert comes_to(replace(MESH, authorization_policies=(policy(),))) == [(1.0, "403")]


@pytest.mark.parametrize(
    ("kind", "name", "namespace", "binds"),
    [
        ("Gateway", "gate", "shop", True),
        ("Gateway", "gate", "other", False),
        ("Gateway", "other", "shop", False),
        ("Service", "shop", "shop", True),
        ("Service", "one", "shop", False),
        ("GatewayClass", "istio-waypoint", "istio-system", True),
        ("GatewayClass", "istio-waypoint", "shop", False),
    ],
)
def test_what_a_policy_binds_to(kind: str, name: str, namespace: str, binds: bool) -> None:
    denying = replace(policy(Action.DENY, Rule(), kind=kind, name=name), namespace=namespace)
    assert (comes_to(replace(MESH, authorization_policies=(denying,)))[0][1] == "403") is binds


def test_a_denial_at_the_server_is_a_503_of_the_waypoint() -> None:
    server = AuthorizationPolicy(name="s", namespace="shop", selector={"app": "shop"}, rules=(Rule(sources=(CLIENT,)),))
    mesh = replace(MESH, authorization_policies=(server,))
    assert comes_to(mesh) == [(1.0, "503 503")]


def test_on_a_port_that_is_not_http_a_policy_judges_the_connection() -> None:
    quiet = replace(MESH.services[0], ports=(ServicePort(port=80, target_port=8080),))
    mesh = replace(MESH, services=(quiet,))
    for rule, passage in (
        (Rule(sources=(CLIENT,)), "deny"),
        (Rule(sources=(CLIENT,), operations=(Operation(paths=("/a",)),)), "deny"),
        (Rule(operations=(Operation(paths=("/a",)),)), "deny"),  # nothing is left, which denies all
    ):
        denied = replace(mesh, authorization_policies=(policy(Action.DENY, rule),))
        due = expected(denied, denied.pods[0], denied.services[0], 80, 4)
        assert due.passage == passage
        assert not due.shares
