"""L4 authorization over wire messages: the table of ztunnel's algebra, degenerate inputs included."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from meshlab.errors import ProtocolError
from meshlab.model import Connection, SpiffeId, Verdict
from meshlab.protocols.messages import message
from meshlab.ztunnel.rbac import compile_policy, evaluate, missing_policies

CLIENT = Connection(
    source=SpiffeId("cluster.local", "shop", "client"),
    source_ip=ip_address("10.0.0.1"),
    destination="shop/server",
    destination_ip=ip_address("10.0.1.1"),
    port=8080,
)
PLAINTEXT = replace(CLIENT, source=None)
YES: dict[str, Any] = {"destination_ports": [8080]}
NO: dict[str, Any] = {"destination_ports": [1]}


def _authorization(**fields: Any) -> Any:
    """A policy of the server's namespace, but for ``fields``."""
    defaults = {"name": "p", "namespace": "shop", "scope": "NAMESPACE", "action": "ALLOW"}
    return ParseDict({**defaults, **fields}, message("istio.security.Authorization")())


def _groups(*rules: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"rules": [{"matches": clause} for clause in rule]} for rule in rules]


def _matches(match: dict[str, Any], connection: Connection = CLIENT) -> bool:
    return compile_policy(_authorization(groups=_groups([[match]]))).matches(connection)


def _decide(*authorizations: Any, listed: tuple[str, ...] = (), connection: Connection = CLIENT) -> str:
    policies = {policy.key: policy for policy in map(compile_policy, authorizations)}
    workload = message("istio.workload.Workload")(namespace="shop", authorization_policies=listed)
    decision = evaluate(policies, workload, connection)
    return f"{decision.verdict}: {decision.rule}"


# -- the algebra


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        ([[]], True),
        ([[[]]], True),
        ([[[{}]]], False),
        ([[[{}, {}]]], False),
        ([[[{}, YES]]], True),
        ([[[YES]]], True),
        ([[[NO]]], False),
        ([[[NO, YES]]], True),
        ([[[YES], [NO]]], False),
        ([[[YES], [YES]]], True),
        ([[[YES], []]], True),
        ([[[YES], [{}]]], False),
        ([[[NO]], [[YES]]], True),
        ([[[NO]], []], True),
    ],
    ids=[
        "no rule",
        "a rule without clauses",
        "a clause without matches",
        "a match without fields",
        "two matches without fields",
        "an empty match beside a true one",
        "one match that holds",
        "one match that does not",
        "of one clause, one of two matches",
        "of two clauses, one",
        "of two clauses, both",
        "a true clause and one without matches",
        "a true clause and one with an empty match",
        "of two rules, one",
        "a false rule and one without clauses",
    ],
)
def test_a_policy_matches_with(rules: list[list[list[dict[str, Any]]]], expected: bool) -> None:
    assert compile_policy(_authorization(groups=_groups(*rules))).matches(CLIENT) is expected


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([8080], [], True),
        ([1, 8080], [], True),
        ([1], [], False),
        ([], [8080], False),
        ([], [1, 8080], False),
        ([], [1], True),
        ([8080], [1], True),
        ([8080], [8080], False),
        ([1], [2], False),
    ],
)
def test_of_one_kind_any_positive_and_no_negative_value_must_hold(
    positive: list[int], negative: list[int], expected: bool
) -> None:
    assert _matches({"destination_ports": positive, "not_destination_ports": negative}) is expected


def test_all_kinds_of_one_match_must_hold() -> None:
    assert _matches({**YES, "namespaces": [{"exact": "shop"}]})
    assert not _matches({**YES, "namespaces": [{"exact": "other"}]})
    assert not _matches({**NO, "namespaces": [{"exact": "shop"}]})


# -- the kinds


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"exact": "cluster.local/ns/shop/sa/client"}, True),
        ({"exact": "spiffe://cluster.local/ns/shop/sa/client"}, False),
        ({"exact": "cluster.local/ns/shop/sa/clien"}, False),
        ({"prefix": "cluster.local/ns/shop/"}, True),
        ({"prefix": "spiffe://cluster.local/"}, False),
        ({"suffix": "/sa/client"}, True),
        ({"suffix": "/sa/clien"}, False),
        ({"presence": {}}, True),
    ],
)
def test_principals_are_compared_without_spiffe(pattern: dict[str, Any], expected: bool) -> None:
    assert _matches({"principals": [pattern]}) is expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"principals": [{"presence": {}}]}, False),
        ({"principals": [{"prefix": ""}]}, False),
        ({"not_principals": [{"presence": {}}]}, True),
        ({"namespaces": [{"presence": {}}]}, False),
        ({"namespaces": [{"exact": ""}]}, True),
        ({"not_namespaces": [{"exact": "shop"}]}, True),
        ({"service_accounts": [{"namespace": "shop", "serviceAccount": "client"}]}, False),
        ({"service_accounts": [{}]}, False),
        ({"not_service_accounts": [{"namespace": "shop", "serviceAccount": "client"}]}, True),
    ],
)
def test_of_a_peer_without_identity(match: dict[str, Any], expected: bool) -> None:
    assert _matches(match, PLAINTEXT) is expected


