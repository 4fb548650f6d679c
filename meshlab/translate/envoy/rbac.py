"""AuthorizationPolicies as rules of Envoy's RBAC filters, which judge requests, or connections where bytes pass.

    policy = one entry for each rule       entry = any permission AND any principal
    permission = what is asked for         principal = who asks for it; of the rule's ``when``, each gets its part
    field = any of its values AND none of its not-values

A part of a rule that only a request can answer is no part of a connection. An ALLOW rule with one is left out there,
and a DENY rule is enforced without it: each denies more than was asked for, and never allows more. A tunnel to a
waypoint has no SNI.

Ports and addresses of the destination are those that were called: the Service's, as the inner connection has them. A
CONNECT says them in its authority.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/rbac/v3/rbac.proto,
https://istio.io/latest/docs/reference/config/security/authorization-policy/ and
https://github.com/istio/istio/tree/master/pilot/pkg/security/authz (``model/generator.go``, ``matcher/string.go``)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from meshlab.model import (
    WAYPOINT_CLASS,
    Action,
    Address,
    AuthorizationPolicy,
    Condition,
    JwtRule,
    Mesh,
    Operation,
    RequestAuthentication,
    Rule,
    Service,
    Source,
    Waypoint,
)
from meshlab.translate.envoy.forms import PEER, SOURCE, TOKENS, Json, extension, regex

Strings = tuple[str, ...]

_ANY: Json = {"any": True}
_NEVER_WHAT: Json = {"not_rule": _ANY}


def bound(mesh: Mesh, waypoint: Waypoint, service: Service | None) -> tuple[AuthorizationPolicy, ...]:
    """The policies that the waypoint enforces in front of ``service``; ``None``: in front of a pod."""
    return tuple(
        policy
        for policy in mesh.authorization_policies
        if not policy.dry_run and any(_is_at(mesh, policy, ref, waypoint, service) for ref in policy.target_refs)
    )


def jwt_rules(mesh: Mesh, waypoint: Waypoint, service: Service | None) -> tuple[JwtRule, ...]:
    """The rules for tokens that it enforces there."""
    return tuple(
        rule
        for policy in mesh.request_authentications
        if any(_is_at(mesh, policy, ref, waypoint, service) for ref in policy.target_refs)
        for rule in policy.rules
    )


def _is_at(
    mesh: Mesh,
    policy: AuthorizationPolicy | RequestAuthentication,
    ref: Json,
    waypoint: Waypoint,
    service: Service | None,
) -> bool:
    here = ref["name"], policy.namespace
    match ref["kind"]:
        case "Gateway":
            return here == (waypoint.name, waypoint.namespace)
        case "GatewayClass":
            return here == (WAYPOINT_CLASS, mesh.root_namespace)
        case "Service":
            return service is not None and here == (service.name, service.namespace)
        case _:
            return False


def rules(
    policies: Iterable[AuthorizationPolicy], action: Action, *, reads_http: bool, asked: Address | None = None
) -> Json | None:
    """The rules of one RBAC filter; ``None`` where no policy has this action.

    Those of ALLOW deny what none of them matches, also where there is none.

    Args:
        asked: the address that CONNECTs ask for, where it is those that are judged.
    """
    some = [policy for policy in policies if policy.action is action]
    entries = {
        f"{policy.key}[{number}]": entry
        for policy in some
        for number, rule in enumerate(policy.rules)
        if (entry := _entry(rule, policy, reads_http, asked)) is not None
    }
    return {"action": action.value, "policies": entries} if some else None


def _entry(rule: Rule, policy: AuthorizationPolicy, reads_http: bool, asked: Address | None) -> Json | None:
    """``None``: the rule is left out."""
    called = _CALLED if asked is None else _Called(_asked_port, lambda value: _asked_ip(asked, value))
    when = [_condition(condition, policy.namespace, called) for condition in rule.conditions]
    whos = [[*_source(source, policy.namespace), *when] for source in rule.sources] or [when]
    whats = [[*_operation(operation, called), *when] for operation in rule.operations] or [when]
    given = [field for entry in (*whos, *whats) for field in entry if field.values or field.not_values]
    if not reads_http and policy.action is Action.ALLOW and any(field.only_http for field in given):
        return None
    return {
        "permissions": [_all(entry, reads_http, _WHAT) for entry in whats],
        "principals": [_all(entry, reads_http, _WHO) for entry in whos],
    }


# --- fields ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Words:
    """Envoy's words to combine permissions, or principals."""

    both: Callable[[list[Json]], Json]
    either: Callable[[list[Json]], Json]
    negated: str


