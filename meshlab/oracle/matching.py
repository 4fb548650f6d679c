"""Whether one AuthorizationPolicy matches one connection, and by what.

    policy = OR of rules
    rule   = from AND to AND every when
    from   = OR of sources            (to: of operations)
    source = AND of its fields        (operation and when alike)
    field  = OR of its values AND none of its not-values

Where there is no request to look at, only what L4 can know takes part. An ALLOW rule with an L7 part is as if it were
not there (it would allow more than was asked for); a DENY rule is enforced without its L7 parts (it denies more). An
entry of which nothing is left never matches at a ztunnel, and always at a waypoint. So ``rules: [{}]`` matches
everything, and ``from: [{source: {}}]`` nothing at a ztunnel.

Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/ and, where page and code disagree
on L7 parts, the code (pilot/pkg/serviceregistry/ambient/authorization.go).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from meshlab.model import (
    Action,
    Address,
    AuthorizationPolicy,
    Condition,
    Connection,
    HttpRequest,
    Operation,
    Rule,
    Source,
    SpiffeId,
)
from meshlab.oracle.requests import header_values, is_like_path, path_of

Strings = tuple[str, ...]
Claims = Mapping[str, Any]
"""What a token says."""
NOBODY: Claims = {}
_HEADER_KEY = re.compile(r"request\.headers\[(.+)\]")
_CLAIM_KEY = re.compile(r"request\.auth\.claims((?:\[[^\[\]]+\])+)")
_CLAIMS = {"request.auth.audiences": ["aud"], "request.auth.presenter": ["azp"]}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    """As the manifest spells it."""
    values: Strings
    not_values: Strings
    matches: Callable[[str], bool]


def match_policy(
    policy: AuthorizationPolicy,
    connection: Connection,
    request: HttpRequest | None = None,
    claims: Claims = NOBODY,
    *,
    at_waypoint: bool = False,
) -> str | None:
    """Say which rule of ``policy`` matches and by what, e.g. ``rule 1 (ports 9090)``; ``None`` where none does.

    Args:
        request: what a waypoint reads on the connection; ``None`` where it carries nothing but bytes.
        claims: what the request's token says; nothing where it has none.
        at_waypoint: whether an entry of which nothing is left matches everything, as it does at a waypoint.
    """
    for number, rule in enumerate(policy.rules, 1):
        if request is None and policy.action is Action.ALLOW and _has_l7(rule):
            continue
        reasons = _match_rule(rule, policy.namespace, connection, request, claims, at_waypoint)
        if reasons is not None:
            return f"rule {number} ({', '.join(reasons) or 'everything'})"
    return None


def _match_rule(
    rule: Rule, namespace: str, connection: Connection, request: HttpRequest | None, claims: Claims, at_waypoint: bool
) -> list[str] | None:
    """What in the rule matched (nothing, for a rule without parts); ``None`` where a part did not."""
    parts: list[list[list[_Field]]] = []
    if rule.sources:
        parts.append([_source_fields(source, namespace, connection, request, claims) for source in rule.sources])
    if rule.operations:
        parts.append([_operation_fields(operation, connection, request) for operation in rule.operations])
    parts.extend(
        [_condition_fields(condition, namespace, connection, request, claims)] for condition in rule.conditions
    )
    reasons = []
    for entries in parts:
        found = [reason for entry in entries if (reason := _match_entry(entry)) or (reason == "" and at_waypoint)]
        if not found:
            return None
        reasons.append(found[0] or "what L7 alone can tell")
    return reasons


def _match_entry(fields: Iterable[_Field]) -> str | None:
    """AND over the fields that say something. The text is empty where none does."""
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
    return ", ".join(reasons)


def _source_fields(
    source: Source, namespace: str, connection: Connection, request: HttpRequest | None, claims: Claims
) -> list[_Field]:
    peer = connection.source
    l4 = [
        _Field("principals", source.principals, source.not_principals, _principal_matcher(peer)),
        _Field("namespaces", source.namespaces, source.not_namespaces, _namespace_matcher(peer)),
        _Field(
            "serviceAccounts",
            source.service_accounts,
            source.not_service_accounts,
            partial(_is_service_account, policy_namespace=namespace, peer=peer),
        ),
        _Field("ipBlocks", source.ip_blocks, source.not_ip_blocks, _address_matcher(connection.source_ip)),
    ]
    if request is None:
        return l4
    requested = _Field(
        "requestPrincipals",
        source.request_principals,
        source.not_request_principals,
        lambda value: _is_request_principal(claims, value),
    )
    domains = _Field("trustDomains", source.trust_domains, source.not_trust_domains, _trust_domain_matcher(peer))
    return [*l4, requested, domains]


def _operation_fields(operation: Operation, connection: Connection, request: HttpRequest | None) -> list[_Field]:
    l4 = [_port_field("ports", operation.ports, operation.not_ports, connection)]
    if request is None:
        return l4
    path = path_of(request)
    return [
        *l4,
        _Field("hosts", operation.hosts, operation.not_hosts, lambda value: _is_host(request.authority, value)),
        _Field("methods", operation.methods, operation.not_methods, lambda value: _is_like(request.method, value)),
        _Field("paths", operation.paths, operation.not_paths, lambda value: is_like_path(path, value)),
    ]


def _condition_fields(
    condition: Condition, namespace: str, connection: Connection, request: HttpRequest | None, claims: Claims
) -> list[_Field]:
    """One field, or none where the key is one that nobody can see here."""
    key, peer = condition.key, connection.source
    match key:
        case "source.principal":
            found = _principal_matcher(peer)
        case "source.namespace":
            found = _namespace_matcher(peer)
        case "source.ip":
            found = _address_matcher(connection.source_ip)
        case "destination.ip":
            found = _address_matcher(connection.destination_ip)
        case "destination.port":
            return [_port_field(key, condition.values, condition.not_values, connection)]
        case _ if request is None:
            return []
        case "source.trustDomain":
            found = _trust_domain_matcher(peer)
        case "source.serviceAccount":
            found = partial(_is_service_account, policy_namespace=namespace, peer=peer)
        case "request.auth.principal":
            found = partial(_is_request_principal, claims)
        case _ if key in _CLAIMS:
            found = _claim_matcher(claims, _CLAIMS[key])
        case _ if named := _CLAIM_KEY.fullmatch(key):
            found = _claim_matcher(claims, named[1][1:-1].split("]["))
        case _:
            found = _header_matcher(key, request)
    return [_Field(key, condition.values, condition.not_values, found)]


def _header_matcher(key: str, request: HttpRequest) -> Callable[[str], bool]:
    """Of ``request.headers[NAME]``. Of any other key there is no value at a waypoint, so nothing matches.

    Of a header that is there several times each value counts by itself. ``*`` asks for the header, even an empty one.
    """
    named = _HEADER_KEY.fullmatch(key)
    values = header_values(request, named[1].lower()) if named else []
    return lambda pattern: any(pattern == "*" or _is_like(value, pattern) for value in values)


def _claim_matcher(claims: Claims, path: Iterable[str]) -> Callable[[str], bool]:
    texts = _texts(claims, path)
    return lambda pattern: any(_is_like(text, pattern) for text in texts)


def _texts(claims: Claims, path: Iterable[str]) -> list[str]:
    """The claim at ``path``: a text, or a list of texts; of any other kind Istio supports none."""
    found: Any = claims
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]


def _is_request_principal(claims: Claims, pattern: str) -> bool:
    """Compares ``issuer/subject`` part by part: the last slash of the pattern is the one between them.

        a/b  issuer a, subject b      *    any issuer and subject      a/*  */b  any of the other part
        a*   issuer a*, any subject   *b   any issuer, subject *b

    Source: ``requestPrincipalGenerator`` in pilot/pkg/security/authz/model/generator.go of istio/istio
    """
    issuer, slash, subject = pattern.rpartition("/")
    if not slash:
        subject = pattern if pattern.startswith("*") else "*" if pattern.endswith("*") else ""
        issuer = "*" if pattern.startswith("*") else pattern
    return any(_is_like(text, issuer) for text in _texts(claims, ["iss"])) and any(
        _is_like(text, subject) for text in _texts(claims, ["sub"])
    )


def _is_host(authority: str, pattern: str) -> bool:
    """Hosts are compared without regard to case, and with their port: ``shop.example`` is not ``shop.example:80``.

    Source: https://istio.io/latest/docs/ops/best-practices/security/#understand-host-header-matching
    """
    return _is_like(authority.lower(), pattern.lower())


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


def _trust_domain_matcher(peer: SpiffeId | None) -> Callable[[str], bool]:
    return lambda pattern: peer is not None and _is_like(peer.trust_domain, pattern)


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
