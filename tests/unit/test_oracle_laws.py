"""Laws that hold for every mesh and connection, whatever the policies say."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import event, given
from hypothesis import strategies as st

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

NAMESPACES = ("shop", "bank", "istio-system")
SERVER = Pod(
    name="server",
    namespace="shop",
    node="node-1",
    ipv4=IPv4Address("10.0.0.2"),
    ipv6=IPv6Address("fd00::2"),
    labels={"app": "server", "version": "one"},
)

PATTERNS = ("*", "shop", "sh*", "*nk", "cluster.local/ns/shop/sa/client", "td2/*", "*/sa/server")
ACCOUNTS = ("client", "server", "shop/client", "bank/server")
BLOCKS = ("10.0.0.0/31", "10.0.0.1", "10.0.0.0/8", "fd00::/127", "::/0", "0.0.0.0/0")
PORTS = ("80", "8080", "9090", "http")
SOURCE_FIELDS = {
    "principals": PATTERNS,
    "not_principals": PATTERNS,
    "namespaces": PATTERNS,
    "not_namespaces": PATTERNS,
    "service_accounts": ACCOUNTS,
    "not_service_accounts": ACCOUNTS,
    "ip_blocks": BLOCKS,
    "not_ip_blocks": BLOCKS,
    "request_principals": ("*",),
}
OPERATION_FIELDS = {"ports": PORTS, "not_ports": PORTS, "methods": ("GET",)}
CONDITION_KEYS = {
    "source.principal": PATTERNS,
    "source.namespace": PATTERNS,
    "source.ip": BLOCKS,
    "destination.ip": BLOCKS,
    "destination.port": PORTS,
    "connection.sni": PATTERNS,
}


def fields(choices: dict[str, tuple[str, ...]]) -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Up to three values, each in a field that takes it; one draw a value keeps this fast."""
    pairs = [(name, value) for name, values in choices.items() for value in values]

    def grouped(drawn: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
        return {name: tuple(v for n, v in drawn if n == name) for name, _ in drawn}

    return st.lists(st.sampled_from(pairs), max_size=3).map(grouped)


def condition(drawn: tuple[tuple[str, str], str]) -> Condition:
    (key, value), field = drawn
    return Condition(key=key, **{field: (value,)})


names = st.sampled_from(("shop", "bank", "client", "server"))
namespaces = st.sampled_from(NAMESPACES)
sources = fields(SOURCE_FIELDS).map(lambda drawn: Source(**drawn))
operations = fields(OPERATION_FIELDS).map(lambda drawn: Operation(**drawn))
conditions = st.tuples(
    st.sampled_from([(key, value) for key, values in CONDITION_KEYS.items() for value in values]),
    st.sampled_from(("values", "not_values")),
).map(condition)
rules = st.builds(
    Rule,
    sources=st.lists(sources, max_size=2).map(tuple),
    operations=st.lists(operations, max_size=2).map(tuple),
    conditions=st.lists(conditions, max_size=2).map(tuple),
)
selectors = st.sampled_from((None, {}, {"app": "server"}, {"version": "two"}))
policies = st.builds(
    AuthorizationPolicy,
    name=names,
    namespace=namespaces,
    selector=selectors,
    action=st.sampled_from(Action),
    rules=st.lists(rules, max_size=3).map(tuple),
    dry_run=st.sampled_from((False, False, False, True)),
)
modes = st.sampled_from(MtlsMode)
peer_authentications = st.builds(
    PeerAuthentication,
    name=names,
    namespace=namespaces,
    selector=selectors,
    mode=modes,
    port_level_mtls=st.dictionaries(st.sampled_from((80, 8080)), modes, max_size=2),
)
meshes = st.builds(
    Mesh,
    namespaces=st.just((Namespace(name="shop", labels={"istio.io/dataplane-mode": "ambient"}),)),
    pods=st.just((SERVER,)),
    authorization_policies=st.lists(policies, max_size=4).map(tuple),
    peer_authentications=st.lists(peer_authentications, max_size=3).map(tuple),
)
identities = st.builds(
    SpiffeId, trust_domain=st.sampled_from(("cluster.local", "td2")), namespace=names, service_account=names
)
connections = st.builds(
    Connection,
    source=st.none() | identities,
    source_ip=st.sampled_from((IPv4Address("10.0.0.1"), IPv4Address("10.0.0.3"), IPv6Address("fd00::1"))),
    destination=st.just(SERVER.key),
    destination_ip=st.sampled_from((SERVER.ipv4, SERVER.ipv6)),
    port=st.sampled_from((80, 8080, 9090)),
)


def with_policy(mesh: Mesh, policy: AuthorizationPolicy) -> Mesh:
    return replace(mesh, authorization_policies=(*mesh.authorization_policies, policy))


@given(meshes, policies, connections)
def test_a_further_deny_never_opens(mesh: Mesh, policy: AuthorizationPolicy, call: Connection) -> None:
    further = with_policy(mesh, replace(policy, action=Action.DENY))
    before, after = decide(mesh, call).allowed, decide(further, call).allowed
    event(f"allowed before: {before}, after: {after}")
    assert before or not after


@given(meshes, policies, connections)
def test_a_further_allow_only_opens_where_there_is_one(
    mesh: Mesh, policy: AuthorizationPolicy, call: Connection
) -> None:
    mesh = with_policy(mesh, AuthorizationPolicy(name="allow-nothing", namespace="shop"))
    further = with_policy(mesh, replace(policy, action=Action.ALLOW))
    assert decide(further, call).allowed or not decide(mesh, call).allowed


@given(meshes, policies, connections)
def test_a_first_allow_never_opens(mesh: Mesh, policy: AuthorizationPolicy, call: Connection) -> None:
    only_denies = tuple(replace(one, action=Action.DENY) for one in mesh.authorization_policies)
    mesh = replace(mesh, authorization_policies=only_denies)
    further = with_policy(mesh, replace(policy, action=Action.ALLOW))
    assert decide(mesh, call).allowed or not decide(further, call).allowed


@given(meshes, connections)
def test_the_order_of_policies_rules_and_entries_never_matters(mesh: Mesh, call: Connection) -> None:
    def turned(policy: AuthorizationPolicy) -> AuthorizationPolicy:
        return replace(policy, rules=tuple(map(reversed_entries, reversed(policy.rules))))

    def reversed_entries(rule: Rule) -> Rule:
        return Rule(sources=rule.sources[::-1], operations=rule.operations[::-1], conditions=rule.conditions[::-1])

    other = replace(mesh, authorization_policies=tuple(map(turned, reversed(mesh.authorization_policies))))
    assert decide(other, call).verdict is decide(mesh, call).verdict


@given(meshes, connections)
def test_renaming_every_policy_changes_no_verdict(mesh: Mesh, call: Connection) -> None:
    renamed = replace(
        mesh,
        authorization_policies=tuple(
            replace(policy, name=f"renamed-{place}") for place, policy in enumerate(mesh.authorization_policies)
        ),
        peer_authentications=tuple(
            replace(policy, name=f"renamed-{place}") for place, policy in enumerate(mesh.peer_authentications)
        ),
    )
    assert decide(renamed, call).verdict is decide(mesh, call).verdict


@given(meshes, st.lists(rules, min_size=1, max_size=3), connections)
def test_one_policy_of_many_rules_is_many_policies_of_one_rule(
    mesh: Mesh, several: list[Rule], call: Connection
) -> None:
    for action in Action:
        one = AuthorizationPolicy(name="one", namespace="shop", action=action, rules=tuple(several))
        split = mesh
        for rule in several:
            split = with_policy(split, replace(one, rules=(rule,)))
        assert decide(with_policy(mesh, one), call).verdict is decide(split, call).verdict


@given(meshes, connections, identities)
def test_peer_authentication_alone_denies_nobody_with_an_identity(
    mesh: Mesh, call: Connection, identity: SpiffeId
) -> None:
    bare = replace(mesh, authorization_policies=())
    assert decide(bare, replace(call, source=identity)).allowed


@given(meshes, connections)
def test_every_denial_names_what_denied(mesh: Mesh, call: Connection) -> None:
    decision = decide(mesh, call)
    keys = {policy.key for policy in mesh.authorization_policies} | {policy.key for policy in mesh.peer_authentications}
    assert decision.allowed or any(key in decision.rule for key in keys)