_WHAT = _Words(lambda some: {"and_rules": {"rules": some}}, lambda some: {"or_rules": {"rules": some}}, "not_rule")
_WHO = _Words(lambda some: {"and_ids": {"ids": some}}, lambda some: {"or_ids": {"ids": some}}, "not_id")


@dataclass(frozen=True, slots=True)
class _Field:
    values: Strings
    not_values: Strings
    form: Callable[[str], Json]
    """A value as a permission or a principal."""
    of: _Words
    only_http: bool = False


@dataclass(frozen=True, slots=True)
class _Called:
    """How a value of a port, and of an address, is compared with what was called."""

    port: Callable[[str], Json]
    ip: Callable[[str], Json]


def _all(fields: Iterable[_Field], reads_http: bool, words: _Words) -> Json:
    parts: list[Json] = []
    for field in fields:
        if field.of is words and (reads_http or not field.only_http):
            if field.values:
                parts.append(words.either([field.form(value) for value in field.values]))
            if field.not_values:
                parts.append({words.negated: words.either([field.form(value) for value in field.not_values])})
    return words.both(parts or [_ANY])


def _source(source: Source, namespace: str) -> list[_Field]:
    return [
        _Field(source.principals, source.not_principals, _principal, _WHO),
        _Field(source.namespaces, source.not_namespaces, _namespace, _WHO),
        _Field(source.service_accounts, source.not_service_accounts, _account_in(namespace), _WHO),
        _Field(source.trust_domains, source.not_trust_domains, _trust_domain, _WHO),
        _Field(source.ip_blocks, source.not_ip_blocks, _source_ip, _WHO),
        _Field(source.remote_ip_blocks, source.not_remote_ip_blocks, _remote_ip, _WHO),
        _Field(source.request_principals, source.not_request_principals, _request_principal, _WHO, only_http=True),
    ]


def _operation(operation: Operation, called: _Called) -> list[_Field]:
    return [
        _Field(operation.hosts, operation.not_hosts, _host, _WHAT, only_http=True),
        _Field(operation.methods, operation.not_methods, _method, _WHAT, only_http=True),
        _Field(operation.paths, operation.not_paths, _path, _WHAT, only_http=True),
        _Field(operation.ports, operation.not_ports, called.port, _WHAT),
    ]


def _condition(condition: Condition, namespace: str, called: _Called) -> _Field:
    key = condition.key
    who: dict[str, Callable[[str], Json]] = {
        "source.principal": _principal,
        "source.namespace": _namespace,
        "source.serviceAccount": _account_in(namespace),
        "source.trustDomain": _trust_domain,
        "source.ip": _source_ip,
        "remote.ip": _remote_ip,
    }
    what = {"destination.ip": called.ip, "destination.port": called.port}
    if key in who:
        return _Field(condition.values, condition.not_values, who[key], _WHO)
    if key.startswith("request."):
        return _Field(condition.values, condition.not_values, _of_request(key), _WHO, only_http=True)
    return _Field(condition.values, condition.not_values, what.get(key, lambda _: _NEVER_WHAT), _WHAT)


def _of_request(key: str) -> Callable[[str], Json]:
    """A header, or what a token says."""
    if key == "request.auth.principal":
        return _request_principal
    if key.startswith("request.auth."):
        named = {"request.auth.audiences": ["aud"], "request.auth.presenter": ["azp"]}
        path = named.get(key) or key.removeprefix("request.auth.claims[").removesuffix("]").split("][")
        return lambda value: _claim(path, _text(value))
    name = key.removeprefix("request.headers[").removesuffix("]")
    return lambda value: {"header": _header(name, value)}


# --- values ----------------------------------------------------------------------------------------------------------


