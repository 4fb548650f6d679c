"""AuthorizationPolicy, PeerAuthentication and RequestAuthentication, field by field as Istio's API names them.

These are the *manifests*. ``oracle`` judges them as they stand here; ``translate`` turns them into what a ztunnel is
sent. L7 fields are kept, because they change what is sent at L4 (an ALLOW rule with one is dropped).

Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/,
https://istio.io/latest/docs/reference/config/security/jwt/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Strings = tuple[str, ...]


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


class MtlsMode(StrEnum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry of ``rules[].from[].source``: all non-empty fields must match (AND)."""

    principals: Strings = ()
    not_principals: Strings = ()
    namespaces: Strings = ()
    not_namespaces: Strings = ()
    service_accounts: Strings = ()
    """``namespace/name``, or ``name`` in the policy's own namespace."""
    not_service_accounts: Strings = ()
    ip_blocks: Strings = ()
    """CIDRs or single addresses of either family, valid (the loader refuses others)."""
    not_ip_blocks: Strings = ()
    request_principals: Strings = ()
    """L7."""
    not_request_principals: Strings = ()
    remote_ip_blocks: Strings = ()
    """L7: from X-Forwarded-For."""
    not_remote_ip_blocks: Strings = ()
    trust_domains: Strings = ()
    """No ztunnel can be sent it, so in ambient it counts as L7."""
    not_trust_domains: Strings = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry of ``rules[].to[].operation``."""

    ports: Strings = ()
    """Port numbers as strings, as the API has them."""
    not_ports: Strings = ()
    hosts: Strings = ()
    """L7, like all below."""
    not_hosts: Strings = ()
    methods: Strings = ()
    not_methods: Strings = ()
    paths: Strings = ()
    not_paths: Strings = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One entry of ``rules[].when``."""

    key: str
    """L4 keys: source.ip, source.namespace, source.principal, destination.ip, destination.port. No ztunnel can be sent
    another, also not source.serviceAccount and source.trustDomain: in ambient they count as L7."""
    values: Strings = ()
    not_values: Strings = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``from`` AND ``to`` AND ``when``; the entries of each list of sources or operations are ORed.

    An empty list matches everything; an entry without any field (``source: {}``) is kept as it stands.
    """

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy:
    name: str
    namespace: str
    selector: Mapping[str, str] | None = None
    """``None``, and the empty mapping alike: every workload of the namespace (of the mesh, in the root namespace)."""
    action: Action = Action.ALLOW
    rules: tuple[Rule, ...] = ()
    """Empty: never matches (an ALLOW without rules denies all)."""
    target_refs: tuple[Mapping[str, str], ...] = ()
    """Not empty: for waypoints only; a ztunnel is never sent this policy."""
    dry_run: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    name: str
    namespace: str
    selector: Mapping[str, str] | None = None
    mode: MtlsMode = MtlsMode.UNSET
    port_level_mtls: Mapping[int, MtlsMode] = field(default_factory=dict)
    """Only with a selector does Istio honour these."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRule:
    """Whose tokens are good, and where a request has one."""

    issuer: str
    """Empty: any."""
    jwks: str
    """The issuer's public keys: a JWKS (RFC 7517) as JSON text, whether the manifest has it or a URL of it."""
    audiences: Strings = ()
    """Empty: any."""
    from_headers: tuple[tuple[str, str], ...] = ()
    """Names in lower case, each with the text that stands before the token."""
    from_params: Strings = ()
    """Of the query. Without any place, Istio takes ``Authorization: Bearer`` and the parameter ``access_token``."""
    forward_original_token: bool = False
    """Whether the server gets the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication:
    """It refuses bad tokens, and makes good ones known to AuthorizationPolicies. It requires none."""

    name: str
    namespace: str
    rules: tuple[JwtRule, ...] = ()
    selector: Mapping[str, str] | None = None
    """No waypoint honours it."""
    target_refs: tuple[Mapping[str, str], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"
