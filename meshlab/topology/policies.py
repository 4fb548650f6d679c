"""Policies and authentications: from checked documents to the model, refusing what Istio's API refuses.

Source: pkg/config/validation/validation.go of istio/istio, ValidateAuthorizationPolicy, ValidatePeerAuthentication
and ValidateRequestAuthentication
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    JwtRule,
    MtlsMode,
    Operation,
    PeerAuthentication,
    RequestAuthentication,
    Rule,
    Source,
)
from meshlab.model.workload import TRUE_WORDS
from meshlab.topology import shapes
from meshlab.topology.nodes import Map, Node, Scalar, Sequence
from meshlab.topology.notes import Notes, Place, did_you_mean, listed, shown
from meshlab.topology.shapes import Shape

DRY_RUN = "istio.io/dry-run"
_MOST_SERVICE_ACCOUNTS = 16

_CONDITION_KEYS: dict[str, Shape] = {
    "source.ip": shapes.CIDR,
    "source.namespace": shapes.TEXT,
    "source.principal": shapes.TEXT,
    "source.serviceAccount": shapes.ACCOUNT,
    "source.trustDomain": shapes.TRUST_DOMAIN,
    "destination.ip": shapes.CIDR,
    "destination.port": shapes.PORT_TEXT,
    "remote.ip": shapes.CIDR,
    "request.auth.principal": shapes.TEXT,
    "request.auth.audiences": shapes.TEXT,
    "request.auth.presenter": shapes.TEXT,
    "connection.sni": shapes.TEXT,
}
_CONDITION_FAMILIES = ("request.headers[NAME]", "request.auth.claims[NAME]", "experimental.envoy.filters.FILTER[NAME]")
"""Keys that go on, as messages show them."""
_FAMILY_KEY = re.compile(
    r"(request\.headers|request\.auth\.claims(\[[^\[\]]+\])*|experimental\.envoy\.filters\.[^\[]+)\[.+\]"
)

_SOURCE_FIELDS = {
    "principals": "principals",
    "notPrincipals": "not_principals",
    "namespaces": "namespaces",
    "notNamespaces": "not_namespaces",
    "serviceAccounts": "service_accounts",
    "notServiceAccounts": "not_service_accounts",
    "ipBlocks": "ip_blocks",
    "notIpBlocks": "not_ip_blocks",
    "requestPrincipals": "request_principals",
    "notRequestPrincipals": "not_request_principals",
    "remoteIpBlocks": "remote_ip_blocks",
    "notRemoteIpBlocks": "not_remote_ip_blocks",
    "trustDomains": "trust_domains",
    "notTrustDomains": "not_trust_domains",
}
_OPERATION_FIELDS = {
    "ports": "ports",
    "notPorts": "not_ports",
    "hosts": "hosts",
    "notHosts": "not_hosts",
    "methods": "methods",
    "notMethods": "not_methods",
    "paths": "paths",
    "notPaths": "not_paths",
}
_AT_A_NODE = {
    *("principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts"),
    *("ipBlocks", "notIpBlocks", "ports", "notPorts"),
    *("source.principal", "source.namespace", "source.ip", "destination.ip", "destination.port"),
}
"""What a node proxy can judge."""
_OF_REMOTE = {"remoteIpBlocks", "notRemoteIpBlocks", "remote.ip"}
_GROUPS = {
    "Gateway": ("gateway.networking.k8s.io",),
    "GatewayClass": ("gateway.networking.k8s.io",),
    "Service": ("", "core"),
    "ServiceEntry": ("networking.istio.io",),
}


def source_fields(source: Source) -> dict[str, tuple[str, ...]]:
    """``source`` under the names of the API, what is empty left out."""
    return {name: value for name, attribute in _SOURCE_FIELDS.items() if (value := getattr(source, attribute))}


def operation_fields(operation: Operation) -> dict[str, tuple[str, ...]]:
    return {name: value for name, attribute in _OPERATION_FIELDS.items() if (value := getattr(operation, attribute))}


def authorization_policy(document: Map, notes: Notes) -> AuthorizationPolicy:
    """A ``kind: AuthorizationPolicy``, its L7 fields included."""
    metadata, spec = document.map("metadata"), document.map("spec")
    action = Action(spec.text("action", "ALLOW"))
    if action is Action.DENY and "rules" not in spec:
        notes.refuse(spec.place, "a DENY without rules matches nothing; Istio refuses it")
    if "targetRef" in spec or "targetRefs" in spec:
        _refuse_remote_addresses(spec, notes)
    else:
        _warn_of_http(spec, action, notes)
    return AuthorizationPolicy(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        selector=_selector(spec),
        action=action,
        rules=tuple(_rule(rule, notes) for rule in spec.maps("rules")),
        target_refs=_target_refs(spec, notes),
        dry_run=metadata.strings("annotations").get(DRY_RUN) in TRUE_WORDS,
    )


def _refuse_remote_addresses(spec: Map, notes: Notes) -> None:
    for place, name in (part for rule in spec.maps("rules") for part in _http_parts(rule)):
        if name in _OF_REMOTE:
            notes.refuse(place, f"{name} is refused: the lab does not support it at a waypoint yet")


def _warn_of_http(spec: Map, action: Action, notes: Notes) -> None:
    """Source: https://istio.io/latest/docs/ambient/usage/l4-policy/"""
    effect = {
        Action.ALLOW: "this rule allows nothing",
        Action.DENY: "this rule denies what its other parts match",
    }
    for rule in spec.maps("rules"):
        if parts := list(_http_parts(rule)):
            names = listed({name for _, name in parts})
            notes.warn(
                parts[0][0],
                f"no node proxy can judge {names}, and without targetRefs only node proxies enforce a policy: "
                f"{effect[action]}. Give it targetRefs to have a waypoint enforce it",
            )