@pytest.mark.parametrize(
    ("namespace", "account", "expected"),
    [("shop", "client", True), ("shop", "clien", False), ("sho", "client", False), ("shop", "*", False)],
)
def test_service_accounts_are_compared_whole_in_any_trust_domain(namespace: str, account: str, expected: bool) -> None:
    match = {"service_accounts": [{"namespace": namespace, "serviceAccount": account}]}
    assert _matches(match) is expected
    assert _matches(match, replace(CLIENT, source=SpiffeId("elsewhere", "shop", "client"))) is expected


@pytest.mark.parametrize(
    ("block", "length", "expected"),
    [
        ("10.0.0.1", 32, True),
        ("10.0.0.0", 32, False),
        ("10.0.0.0", 31, True),
        ("10.0.0.9", 24, True),
        ("0.0.0.0", 0, True),
        ("::", 0, False),
        ("::ffff:10.0.0.1", 128, False),
    ],
)
def test_source_addresses_are_compared_within_their_family(block: str, length: int, expected: bool) -> None:
    authorization = _authorization()
    match = authorization.groups.add().rules.add().matches.add()
    match.source_ips.add(address=ip_address(block).packed, length=length)
    assert compile_policy(authorization).matches(CLIENT) is expected


def test_source_and_destination_addresses_are_told_apart() -> None:
    block = {"address": "CgABAQ==", "length": 32}
    assert _matches({"destination_ips": [block]})
    assert not _matches({"source_ips": [block]})
    assert not _matches({"not_destination_ips": [block]})


# -- which policies, and in which order

ALLOW = _authorization(name="allow", groups=_groups([]))
NEVER = _authorization(name="never")
DENY = _authorization(name="deny", action="DENY", groups=_groups([]))
NO_DENY = _authorization(name="no-deny", action="DENY")


@pytest.mark.parametrize(
    ("authorizations", "expected"),
    [
        ((), "allow: no policies"),
        ((NO_DENY,), "allow: no allow policies"),
        ((ALLOW,), "allow: allowed by: shop/allow"),
        ((NEVER,), "deny: allow policies exist, but none allowed"),
        ((NEVER, ALLOW), "allow: allowed by: shop/allow"),
        ((ALLOW, NO_DENY), "allow: allowed by: shop/allow"),
        ((ALLOW, DENY), "deny: explicitly denied by: shop/deny"),
        ((DENY,), "deny: explicitly denied by: shop/deny"),
    ],
)
def test_any_deny_then_any_allow_then_none(authorizations: tuple[Any, ...], expected: str) -> None:
    assert _decide(*authorizations) == expected


@pytest.mark.parametrize(
    ("scope", "namespace", "listed", "counts"),
    [
        ("NAMESPACE", "shop", False, True),
        ("NAMESPACE", "other", False, False),
        ("GLOBAL", "istio-system", False, True),
        ("WORKLOAD_SELECTOR", "shop", False, False),
        ("WORKLOAD_SELECTOR", "shop", True, True),
        ("WORKLOAD_SELECTOR", "istio-system", True, True),
    ],
)
def test_a_policy_counts_by_namespace_mesh_or_list(scope: str, namespace: str, listed: bool, counts: bool) -> None:
    policy = _authorization(name="deny", namespace=namespace, scope=scope, action="DENY", groups=_groups([]))
    verdict = _decide(policy, listed=(f"{namespace}/deny",) if listed else ()).split(":")[0]
    assert verdict == (Verdict.DENY if counts else Verdict.ALLOW)


def test_a_listed_policy_that_has_not_arrived_is_skipped_and_can_be_asked_for() -> None:
    workload = message("istio.workload.Workload")(
        namespace="shop", authorization_policies=["shop/absent", "shop/allow"]
    )
    assert missing_policies({"shop/allow": compile_policy(ALLOW)}, workload) == ["shop/absent"]
    assert _decide(listed=("shop/absent",)) == "allow: no policies"


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
@pytest.mark.parametrize("groups", [_groups(), _groups([])])
def test_a_dry_run_policy_decides_nothing(action: str, groups: list[dict[str, Any]]) -> None:
    assert _decide(_authorization(action=action, groups=groups, dry_run=True)) == "allow: no policies"


# -- what cannot be compared

BAD_ADDRESS = {"address": "AAAA", "length": 8}


@pytest.mark.parametrize(
    "match",
    [
        {"namespaces": [{}]},
        {"not_principals": [{}]},
        {"destination_ports": [65536]},
        {"not_source_ips": [BAD_ADDRESS]},
        {"destination_ips": [{"address": "CgAAAQ==", "length": 33}]},
        {"source_ips": [{"address": "CgAAAQ==", "length": 264}]},
    ],
    ids=["no kind of text", "no kind of text, negative", "no port", "three bytes", "33 bits", "264 bits"],
)
def test_a_policy_is_refused_whole_for_a_value_that_is(match: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"^policy shop/p: "):
        compile_policy(_authorization(groups=_groups([[YES, match]])))


@pytest.mark.parametrize("field", ["scope", "action"])
def test_a_policy_is_refused_for_an_unknown(field: str) -> None:
    authorization = _authorization()
    setattr(authorization, field, 9)
    with pytest.raises(ProtocolError, match=rf"^policy shop/p: 9 is no {field}$"):
        compile_policy(authorization)
