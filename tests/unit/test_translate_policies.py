"""What a node proxy is sent of AuthorizationPolicies: what L4 can enforce, and for whom."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from meshlab.model import Action, AuthorizationPolicy, Condition, Mesh, Operation, Pod, Rule, Source
from meshlab.translate import ADDRESS_TYPE, AUTHORIZATION_TYPE, resources

POLICY = AuthorizationPolicy(name="p", namespace="shop")
POD = Pod(
    name="web",
    namespace="shop",
    node="node-1",
    ipv4=IPv4Address("10.0.0.1"),
    ipv6=IPv6Address("fd00::1"),
    labels={"app": "web", "tier": "front"},
)


def _sent(policy: AuthorizationPolicy) -> dict[str, Any]:
    messages = resources(Mesh(authorization_policies=(policy,)), ())[AUTHORIZATION_TYPE]
    return {name: MessageToDict(sent, preserving_proto_field_name=True) for name, sent in messages.items()}


def _groups(*rules: Rule, action: Action = Action.ALLOW) -> Any:
    """The groups as lists of clauses, which are lists of matches."""
    sent = _sent(replace(POLICY, action=action, rules=rules))["shop/p"]
    return [[list(clause.get("matches", [])) for clause in group.get("rules", [])] for group in sent.get("groups", [])]


def _listed(policy: AuthorizationPolicy, pod: Pod = POD) -> list[str]:
    sent = resources(Mesh(pods=(pod,), authorization_policies=(policy,)), ())
    return list(sent[ADDRESS_TYPE][f"Kubernetes//Pod/{pod.key}"].workload.authorization_policies)  # type: ignore[attr-defined]


# -- for whom


@pytest.mark.parametrize(
    ("policy", "scope"),
    [
        (POLICY, "NAMESPACE"),
        (replace(POLICY, selector={}), "NAMESPACE"),
        (replace(POLICY, namespace="istio-system"), "GLOBAL"),
        (replace(POLICY, selector={"app": "web"}), "WORKLOAD_SELECTOR"),
        (replace(POLICY, namespace="istio-system", selector={"app": "web"}), "WORKLOAD_SELECTOR"),
    ],
    ids=["no selector", "empty selector", "root namespace", "selector", "selector in the root namespace"],
)
def test_the_scope_of_a_policy_with(policy: AuthorizationPolicy, scope: str) -> None:
    assert _sent(policy)[policy.key].get("scope", "GLOBAL") == scope


@pytest.mark.parametrize(
    ("namespace", "selector", "listed"),
    [
        ("shop", {"app": "web"}, True),
        ("shop", {"app": "web", "tier": "front"}, True),
        ("shop", {"app": "web", "tier": "back"}, False),
        ("shop", {"app": "web", "absent": ""}, False),
        ("shop", {}, False),
        ("shop", None, False),
        ("istio-system", {"app": "web"}, True),
        ("other", {"app": "web"}, False),
    ],
)
def test_a_workload_lists_the_policies_that_select_it_by_label(
    namespace: str, selector: dict[str, str] | None, listed: bool
) -> None:
    policy = replace(POLICY, namespace=namespace, selector=selector)
    assert _listed(policy) == ([policy.key] if listed else [])


@pytest.mark.parametrize(
    "policy",
    [
        replace(POLICY, selector={"app": "web"}, target_refs=({"kind": "Service", "name": "web"},)),
        replace(POLICY, selector={"app": "web"}, dry_run=True),
    ],
    ids=["for a waypoint", "dry run"],
)
def test_nothing_is_sent_of_a_policy_that_is(policy: AuthorizationPolicy) -> None:
    assert _sent(policy) == {}
    assert _listed(policy) == []


# -- the structure


def test_a_policy_without_rules_is_sent_without_groups() -> None:
    assert _sent(POLICY) == {"shop/p": {"name": "p", "namespace": "shop", "scope": "NAMESPACE"}}
    assert _sent(replace(POLICY, action=Action.DENY))["shop/p"]["action"] == "DENY"


def test_an_empty_rule_is_a_group_without_clauses_which_matches_everything() -> None:
    assert _groups(Rule()) == [[]]


def test_to_from_and_each_when_are_a_clause_and_their_entries_are_its_matches() -> None:
    rule = Rule(
        sources=(Source(namespaces=("a",)), Source(namespaces=("b",))),
        operations=(Operation(ports=("80",)), Operation(ports=("81",))),
        conditions=(
            Condition(key="destination.port", values=("82",)),
            Condition(key="destination.port", not_values=("83",)),
        ),
    )
    assert _groups(rule, Rule(operations=(Operation(ports=("84",)),))) == [
        [
            [{"destination_ports": [80]}, {"destination_ports": [81]}],
            [{"namespaces": [{"exact": "a"}]}, {"namespaces": [{"exact": "b"}]}],
            [{"destination_ports": [82]}],
            [{"not_destination_ports": [83]}],
        ],
        [[{"destination_ports": [84]}]],
    ]


def test_entries_without_fields_stay_and_match_nothing() -> None:
    rule = Rule(sources=(Source(),), operations=(Operation(),), conditions=(Condition(key="source.ip"),))
    assert _groups(rule) == [[[{}], [{}], [{}]]]


# -- the fields

A = [{"exact": "a"}]
IP = [{"address": "CgAAAA==", "length": 8}]


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Rule(sources=(Source(principals=("a",)),)), {"principals": A}),
        (Rule(sources=(Source(not_principals=("a",)),)), {"not_principals": A}),
        (Rule(sources=(Source(namespaces=("a",)),)), {"namespaces": A}),
        (Rule(sources=(Source(not_namespaces=("a",)),)), {"not_namespaces": A}),
        (Rule(sources=(Source(ip_blocks=("10.0.0.0/8",)),)), {"source_ips": IP}),
        (Rule(sources=(Source(not_ip_blocks=("10.0.0.0/8",)),)), {"not_source_ips": IP}),
        (Rule(operations=(Operation(ports=("1",)),)), {"destination_ports": [1]}),
        (Rule(operations=(Operation(not_ports=("1",)),)), {"not_destination_ports": [1]}),
        (Rule(conditions=(Condition(key="source.ip", values=("10.0.0.0/8",)),)), {"source_ips": IP}),
        (Rule(conditions=(Condition(key="source.namespace", values=("a",)),)), {"namespaces": A}),
        (Rule(conditions=(Condition(key="source.principal", not_values=("a",)),)), {"not_principals": A}),
        (Rule(conditions=(Condition(key="destination.ip", values=("10.0.0.0/8",)),)), {"destination_ips": IP}),
        (Rule(conditions=(Condition(key="destination.ip", not_values=("10.0.0.0/8",)),)), {"not_destination_ips": IP}),
        (
            Rule(conditions=(Condition(key="destination.port", values=("1",), not_values=("2",)),)),
            {"destination_ports": [1], "not_destination_ports": [2]},
        ),
    ],
)
def test_each_field_has_its_place_in_a_match(rule: Rule, match: dict[str, Any]) -> None:
    assert _groups(rule) == [[[match]]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {"exact": "a"}),
        ("a*", {"prefix": "a"}),
        ("*a", {"suffix": "a"}),
        ("*", {"presence": {}}),
        ("a*b", {"exact": "a*b"}),
        ("*a*", {"suffix": "a*"}),
    ],
)
def test_a_star_is_a_wildcard_at_either_end_only(text: str, expected: dict[str, Any]) -> None:
    assert _groups(Rule(sources=(Source(namespaces=(text,)),))) == [[[{"namespaces": [expected]}]]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sa", {"namespace": "shop", "serviceAccount": "sa"}),
        ("other/sa", {"namespace": "other", "serviceAccount": "sa"}),
    ],
)
def test_a_service_account_without_namespace_is_in_the_policys(name: str, expected: dict[str, str]) -> None:
    rule = Rule(sources=(Source(service_accounts=(name,), not_service_accounts=(name,)),))
    assert _groups(rule) == [[[{"service_accounts": [expected], "not_service_accounts": [expected]}]]]


@pytest.mark.parametrize(
    ("block", "address", "length"),
    [
        ("10.1.2.3", "0a010203", 32),
        ("10.1.2.3/32", "0a010203", 32),
        ("10.1.2.3/16", "0a010000", 16),
        ("0.0.0.0/0", "00000000", 0),
        ("2001:db8::1", "20010db8000000000000000000000001", 128),
        ("2001:db8::1/33", "20010db8000000000000000000000000", 33),
    ],
)
def test_an_address_block_is_sent_without_host_bits(block: str, address: str, length: int) -> None:
    mesh = Mesh(authorization_policies=(replace(POLICY, rules=(Rule(sources=(Source(ip_blocks=(block,)),)),)),))
    sent: Any = resources(mesh, ())[AUTHORIZATION_TYPE]["shop/p"]
    (ip,) = sent.groups[0].rules[0].matches[0].source_ips
    assert (ip.address.hex(), ip.length) == (address, length)


@pytest.mark.parametrize("block", ["", "10.0.0.0/33", "10.0.0.0/264", "10.0.0", "fd00::/129", "shop"])
def test_no_address_block_is_refused_rather_than_sent(block: str) -> None:
    policy = replace(POLICY, rules=(Rule(sources=(Source(not_ip_blocks=(block,)),)),))
    with pytest.raises(ValueError, match=r"^AuthorizationPolicy shop/p: "):
        resources(Mesh(authorization_policies=(policy,)), ())


@pytest.mark.parametrize("text", ["http", "65536", "-1", "+80", " 80", "8_0", "", "८०"])
def test_text_that_is_no_port_is_left_out(text: str) -> None:
    assert _groups(Rule(operations=(Operation(ports=("80", text)),))) == [[[{"destination_ports": [80]}]]]


# -- what needs HTTP

HTTP_RULES = [
    Rule(sources=(Source(namespaces=("a",), request_principals=("x",)),)),
    Rule(sources=(Source(namespaces=("a",), not_request_principals=("x",)),)),
    Rule(sources=(Source(namespaces=("a",), remote_ip_blocks=("10.0.0.0/8",)),)),
    Rule(sources=(Source(namespaces=("a",), not_remote_ip_blocks=("10.0.0.0/8",)),)),
    Rule(sources=(Source(namespaces=("a",), trust_domains=("a",)),)),
    Rule(sources=(Source(namespaces=("a",), not_trust_domains=("a",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(hosts=("x",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(not_hosts=("x",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(methods=("GET",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(not_methods=("GET",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(paths=("/",)),)),
    Rule(sources=(Source(namespaces=("a",)),), operations=(Operation(not_paths=("/",)),)),
    Rule(sources=(Source(namespaces=("a",)),), conditions=(Condition(key="request.headers[x]", values=("y",)),)),
    Rule(sources=(Source(namespaces=("a",)),), conditions=(Condition(key="connection.sni", values=("y",)),)),
    Rule(sources=(Source(namespaces=("a",)),), conditions=(Condition(key="source.serviceAccount", values=("y",)),)),
    Rule(sources=(Source(namespaces=("a",)),), conditions=(Condition(key="source.trustDomain", values=("y",)),)),
]
LEFT = [{"namespaces": A}]


@pytest.mark.parametrize("rule", HTTP_RULES)
def test_an_allow_rule_with_an_http_field_is_left_out_whole(rule: Rule) -> None:
    other = Rule(operations=(Operation(ports=("80",)),))
    assert _groups(rule, other) == [[[{"destination_ports": [80]}]]]


@pytest.mark.parametrize("rule", HTTP_RULES[:6])
def test_a_deny_rule_loses_the_http_field_of_an_entry(rule: Rule) -> None:
    assert _groups(rule, action=Action.DENY) == [[LEFT]]


@pytest.mark.parametrize("rule", HTTP_RULES[6:])
def test_a_clause_of_a_deny_rule_that_was_only_http_matches_nothing(rule: Rule) -> None:
    (group,) = _groups(rule, action=Action.DENY)
    assert sorted(group, key=str) == [LEFT, [{}]]