def _text(value: str, begin: str = "") -> dict[str, Any]:
    """Exact, ``prefix*``, ``*suffix``, or ``*`` for any text but the empty one; ``begin`` is before all of them."""
    if value == "*":
        return dict(regex(".+"))
    if value.startswith("*"):
        return dict(regex(f"{re.escape(begin)}.*{re.escape(value[1:])}")) if begin else {"suffix": value[1:]}
    return {"prefix": begin + value[:-1]} if value.endswith("*") else {"exact": begin + value}


def _peer(matches: Json) -> Json:
    return {"filter_state": {"key": PEER, "string_match": matches}}


def _principal(value: str) -> Json:
    return _peer(_text(value, "spiffe://"))


def _namespace(value: str) -> Json:
    return _peer(regex(f".*/ns/{_pattern(value)}/.*"))


def _trust_domain(value: str) -> Json:
    return _peer(regex(f"spiffe://{_pattern(value)}/.*"))


def _pattern(value: str) -> str:
    """Of a part of an identity, between two slashes."""
    return ("[^/]+" if value == "*" else "[^/]*").join(map(re.escape, value.split("*")))


def _account_in(policy_namespace: str) -> Callable[[str], Json]:
    """``namespace/name``, or ``name`` in the policy's own namespace."""

    def account(value: str) -> Json:
        namespace, slash, name = value.rpartition("/")
        where = re.escape(namespace if slash else policy_namespace)
        return _peer(regex(f"spiffe://.+/ns/{where}/sa/{re.escape(name)}"))

    return account


def _request_principal(value: str) -> Json:
    """``issuer/subject``, parted at the last slash, or one of both with a wildcard for the other."""
    issuer, slash, subject = value.rpartition("/")
    if not slash:
        issuer, subject = ("*", value) if value.startswith("*") else (value, "*" if value.endswith("*") else "")
    both = [_claim(["iss"], _text(issuer)), _claim(["sub"], _text(subject))]
    return {"and_ids": {"ids": both}}


def _claim(path: Iterable[str], matches: Json) -> Json:
    """A text, or one of a list of texts."""
    text = {"string_match": matches}
    value = {"or_match": {"value_matchers": [text, {"list_match": {"one_of": text}}]}}
    return {"metadata": {"filter": TOKENS, "path": [{"key": key} for key in ("payload", *path)], "value": value}}


def _source_ip(value: str) -> Json:
    """Of the client's connection to the waypoint; what Envoy calls ``direct_remote_ip`` is its own inner one's."""
    return {"filter_state": {"key": SOURCE, "address_match": {"ranges": [_range(value)]}}}


def _remote_ip(value: str) -> Json:
    return {"remote_ip": _range(value)}


def _destination_ip(value: str) -> Json:
    return {"destination_ip": _range(value)}


def _range(value: str) -> Json:
    network = ip_network(value, strict=False)  # Istio takes 10.0.0.1/8, host bits and all
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}


def _port(value: str) -> Json:
    return {"destination_port": int(value)}


def _asked_port(value: str) -> Json:
    return {"header": {"name": ":authority", "string_match": {"suffix": f":{int(value)}"}}}


def _asked_ip(asked: Address, value: str) -> Json:
    return _ANY if asked in ip_network(value, strict=False) else _NEVER_WHAT


def _host(value: str) -> Json:
    """The authority as it was sent, with its port where it has one: Istio matches no less.

    Source: https://istio.io/latest/docs/ops/best-practices/security/#writing-host-match-policies
    """
    matches = _header(":authority", value)
    return {"header": matches if value == "*" else {**matches, "string_match": {**_text(value), "ignore_case": True}}}


def _method(value: str) -> Json:
    return {"header": _header(":method", value)}


def _header(name: str, value: str) -> Json:
    return {"name": name, **({"present_match": True} if value == "*" else {"string_match": _text(value)})}


def _path(value: str) -> Json:
    """Without the query. ``{*}`` stands for a segment, ``{**}`` for any number of them."""
    if "{*}" in value or "{**}" in value:
        template = {"path_template": value.replace("{*}", "*").replace("{**}", "**")}
        return {"uri_template": extension("template", "path.match.uri_template.v3.UriTemplateMatchConfig", template)}
    return {"url_path": {"path": _text(value)}}


_CALLED = _Called(_port, _destination_ip)