def _http_parts(rule: Map) -> Iterator[tuple[Place, str]]:
    """Where ``rule`` asks for what no node proxy can judge, and the name of it."""
    for list_, part in (("from", "source"), ("to", "operation")):
        for fields in (entry.map(part) for entry in rule.maps(list_)):
            yield from ((fields.at(name), name) for name in fields.entries if name not in _AT_A_NODE)
    for condition in rule.maps("when"):
        if (key := condition.text("key")) not in _AT_A_NODE:
            yield condition.at("key"), key


def _selector(spec: Map) -> dict[str, str] | None:
    return spec.map("selector").strings("matchLabels") if "selector" in spec else None


def _target_refs(spec: Map, notes: Notes) -> tuple[dict[str, str], ...]:
    given = [key for key in ("selector", "targetRef", "targetRefs") if key in spec]
    if len(given) > 1:
        notes.refuse(spec.at(given[1]), f"{' and '.join(given)} exclude each other")
    targets = (*((spec.map("targetRef"),) if "targetRef" in spec else ()), *spec.maps("targetRefs"))
    return tuple(_target(target, notes) for target in targets)


def _target(target: Map, notes: Notes) -> dict[str, str]:
    kind, group = target.text("kind"), target.text("group")
    groups = _GROUPS.get(kind, (group,))
    if group not in groups:
        notes.refuse(target.at("group"), f"group '{group}' of a {kind} must be {' or '.join(map(repr, groups))}")
    return {"group": group, "kind": kind, "name": target.text("name")}


def _rule(rule: Map, notes: Notes) -> Rule:
    for key in ("from", "to", "when"):
        if key in rule and not rule.items(key):
            notes.refuse(rule.at(key), f"'{key}' must not be an empty list; leave it out to match everything")
    return Rule(
        sources=tuple(_source(entry, notes) for entry in rule.maps("from")),
        operations=tuple(_operation(entry, notes) for entry in rule.maps("to")),
        conditions=tuple(_condition(entry, notes) for entry in rule.maps("when")),
    )


def _source(entry: Map, notes: Notes) -> Source:
    fields = entry.map("source")
    _refuse_empty(entry, "source", notes)
    accounts = [key for key in ("serviceAccounts", "notServiceAccounts") if key in fields]
    others = [key for key in ("principals", "notPrincipals", "namespaces", "notNamespaces") if key in fields]
    if accounts and others:
        message = f"{accounts[0]} and {others[0]} exclude each other in one source; make them two"
        notes.refuse(fields.at(accounts[0]), message)
    for key in accounts:
        if len(fields.items(key)) > _MOST_SERVICE_ACCOUNTS:
            notes.refuse(fields.at(key), f"{key} has at most {_MOST_SERVICE_ACCOUNTS} entries")
    return Source(**{attribute: fields.texts(key) for key, attribute in _SOURCE_FIELDS.items()})


def _operation(entry: Map, notes: Notes) -> Operation:
    _refuse_empty(entry, "operation", notes)
    fields = entry.map("operation")
    return Operation(**{attribute: fields.texts(key) for key, attribute in _OPERATION_FIELDS.items()})


def _refuse_empty(entry: Map, key: str, notes: Notes) -> None:
    lists = [node for node in entry.map(key).entries.values() if isinstance(node, Sequence)]
    if not any(node.items or not node.whole for node in lists):
        notes.refuse(entry.place, f"'{key}' has no field: it would match nothing; Istio refuses it")


