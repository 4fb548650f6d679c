"""What an Envoy's RBAC filters are told of AuthorizationPolicies: which ones, and each of their fields."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from test_envoy_routes import OWN, chain, mesh

from meshlab.model import Action, AuthorizationPolicy, Condition, Operation, Rule, Source
from meshlab.translate import for_envoy
from meshlab.translate.envoy.rbac import rules
from meshlab.translate.for_envoy import LISTENER_TYPE, ROUTE_TYPE

GATE = {"kind": "Gateway", "name": "gate"}
PEER = {"key": "meshlab.peer"}
ANY = {"any": True}


def policy(*some: Rule, action: Action = Action.DENY, **more: Any) -> AuthorizationPolicy:
    refs = more.pop("refs", (GATE,))
    return AuthorizationPolicy(
        **{"name": "p", "namespace": "shop", "action": action, "rules": some, "target_refs": refs, **more}
    )


def enforced(one: AuthorizationPolicy) -> dict[str, Any]:
    """Filter -> its rules, of the routes of the Service that the waypoint serves."""
    made = mesh(authorization_policies=(one,))
    (host,) = for_envoy.resources(made, "shop/gate", OWN)[ROUTE_TYPE][chain(made)]["virtual_hosts"]
    return {name: each["rbac"]["rules"] for name, each in host["typed_per_filter_config"].items()}


def entry(rule: Rule, action: Action = Action.DENY, **more: Any) -> Any:
    made = rules([policy(rule, action=action)], action, **{"reads_http": True, **more})
    assert made is not None
    return next(iter(made["policies"].values()), None)


def who(source: Source, **more: Any) -> Any:
    (only,) = entry(Rule(sources=(source,)), **more)["principals"]
    return only["and_ids"]["ids"]


def what(operation: Operation, **more: Any) -> Any:
    (only,) = entry(Rule(operations=(operation,)), **more)["permissions"]
    return only["and_rules"]["rules"]


def peer(**match: Any) -> dict[str, Any]:
    return {"or_ids": {"ids": [{"filter_state": {**PEER, "string_match": match}}]}}


# --- which -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "binds"),
    [
        ({}, True),
        ({"namespace": "other"}, False),
        ({"dry_run": True}, False),
        ({"refs": ()}, False),
        ({"refs": ({"kind": "Gateway", "name": "other"},)}, False),
        ({"refs": ({"kind": "Gateway", "name": "other"}, {"kind": "Service", "name": "server"})}, True),
        ({"refs": ({"kind": "Service", "name": "client"},)}, False),
        ({"refs": ({"kind": "ServiceEntry", "name": "server"},)}, False),
        ({"refs": ({"kind": "GatewayClass", "name": "istio-waypoint"},)}, False),
        ({"refs": ({"kind": "GatewayClass", "name": "istio-waypoint"},), "namespace": "istio-system"}, True),
    ],
)
def test_a_policy_binds_by_its_targets(more: dict[str, Any], binds: bool) -> None:
    assert ("deny" in enforced(policy(Rule(), **more))) is binds


def test_an_allow_without_rules_lets_nobody_in() -> None:
    assert enforced(policy(action=Action.ALLOW)) == {"allow": {"action": "ALLOW", "policies": {}}}
    assert enforced(policy(Rule(), action=Action.ALLOW))["allow"]["policies"] == {
        "shop/p[0]": {"permissions": [{"and_rules": {"rules": [ANY]}}], "principals": [{"and_ids": {"ids": [ANY]}}]}
    }


SOME = {"safe_regex": {"regex": ".+"}}


def claim(matches: dict[str, Any], *path: str) -> dict[str, Any]:
    text = {"string_match": matches}
    value = {"or_match": {"value_matchers": [text, {"list_match": {"one_of": text}}]}}
    keys = [{"key": key} for key in ("payload", *path)]
    return {"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": keys, "value": value}}


def subject(issuer: dict[str, Any], name: dict[str, Any]) -> dict[str, Any]:
    return {"or_ids": {"ids": [{"and_ids": {"ids": [claim(issuer, "iss"), claim(name, "sub")]}}]}}


# --- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (Source(principals=("td/ns/a/sa/b",)), peer(exact="spiffe://td/ns/a/sa/b")),
        (Source(principals=("td/ns/a/*",)), peer(prefix="spiffe://td/ns/a/")),
        (Source(principals=("*/sa/b",)), peer(safe_regex={"regex": "spiffe://.*/sa/b"})),
        (Source(principals=("*",)), peer(safe_regex={"regex": ".+"})),
        (Source(not_namespaces=("a*",)), {"not_id": peer(safe_regex={"regex": ".*/ns/a[^/]*/.*"})}),
        (Source(service_accounts=("b",)), peer(safe_regex={"regex": "spiffe://.+/ns/shop/sa/b"})),
        (Source(service_accounts=("a/b.c",)), peer(safe_regex={"regex": r"spiffe://.+/ns/a/sa/b\.c"})),
        (Source(trust_domains=("td",)), peer(safe_regex={"regex": "spiffe://td/.*"})),
        (Source(request_principals=("https://a/b",)), subject({"exact": "https://a"}, {"exact": "b"})),
        (Source(request_principals=("a/*",)), subject({"exact": "a"}, SOME)),
        (Source(request_principals=("a*",)), subject({"prefix": "a"}, SOME)),
        (Source(request_principals=("*b",)), subject(SOME, {"suffix": "b"})),
        (Source(request_principals=("a",)), subject({"exact": "a"}, {"exact": ""})),
        (Source(not_request_principals=("*",)), {"not_id": subject(SOME, SOME)}),
    ],
)
def test_a_source_is_who_the_tunnel_came_from(source: Source, form: object) -> None:
    assert who(source) == [form]


def test_an_address_is_that_of_the_clients_own_connection() -> None:
    (made,) = who(Source(ip_blocks=("10.0.0.1/8",)))
    ranges = [{"address_prefix": "10.0.0.0", "prefix_len": 8}]
    assert made["or_ids"]["ids"] == [{"filter_state": {"key": "meshlab.source", "address_match": {"ranges": ranges}}}]


# --- what ------------------------------------------------------------------------------------------------------------


def header(name: str, **more: Any) -> dict[str, Any]:
    return {"header": {"name": name, **more}}


@pytest.mark.parametrize(
    ("operation", "form"),
    [
        (Operation(hosts=("a.b",)), header(":authority", string_match={"exact": "a.b", "ignore_case": True})),
        (Operation(hosts=("*.b",)), header(":authority", string_match={"suffix": ".b", "ignore_case": True})),
        (Operation(hosts=("*",)), header(":authority", present_match=True)),
        (Operation(methods=("GET",)), header(":method", string_match={"exact": "GET"})),
        (Operation(paths=("/a/*",)), {"url_path": {"path": {"prefix": "/a/"}}}),
        (Operation(paths=("*/a",)), {"url_path": {"path": {"suffix": "/a"}}}),
        (Operation(paths=("*",)), {"url_path": {"path": {"safe_regex": {"regex": ".+"}}}}),
        (Operation(ports=("80",)), {"destination_port": 80}),
    ],
)
def test_an_operation_is_what_the_request_asks_for(operation: Operation, form: object) -> None:
    assert what(operation) == [{"or_rules": {"rules": [form]}}]


def test_a_path_with_braces_is_a_template() -> None:
    (made,) = what(Operation(paths=("/a/{*}/{**}",)))
    assert made["or_rules"]["rules"][0]["uri_template"]["typed_config"]["path_template"] == "/a/*/**"


def test_each_condition_goes_with_every_source_and_operation() -> None:
    rule = Rule(
        sources=(Source(namespaces=("a",)), Source(namespaces=("b",))),
        conditions=(
            Condition(key="request.headers[X-A]", values=("v*",)),
            Condition(key="destination.port", not_values=("81",)),
            Condition(key="connection.sni", values=("*",)),
        ),
    )
    made = entry(rule)
    asked = {"or_ids": {"ids": [header("X-A", string_match={"prefix": "v"})]}}
    assert [each["and_ids"]["ids"][1] for each in made["principals"]] == [asked, asked]
    assert made["permissions"][0]["and_rules"]["rules"] == [
        {"not_rule": {"or_rules": {"rules": [{"destination_port": 81}]}}},
        {"or_rules": {"rules": [{"not_rule": ANY}]}},
    ]


# --- connections -----------------------------------------------------------------------------------------------------

L7 = Rule(operations=(Operation(methods=("GET",), ports=("80",)),))


def test_of_a_connection_an_allow_with_a_part_of_requests_is_left_out_and_a_deny_keeps_the_rest() -> None:
    assert entry(L7, Action.ALLOW, reads_http=False) is None
    assert entry(L7, reads_http=False)["permissions"] == [
        {"and_rules": {"rules": [{"or_rules": {"rules": [{"destination_port": 80}]}}]}}
    ]
    assert what(Operation(methods=("GET",)), reads_http=False) == [ANY]


def test_a_connect_says_in_its_authority_what_it_asks_for() -> None:
    rule = Rule(
        operations=(Operation(ports=("80",)),),
        conditions=(Condition(key="destination.ip", values=("10.0.0.0/8", "fd00::/8")),),
    )
    made = entry(rule, reads_http=False, asked=ip_address("10.1.2.3"))["permissions"][0]["and_rules"]["rules"]
    assert made == [
        {"or_rules": {"rules": [header(":authority", string_match={"suffix": ":80"})]}},
        {"or_rules": {"rules": [ANY, {"not_rule": ANY}]}},
    ]


def test_where_bytes_pass_the_connect_is_judged_and_so_is_the_connection() -> None:
    made = mesh("tcp", authorization_policies=(policy(Rule()),))
    resources = for_envoy.resources(made, "shop/gate", OWN)
    (host,) = resources[ROUTE_TYPE]["connect"]["virtual_hosts"]
    asked = [each["match"]["headers"][0]["string_match"]["exact"] for each in host["routes"][:-1]]
    service = next(each for each in made.services if each.key == "server.shop")
    assert asked == [f"{service.ipv4}:80", f"[{service.ipv6}]:80"]
    for each in resources[LISTENER_TYPE]["main_internal"]["filter_chains"]:
        assert [one["name"] for one in each["filters"]] == ["deny", "tcp"]
