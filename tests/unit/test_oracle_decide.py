"""What the oracle says of one connection, row by row, and the sentence that goes with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    Mesh,
    MtlsMode,
    Namespace,
    Operation,
    PeerAuthentication,
    Pod,
    Rule,
    Source,
    SpiffeId,
)
from meshlab.oracle import decide

AMBIENT = {"istio.io/dataplane-mode": "ambient"}
SERVER = Pod(
    name="server",
    namespace="shop",
    node="node-1",
    ipv4=IPv4Address("10.0.0.2"),
    ipv6=IPv6Address("fd00::2"),
    labels={"app": "server"},
)
CLIENT = SpiffeId("cluster.local", "shop", "client")
CALL = Connection(
    source=CLIENT,
    source_ip=IPv4Address("10.0.0.1"),
    destination="shop/server",
    destination_ip=SERVER.ipv4,
    port=8080,
)
PLAINTEXT = replace(CALL, source=None)


def mesh(*policies: AuthorizationPolicy | PeerAuthentication, pod: Pod = SERVER, ambient: bool = True) -> Mesh:
    return Mesh(
        namespaces=(Namespace(name=pod.namespace, labels=AMBIENT if ambient else {}),),
        pods=(pod,),
        authorization_policies=tuple(p for p in policies if isinstance(p, AuthorizationPolicy)),
        peer_authentications=tuple(p for p in policies if isinstance(p, PeerAuthentication)),
    )


def allow(*rules: Rule, name: str = "policy", namespace: str = "shop") -> AuthorizationPolicy:
    return AuthorizationPolicy(name=name, namespace=namespace, rules=rules)


def deny(*rules: Rule, name: str = "policy", namespace: str = "shop") -> AuthorizationPolicy:
    return AuthorizationPolicy(name=name, namespace=namespace, action=Action.DENY, rules=rules)


def from_(*sources: Source) -> Rule:
    return Rule(sources=sources)


def to(*operations: Operation) -> Rule:
    return Rule(operations=operations)


def when(key: str, *values: str, not_values: tuple[str, ...] = ()) -> Rule:
    return Rule(conditions=(Condition(key=key, values=values, not_values=not_values),))


EVERYTHING = Rule()
NOBODY = from_(Source(namespaces=("nowhere",)))


@pytest.mark.parametrize(
    ("policies", "sentence"),
    [
        ((), "no policy applies"),
        (
            (deny(to(Operation(ports=("9090",))), name="deny-9090"),),
            "no DENY policy matches (shop/deny-9090), and there is no ALLOW policy",
        ),
        ((allow(NOBODY, EVERYTHING),), "AuthorizationPolicy shop/policy allows: rule 2 (everything)"),
        (
            (allow(Rule(sources=(Source(principals=("x", "*/client")),), operations=(Operation(ports=("8080",)),))),),
            "AuthorizationPolicy shop/policy allows: rule 1 (principals */client, ports 8080)",
        ),
        (
            (allow(when("source.ip", not_values=("192.0.2.0/24", "198.51.100.0/24"))),),
            "AuthorizationPolicy shop/policy allows: rule 1 (source.ip not 192.0.2.0/24 or 198.51.100.0/24)",
        ),
    ],
)
def test_an_allowed_call_is_allowed_by_a_named_rule(policies: tuple[AuthorizationPolicy, ...], sentence: str) -> None:
    decision = decide(mesh(*policies), CALL)
    assert (decision.allowed, decision.rule) == (True, sentence)


@pytest.mark.parametrize(
    ("policies", "sentence"),
    [
        (
            (deny(to(Operation(ports=("8080",))), name="deny-8080"), allow(EVERYTHING)),
            "AuthorizationPolicy shop/deny-8080 denies: rule 1 (ports 8080)",
        ),
        (
            (allow(NOBODY, name="b"), allow(name="a")),
            "no ALLOW policy matches: shop/a, shop/b",
        ),
    ],
)
def test_a_denied_call_is_denied_by_a_named_rule(policies: tuple[AuthorizationPolicy, ...], sentence: str) -> None:
    decision = decide(mesh(*policies), CALL)
    assert (decision.allowed, decision.rule) == (False, sentence)


def test_an_allow_without_rules_denies_all_and_a_deny_without_rules_denies_nothing() -> None:
    assert not decide(mesh(allow()), CALL).allowed
    assert decide(mesh(deny()), CALL).allowed


def test_a_rule_without_parts_matches_everything() -> None:
    assert decide(mesh(allow(EVERYTHING)), PLAINTEXT).allowed
    assert not decide(mesh(deny(EVERYTHING)), PLAINTEXT).allowed


@pytest.mark.parametrize(
    "rule",
    [from_(Source()), to(Operation()), when("source.ip"), to(Operation(ports=("http",), not_ports=("65536",)))],
    ids=["source: {}", "operation: {}", "when without values", "ports that are none"],
)
def test_an_entry_that_says_nothing_never_matches(rule: Rule) -> None:
    assert not decide(mesh(allow(rule)), CALL).allowed
    assert decide(mesh(deny(rule)), CALL).allowed


def test_an_entry_that_says_nothing_does_not_hide_the_one_beside_it() -> None:
    assert decide(mesh(allow(from_(Source(), Source(namespaces=("shop",))))), CALL).allowed


MATCHING = {
    "principals, exact": from_(Source(principals=("cluster.local/ns/shop/sa/client",))),
    "principals, prefix": from_(Source(principals=("cluster.local/ns/shop/*",))),
    "principals, suffix": from_(Source(principals=("*/sa/client",))),
    "principals, presence": from_(Source(principals=("*",))),
    "principals, the second value": from_(Source(principals=("other", "*/sa/client"))),
    "notPrincipals": from_(Source(not_principals=("cluster.local/ns/shop/sa/clien",))),
    "namespaces": from_(Source(namespaces=("shop",))),
    "namespaces, prefix": from_(Source(namespaces=("sh*",))),
    "notNamespaces": from_(Source(not_namespaces=("shop-evil", "sho"))),
    "serviceAccounts": from_(Source(service_accounts=("shop/client",))),
    "serviceAccounts, of the policy's namespace": from_(Source(service_accounts=("client",))),
    "notServiceAccounts": from_(Source(not_service_accounts=("bank/client", "server"))),
    "ipBlocks": from_(Source(ip_blocks=("10.0.0.0/31",))),
    "ipBlocks, one address": from_(Source(ip_blocks=("10.0.0.1",))),
    "ipBlocks, host bits set": from_(Source(ip_blocks=("10.0.0.77/24",))),
    "notIpBlocks, of the other family": from_(Source(not_ip_blocks=("::/0",))),
    "two fields of one source": from_(Source(namespaces=("shop",), ip_blocks=("10.0.0.1",))),
    "two sources": from_(Source(namespaces=("bank",)), Source(ip_blocks=("10.0.0.1",))),
    "ports": to(Operation(ports=("80", "8080"))),
    "notPorts": to(Operation(not_ports=("80", "808"))),
    "ports, text that is none left out": to(Operation(ports=("http", "8080"))),
    "when source.ip": when("source.ip", "10.0.0.0/24"),
    "when source.namespace": when("source.namespace", "*op"),
    "when source.principal": when("source.principal", "cluster.local/*"),
    "when destination.ip": when("destination.ip", "10.0.0.2"),
    "when destination.port": when("destination.port", "8080"),
    "when, values and notValues": when("source.ip", "10.0.0.0/24", not_values=("10.0.0.2",)),
    "from, to and when": Rule(
        sources=(Source(namespaces=("shop",)),),
        operations=(Operation(ports=("8080",)),),
        conditions=(Condition(key="source.ip", values=("10.0.0.1",)),),
    ),
}
NOT_MATCHING = {
    "principals with spiffe://": from_(Source(principals=("spiffe://cluster.local/ns/shop/sa/client",))),
    "principals, a name that begins alike": from_(Source(principals=("cluster.local/ns/shop/sa/client-evil",))),
    "principals, a name that ends alike": from_(Source(principals=("xcluster.local/ns/shop/sa/client",))),
    "principals, another trust domain": from_(Source(principals=("td2/ns/shop/sa/client",))),
    "principals, a star in the middle": from_(Source(principals=("cluster.local/*/client",))),
    "notPrincipals, presence": from_(Source(not_principals=("*",))),
    "namespaces": from_(Source(namespaces=("sho", "shop-evil", "*bank"))),
    "notNamespaces": from_(Source(not_namespaces=("bank", "shop"))),
    "serviceAccounts, another namespace": from_(Source(service_accounts=("bank/client",))),
    "serviceAccounts take no wildcard": from_(Source(service_accounts=("shop/*",))),
    "notServiceAccounts": from_(Source(not_service_accounts=("client",))),
    "ipBlocks": from_(Source(ip_blocks=("10.0.0.2/31", "::/0"))),
    "notIpBlocks": from_(Source(not_ip_blocks=("10.0.0.0/8",))),
    "two fields of one source, one wrong": from_(Source(namespaces=("shop",), ip_blocks=("10.0.0.9",))),
    "positive and negative of one field": from_(Source(namespaces=("shop",), not_namespaces=("sh*",))),
    "ports": to(Operation(ports=("808", "80"))),
    "notPorts": to(Operation(not_ports=("8080",))),
    "when source.ip": when("source.ip", "10.0.1.0/24"),
    "when source.namespace": when("source.namespace", not_values=("shop",)),
    "when source.principal": when("source.principal", not_values=("*",)),
    "when destination.ip": when("destination.ip", "10.0.0.1"),
    "when destination.port": when("destination.port", not_values=("8080",)),
    "from right, to wrong": Rule(sources=(Source(namespaces=("shop",)),), operations=(Operation(ports=("80",)),)),
    "one when right, one wrong": Rule(
        conditions=(
            Condition(key="source.ip", values=("10.0.0.1",)),
            Condition(key="destination.port", values=("80",)),
        )
    ),
}


@pytest.mark.parametrize("name", MATCHING)
def test_a_matching_rule_allows_or_denies(name: str) -> None:
    assert decide(mesh(allow(MATCHING[name])), CALL).allowed
    assert not decide(mesh(deny(MATCHING[name])), CALL).allowed


@pytest.mark.parametrize("name", NOT_MATCHING)
def test_a_rule_that_does_not_match_neither_allows_nor_denies(name: str) -> None:
    assert not decide(mesh(allow(NOT_MATCHING[name])), CALL).allowed
    assert decide(mesh(deny(NOT_MATCHING[name])), CALL).allowed


@pytest.mark.parametrize(
    "source",
    [
        Source(principals=("*",)),
        Source(namespaces=("*",)),
        Source(namespaces=("shop",)),
        Source(service_accounts=("client",)),
    ],
    ids=["principals", "namespaces, presence", "namespaces", "serviceAccounts"],
)
def test_without_an_identity_no_positive_identity_field_matches(source: Source) -> None:
    assert not decide(mesh(allow(from_(source))), PLAINTEXT).allowed


@pytest.mark.parametrize(
    "source",
    [
        Source(not_principals=("*",)),
        Source(not_namespaces=("*",)),
        Source(not_namespaces=("shop",)),
        Source(not_service_accounts=("client",)),
    ],
    ids=["notPrincipals", "notNamespaces, presence", "notNamespaces", "notServiceAccounts"],
)
def test_without_an_identity_every_negative_identity_field_matches(source: Source) -> None:
    assert not decide(mesh(deny(from_(source))), PLAINTEXT).allowed


@pytest.mark.parametrize(("block", "allowed"), [("fd00::/127", True), ("fd00::2", False), ("0.0.0.0/0", False)])
def test_ip_blocks_of_ipv6_compare_with_ipv6(block: str, allowed: bool) -> None:
    call = replace(CALL, source_ip=ip_address("fd00::1"), destination_ip=SERVER.ipv6)
    assert decide(mesh(allow(from_(Source(ip_blocks=(block,))))), call).allowed is allowed


def test_a_service_account_of_another_trust_domain_matches() -> None:
    foreign = replace(CALL, source=SpiffeId("td2", "shop", "client"))
    assert decide(mesh(allow(MATCHING["serviceAccounts"])), foreign).allowed


L7: dict[str, Source | Operation] = {
    "hosts": Operation(ports=("8080",), hosts=("x",)),
    "notHosts": Operation(ports=("8080",), not_hosts=("x",)),
    "methods": Operation(ports=("8080",), methods=("GET",)),
    "notMethods": Operation(ports=("8080",), not_methods=("GET",)),
    "paths": Operation(ports=("8080",), paths=("/",)),
    "notPaths": Operation(ports=("8080",), not_paths=("/",)),
    "requestPrincipals": Source(namespaces=("shop",), request_principals=("*",)),
    "notRequestPrincipals": Source(namespaces=("shop",), not_request_principals=("*",)),
    "remoteIpBlocks": Source(namespaces=("shop",), remote_ip_blocks=("10.0.0.1",)),
    "trustDomains": Source(namespaces=("shop",), trust_domains=("cluster.local",)),
    "notTrustDomains": Source(namespaces=("shop",), not_trust_domains=("other",)),
    "notRemoteIpBlocks": Source(namespaces=("shop",), not_remote_ip_blocks=("10.0.0.1",)),
}


@pytest.mark.parametrize("name", L7)
def test_an_l7_part_drops_an_allow_rule_and_is_dropped_from_a_deny_rule(name: str) -> None:
    entry = L7[name]
    rule = from_(entry) if isinstance(entry, Source) else to(entry)
    assert not decide(mesh(allow(rule)), CALL).allowed
    assert not decide(mesh(deny(rule)), CALL).allowed


def test_an_l7_entry_drops_the_whole_allow_rule_and_only_that() -> None:
    mixed = to(Operation(ports=("8080",)), Operation(methods=("GET",)))
    assert not decide(mesh(allow(mixed)), CALL).allowed
    assert decide(mesh(allow(mixed, EVERYTHING)), CALL).allowed


@pytest.mark.parametrize(
    "rule",
    [
        to(Operation(methods=("GET",))),
        from_(Source(request_principals=("*",))),
        when("request.headers[x]", "y"),
        when("source.serviceAccount", "client"),
        when("source.trustDomain", "*"),
        Rule(sources=(Source(namespaces=("shop",)),), conditions=(Condition(key="connection.sni", values=("x",)),)),
    ],
    ids=["to", "from", "when", "an account that is not sent", "a trust domain that is not sent", "L4 from and L7 when"],
)
def test_a_deny_part_with_nothing_of_l4_left_never_fires(rule: Rule) -> None:
    assert decide(mesh(deny(rule)), CALL).allowed


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        (deny(EVERYTHING, namespace="shop"), False),
        (deny(EVERYTHING, namespace="istio-system"), False),
        (deny(EVERYTHING, namespace="bank"), True),
        (replace(deny(EVERYTHING), selector={}), False),
        (replace(deny(EVERYTHING), selector={"app": "server"}), False),
        (replace(deny(EVERYTHING), selector={"app": "other"}), True),
        (replace(deny(EVERYTHING), selector={"app": "server", "tier": "x"}), True),
        (replace(deny(EVERYTHING, namespace="istio-system"), selector={"app": "server"}), False),
        (replace(deny(EVERYTHING, namespace="istio-system"), selector={"app": "other"}), True),
        (replace(deny(EVERYTHING), target_refs=({"kind": "Service", "name": "server"},)), True),
        (replace(deny(EVERYTHING), dry_run=True), True),
        (replace(allow(), dry_run=True), True),
    ],
    ids=[
        "namespace",
        "mesh",
        "another namespace",
        "empty selector",
        "selector",
        "selector of others",
        "one label of two",
        "selector in the root namespace",
        "selector of others in the root namespace",
        "targetRefs",
        "dry run DENY",
        "dry run ALLOW",
    ],
)
def test_a_policy_governs_its_scope_only(policy: AuthorizationPolicy, allowed: bool) -> None:
    assert decide(mesh(policy), CALL).allowed is allowed


def test_the_root_namespace_is_the_meshs_own() -> None:
    elsewhere = replace(mesh(deny(EVERYTHING, namespace="istio-system")), root_namespace="mesh-root")
    assert decide(elsewhere, CALL).allowed


def test_a_destination_out_of_the_mesh_has_no_policy() -> None:
    decision = decide(mesh(deny(EVERYTHING), ambient=False), PLAINTEXT)
    assert (decision.allowed, decision.rule) == (True, "shop/server is not in the mesh")


def peers(
    mode: MtlsMode,
    namespace: str = "shop",
    selector: dict[str, str] | None = None,
    ports: dict[int, MtlsMode] | None = None,
    name: str = "default",
) -> PeerAuthentication:
    return PeerAuthentication(name=name, namespace=namespace, selector=selector, mode=mode, port_level_mtls=ports or {})


UNSET, DISABLE, PERMISSIVE, STRICT = MtlsMode.UNSET, MtlsMode.DISABLE, MtlsMode.PERMISSIVE, MtlsMode.STRICT
APP = {"app": "server"}


@pytest.mark.parametrize(
    ("policies", "level"),
    [
        ([peers(STRICT, "istio-system")], "istio-system/default denies plaintext: STRICT for the mesh"),
        ([peers(STRICT)], "shop/default denies plaintext: STRICT for the namespace"),
        ([peers(STRICT, selector={})], "shop/default denies plaintext: STRICT for the namespace"),
        ([peers(STRICT, selector=APP)], "shop/default denies plaintext: STRICT for the workload"),
        (
            [peers(PERMISSIVE, selector=APP, ports={8080: STRICT})],
            "shop/default denies plaintext: STRICT for port 8080",
        ),
        (
            [peers(STRICT, "istio-system"), peers(UNSET), peers(UNSET, selector=APP, ports={8080: UNSET})],
            "istio-system/default denies plaintext: STRICT for the mesh",
        ),
        (
            [peers(PERMISSIVE, "istio-system"), peers(STRICT)],
            "shop/default denies plaintext: STRICT for the namespace",
        ),
        (
            [peers(STRICT, name="old"), peers(PERMISSIVE, name="young")],
            "shop/old denies plaintext: STRICT for the namespace",
        ),
        (
            [peers(STRICT, selector=APP, ports={9090: PERMISSIVE})],
            "shop/default denies plaintext: STRICT for the workload",
        ),
    ],
)
def test_strict_denies_plaintext_and_says_on_which_level(policies: list[PeerAuthentication], level: str) -> None:
    decision = decide(mesh(*policies), PLAINTEXT)
    assert (decision.allowed, decision.rule) == (False, f"PeerAuthentication {level}")
    assert decide(mesh(*policies), CALL).allowed


@pytest.mark.parametrize(
    "policies",
    [
        [],
        [peers(UNSET)],
        [peers(DISABLE)],
        [peers(PERMISSIVE)],
        [peers(STRICT, "bank")],
        [peers(STRICT, selector={"app": "other"})],
        [peers(STRICT, "istio-system", selector=APP)],
        [peers(STRICT, "istio-system"), peers(PERMISSIVE)],
        [peers(STRICT, "istio-system"), peers(DISABLE)],
        [peers(STRICT), peers(PERMISSIVE, selector=APP)],
        [peers(STRICT, selector=APP, ports={8080: PERMISSIVE})],
        [peers(STRICT, selector=APP, ports={8080: DISABLE})],
        [peers(UNSET, ports={8080: STRICT})],
        [peers(PERMISSIVE, selector=APP, ports={9090: STRICT})],
        [peers(PERMISSIVE, name="old"), peers(STRICT, name="young")],
        [peers(UNSET, name="old"), peers(STRICT, name="young")],
        [peers(PERMISSIVE, "istio-system", name="old"), peers(STRICT, "istio-system", name="young")],
        [peers(PERMISSIVE, selector=APP, name="old"), peers(STRICT, selector=APP, name="young")],
    ],
    ids=[
        "none",
        "unset",
        "disable",
        "permissive",
        "another namespace",
        "another workload",
        "a selector in the root namespace",
        "namespace before mesh",
        "disable before mesh",
        "workload before namespace",
        "port before workload",
        "disabled port before workload",
        "ports without a selector",
        "another port",
        "the oldest wins",
        "the oldest wins, unset too",
        "the oldest of the mesh wins",
        "the oldest of the workload wins",
    ],
)
def test_plaintext_is_taken_where_no_level_in_force_is_strict(policies: list[PeerAuthentication]) -> None:
    assert decide(mesh(*policies), PLAINTEXT).allowed


def test_what_strict_lets_through_is_still_judged_by_policy() -> None:
    assert not decide(mesh(peers(STRICT), deny(EVERYTHING)), CALL).allowed


def test_no_allow_opens_what_strict_closes() -> None:
    assert not decide(mesh(peers(STRICT), allow(EVERYTHING)), PLAINTEXT).allowed


@pytest.mark.parametrize(("value", "allowed"), [("true", True), ("false", False)])
def test_no_policy_is_asked_for_plaintext_that_goes_past_the_proxy(value: str, allowed: bool) -> None:
    pod = replace(SERVER, annotations={"ambient.istio.io/bypass-inbound-capture": value})
    assert decide(mesh(peers(STRICT), deny(EVERYTHING), pod=pod), PLAINTEXT).allowed is allowed
    assert not decide(mesh(deny(EVERYTHING), pod=pod), CALL).allowed, "HBONE is judged all the same"