def _condition(entry: Map, notes: Notes) -> Condition:
    key = entry.text("key")
    shape = _condition_shape(key)
    if key and shape is None:
        keys = (*_CONDITION_KEYS, *_CONDITION_FAMILIES)
        notes.refuse(entry.at("key"), f"no condition '{key}'; there are {listed(keys)}.{did_you_mean(key, keys)}")
    values = (*entry.items("values"), *entry.items("notValues"))
    if not values:
        notes.refuse(entry.place, f"the condition '{key}' has neither values nor notValues")
    for value in values:
        _check_value(value, key, shape, notes)
    return Condition(key=key, values=entry.texts("values"), not_values=entry.texts("notValues"))


def _condition_shape(key: str) -> Shape | None:
    return shapes.TEXT if _FAMILY_KEY.fullmatch(key) else _CONDITION_KEYS.get(key)


def _check_value(value: Node, key: str, shape: Shape | None, notes: Notes) -> None:
    if shape is not None and isinstance(value, Scalar) and (fault := shape.fault(value)):
        notes.refuse(value.place, f"{key}: {fault}")


def peer_authentication(document: Map, notes: Notes) -> PeerAuthentication:
    """A ``kind: PeerAuthentication``."""
    metadata, spec = document.map("metadata"), document.map("spec")
    selector = _selector(spec)
    ports = spec.map("portLevelMtls")
    if "portLevelMtls" in spec and not ports.key_places:
        notes.refuse(spec.at("portLevelMtls"), "portLevelMtls has no port")
    if ports.entries and not selector:
        notes.refuse(spec.at("portLevelMtls"), "portLevelMtls needs a selector: Istio honours it for workloads only")
    return PeerAuthentication(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        selector=selector,
        mode=_mode(spec.map("mtls")),
        port_level_mtls={int(port): _mode(ports.map(port)) for port in ports.entries},
    )


def _mode(mtls: Map) -> MtlsMode:
    return MtlsMode(mtls.text("mode", "UNSET"))


def request_authentication(document: Map, urls: Mapping[str, str], notes: Notes) -> RequestAuthentication:
    """A ``kind: RequestAuthentication``.

    Args:
        urls: URL -> what the control plane reads there.
    """
    metadata, spec = document.map("metadata"), document.map("spec")
    targets = _target_refs(spec, notes)
    if not targets:
        why = "a waypoint honours one with targetRefs only, and no node proxy reads tokens"
        notes.warn(spec.at("selector"), f"this RequestAuthentication has no effect: {why}")
    return RequestAuthentication(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        rules=tuple(_jwt_rule(rule, urls, notes, is_used=bool(targets)) for rule in spec.maps("jwtRules")),
        selector=_selector(spec),
        target_refs=targets,
    )


def _jwt_rule(rule: Map, urls: Mapping[str, str], notes: Notes, *, is_used: bool) -> JwtRule:
    headers = tuple((each.text("name").lower(), each.text("prefix")) for each in rule.maps("fromHeaders"))
    return JwtRule(
        issuer=rule.text("issuer"),
        jwks=_jwks(rule, urls, notes, is_used=is_used),
        audiences=rule.texts("audiences"),
        from_headers=headers,
        from_params=rule.texts("fromParams"),
        forward_original_token=bool(rule.value("forwardOriginalToken")),
    )


def _jwks(rule: Map, urls: Mapping[str, str], notes: Notes, *, is_used: bool) -> str:
    """The keys as they stand in the rule, or else at their URL. Where no waypoint needs them, they may be missing."""
    url = rule.text("jwksUri")
    text = rule.text("jwks") or urls.get(url, "")
    if not text and not url and not rule.text("issuer"):
        notes.refuse(rule.place, "the rule has neither an issuer nor keys; Istio refuses it")
    elif not text and is_used:
        where = f"nothing is at {shown(url)}: write what is read there under spec.urls of the Lab" if url else "no keys"
        notes.refuse(
            rule.at("jwksUri"), f"{where}, or write the keys themselves as `jwks`; the lab reads no other host"
        )
    elif text and not _is_jwks(text):
        notes.refuse(rule.at("jwks" if "jwks" in rule else "jwksUri"), 'the keys are no JWKS: {"keys": [{"kty": ...}]}')
    return text


def _is_jwks(text: str) -> bool:
    try:
        read = json.loads(text)
    except ValueError:
        return False
    keys = read.get("keys") if isinstance(read, dict) else None
    return isinstance(keys, list) and bool(keys) and all(isinstance(key, dict) and "kty" in key for key in keys)
