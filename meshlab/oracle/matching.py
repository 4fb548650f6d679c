"""Whether one AuthorizationPolicy matches one connection, and by what.

    policy = OR of rules
    rule   = from AND to AND every when
    from   = OR of sources            (to: of operations)
    source = AND of its fields        (operation and when alike)
    field  = OR of its values AND none of its not-values

Only what L4 can know takes part. An ALLOW rule with an L7 part is as if it were not there (it would allow more than was
asked for); a DENY rule is enforced without its L7 parts (it denies more), and an entry of which nothing is left never
matches. So ``rules: [{}]`` matches everything, and ``from: [{source: {}}]`` nothing.

Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/ and, where page and code disagree
on L7 parts, the code (pilot/pkg/serviceregistry/ambient/authorization.go).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from meshlab.model import Action, Address, AuthorizationPolicy, Condition, Connection, Operation, Rule, Source, SpiffeId

Strings = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    """As the manifest spells it."""
    values: Strings
    not_values: Strings
    matches: Callable[[str], bool]


def match_policy(policy: AuthorizationPolicy, connection: Connection) -> str | None:
    """Say which rule of ``policy`` matches and by what, e.g. ``rule 1 (ports 9090)``; ``None`` where none does."""
    for number, rule in enumerate(policy.rules, 1):
        if policy.action is Action.ALLOW and _has_l7(rule):
            continue
        reasons = _match_rule(rule, policy.namespace, connection)
        if reasons is not None:
            return f"rule {number} ({', '.join(reasons) or 'everything'})"
    return None


def _match_rule(rule: Rule, namespace: str, connection: Connection) -> list[str] | None:
    """What in the rule matched (nothing, for a rule without parts); ``None`` where a part did not."""
    parts: list[list[list[_Field]]] = []
    if rule.sources:
        parts.append([_source_fields(source, namespace, connection) for source in rule.sources])
    if rule.operations:
        parts.append([_operation_fields(operation, connection) for operation in rule.operations])
    parts.extend([_condition_fields(condition, connection)] for condition in rule.conditions)
    reasons = []
    for entries in parts:
        reason = next((found for entry in entries if (found := _match_entry(entry)) is not None), None)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons


def _match_entry(fields: Iterable[_Field]) -> str | None:
    """AND over the fields that say something; an entry in which none does never matches."""
    reasons = []
    for field in fields:
        if field.values:
            hit = next((value for value in field.values if field.matches(value)), None)
            if hit is None:
                return None
            reasons.append(f"{field.name} {hit}")
        if field.not_values:
            if any(field.matches(value) for value in field.not_values):
                return None
            reasons.append(f"{field.name} not {' or '.join(field.not_values)}")
    return ", ".join(reasons) or None


def _source_fields(source: Source, namespace: str, connection: Connection) -> list[_Field]:
    peer = connection.source
    return [
        _Field("principals", source.principals, source.not_principals, _principal_matcher(peer)),
        _Field("namespaces", source.namespaces, source.not_namespaces, _namespace_matcher(peer)),
        _Field(
            "serviceAccounts",
            source.service_accounts,
            source.not_service_accounts,
            lambda value: _is_service_account(value, namespace, peer),
        ),
        _Field("ipBlocks", source.ip_blocks, source.not_ip_blocks, _address_matcher(connection.source_ip)),
    ]


def _operation_fields(operation: Operation, connection: Connection) -> list[_Field]:
    return [_port_field("ports", operation.ports, operation.not_ports, connection)]


def _condition_fields(condition: Condition, connection: Connection) -> list[_Field]:
    """One field, or none where the key is an L7 one."""
    key, values, not_values = condition.key, condition.values, condition.not_values
    match key:
        case "source.principal":
            return [_Field(key, values, not_values, _principal_matcher(connection.source))]
        case "source.namespace":
            return [_Field(key, values, not_values, _namespace_matcher(connection.source))]
        case "source.ip":
            return [_Field(key, values, not_values, _address_matcher(connection.source_ip))]
        case "destination.ip":
            return [_Field(key, values, not_values, _address_matcher(connection.destination_ip))]
        case "destination.port":
            return [_port_field(key, values, not_values, connection)]
        case _:
            return []


def _has_l7(rule: Rule) -> bool:
    """Whether a part of ``rule`` needs HTTP or the TLS of a sidecar to be judged, or cannot be sent to a ztunnel."""
    l4_keys = {"source.principal", "source.namespace", "source.ip", "destination.ip", "destination.port"}
    return (
        any(condition.key not in l4_keys for condition in rule.conditions)
        or any(
            source.request_principals
            or source.not_request_principals
            or source.remote_ip_blocks
            or source.not_remote_ip_blocks
            or source.trust_domains
            or source.not_trust_domains
            for source in rule.sources
        )
        or any(
            operation.hosts
            or operation.not_hosts
            or operation.methods
            or operation.not_methods
            or operation.paths
            or operation.not_paths
            for operation in rule.operations
        )
    )


def _principal_matcher(peer: SpiffeId | None) -> Callable[[str], bool]:
    """Compares with the identity without ``spiffe://``: a pattern that has it matches nobody."""
    return lambda pattern: peer is not None and _is_like(peer.principal, pattern)


def _namespace_matcher(peer: SpiffeId | None) -> Callable[[str], bool]:
    """Compares with the identity's namespace, which is empty where there is no identity."""
    return lambda pattern: _is_like(peer.namespace if peer else "", pattern)


def _is_service_account(value: str, policy_namespace: str, peer: SpiffeId | None) -> bool:
    """``namespace/name``, or ``name`` in the policy's own namespace; of any trust domain, and without wildcards."""
    namespace, slash, name = value.partition("/")
    if not slash:
        namespace, name = policy_namespace, value
    return peer is not None and (peer.namespace, peer.service_account) == (namespace, name)


def _is_like(text: str, pattern: str) -> bool:
    """Exact, ``prefix*``, ``*suffix``, or ``*`` for anything that is there."""
    if pattern == "*":
        return text != ""
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def _address_matcher(address: Address) -> Callable[[str], bool]:
    return lambda block: address in _network(block)


@lru_cache(maxsize=1024)
def _network(block: str) -> IPv4Network | IPv6Network:
    return ip_network(block, strict=False)  # Istio takes 10.0.0.1/8, host bits and all


def _port_field(name: str, ports: Strings, not_ports: Strings, connection: Connection) -> _Field:
    """Text that is no port is left out, as Istio does: a field of nothing else says nothing."""
    return _Field(
        name,
        tuple(filter(_is_port, ports)),
        tuple(filter(_is_port, not_ports)),
        lambda port: int(port) == connection.port,
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535
