"""L4 authorization as a ztunnel does it, over the policies it was sent. Pure: one connection in, one decision out.

    policy  = OR of its rules       none: never matches (an ALLOW without rules denies all)
    rule    = AND of its clauses    none: matches everything
    clause  = OR of its matches     none: true
    match   = AND of its kinds      no field at all: false
    kind    = any of the positive list (if there is one), and none of the negative list

It judges the wire form only, at the destination's proxy; manifests are ``translate``'s, and what *should* come out is
judged elsewhere, from other code. A policy with a value that cannot be compared is refused whole (a NACK): to leave
the value out would make a DENY deny less.

Source: https://github.com/istio/ztunnel/blob/master/src/rbac.rs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from meshlab.errors import ProtocolError
from meshlab.model import Connection, Decision, Verdict

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from meshlab.protocols.stubs import authorization_pb2

T = TypeVar("T")
V = TypeVar("V")
Network = IPv4Network | IPv6Network
ServiceAccount = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """An ``istio.security.StringMatch``."""

    kind: Literal["exact", "prefix", "suffix", "presence"]
    text: str = ""

    def matches(self, text: str) -> bool:
        match self.kind:
            case "exact":
                return text == self.text
            case "prefix":
                return text.startswith(self.text)
            case "suffix":
                return text.endswith(self.text)
            case "presence":
                return text != ""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """The values of one kind in one match."""

    positive: tuple[T, ...] = ()
    negative: tuple[T, ...] = ()

    def holds(self, is_true: Callable[[T], bool]) -> bool:
        return (not self.positive or any(map(is_true, self.positive))) and not any(map(is_true, self.negative))


@dataclass(frozen=True, slots=True)
class Match:
    principals: Kind[Pattern] = Kind()
    """Patterns over the identity without ``spiffe://``."""
    namespaces: Kind[Pattern] = Kind()
    service_accounts: Kind[ServiceAccount] = Kind()
    source_ips: Kind[Network] = Kind()
    """Of the TCP peer: behind a waypoint, that is the waypoint."""
    destination_ips: Kind[Network] = Kind()
    destination_ports: Kind[int] = Kind()

    def matches(self, connection: Connection) -> bool:
        return (
            self != _EMPTY
            and self._matches_peer(connection)
            and self.source_ips.holds(lambda network: connection.source_ip in network)
            and self.destination_ips.holds(lambda network: connection.destination_ip in network)
            and self.destination_ports.holds(lambda port: connection.port == port)
        )

    def _matches_peer(self, connection: Connection) -> bool:
        """A peer without an identity matches no principal and no service account; its namespace is the empty text."""
        peer = connection.source
        namespace = peer.namespace if peer else ""
        account = (peer.namespace, peer.service_account) if peer else None
        return (
            self.principals.holds(lambda pattern: peer is not None and pattern.matches(peer.principal))
            and self.namespaces.holds(lambda pattern: pattern.matches(namespace))
            and self.service_accounts.holds(lambda wanted: wanted == account)
        )


_EMPTY = Match()
Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """An ``istio.security.Authorization`` that was looked through once, to be evaluated often."""

    name: str
    namespace: str
    scope: Literal["GLOBAL", "NAMESPACE", "WORKLOAD_SELECTOR"]
    action: Literal["ALLOW", "DENY"]
    rules: tuple[Rule, ...]
    dry_run: bool = False
    """It decides nothing."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def matches(self, connection: Connection) -> bool:
        return any(_rule_matches(rule, connection) for rule in self.rules)


class Judged(Protocol):
    """What of an ``istio.workload.Workload`` says which policies apply."""

    @property
    def namespace(self) -> str: ...

    @property
    def authorization_policies(self) -> Sequence[str]: ...


def evaluate(policies: Mapping[str, Policy], workload: Judged, connection: Connection) -> Decision:
    """Judge a connection to ``workload``, with the reason in ztunnel's words.

    Args:
        policies: every policy there is, under its key, ``namespace/name``.
        workload: the destination's ``istio.workload.Workload``.
        connection: what the proxy knows of it.
    """
    candidates = [policy for policy in _candidates(policies, workload) if not policy.dry_run]
    for policy in candidates:
        if policy.action == "DENY" and policy.matches(connection):
            return Decision(Verdict.DENY, f"explicitly denied by: {policy.key}")
    allows = [policy for policy in candidates if policy.action == "ALLOW"]
    for policy in allows:
        if policy.matches(connection):
            return Decision(Verdict.ALLOW, f"allowed by: {policy.key}")
    if allows:
        return Decision(Verdict.DENY, "allow policies exist, but none allowed")
    return Decision(Verdict.ALLOW, "no allow policies" if candidates else "no policies")


def missing_policies(policies: Mapping[str, Policy], workload: Judged) -> list[str]:
    """Policies that ``workload`` lists and that are not there. ``evaluate`` skips them, which may allow more."""
    return [key for key in workload.authorization_policies if key not in policies]


def compile_policy(authorization: authorization_pb2.Authorization) -> Policy:
    """Look through an ``istio.security.Authorization`` once.

    Raises:
        ProtocolError: it has a value that cannot be compared with anything.
    """
    try:
        return Policy(
            name=authorization.name,
            namespace=authorization.namespace,
            scope=_enum_name(authorization, "scope"),
            action=_enum_name(authorization, "action"),
            dry_run=authorization.dry_run,
            rules=tuple(_rule(group) for group in authorization.groups),
        )
    except ValueError as error:
        raise ProtocolError(f"policy {authorization.namespace}/{authorization.name}: {error}") from error


def _candidates(policies: Mapping[str, Policy], workload: Judged) -> Iterator[Policy]:
    """Policies of the workload's namespace, then of the whole mesh, then those that its own list names."""
    for policy in policies.values():
        if policy.scope == "NAMESPACE" and policy.namespace == workload.namespace:
            yield policy
    for policy in policies.values():
        if policy.scope == "GLOBAL":
            yield policy
    for key in workload.authorization_policies:
        if key in policies:
            yield policies[key]


def _rule_matches(rule: Rule, connection: Connection) -> bool:
    return all(_clause_matches(clause, connection) for clause in rule)


def _clause_matches(clause: Clause, connection: Connection) -> bool:
    return not clause or any(match.matches(connection) for match in clause)


def _rule(group: authorization_pb2.Group) -> Rule:
    return tuple(tuple(_match(match) for match in clause.matches) for clause in group.rules)


def _match(match: authorization_pb2.Match) -> Match:
    return Match(
        principals=_kind(_pattern, match.principals, match.not_principals),
        namespaces=_kind(_pattern, match.namespaces, match.not_namespaces),
        service_accounts=_kind(_service_account, match.service_accounts, match.not_service_accounts),
        source_ips=_kind(_network, match.source_ips, match.not_source_ips),
        destination_ips=_kind(_network, match.destination_ips, match.not_destination_ips),
        destination_ports=_kind(_port, match.destination_ports, match.not_destination_ports),
    )


def _kind(read: Callable[[V], T], positive: Iterable[V], negative: Iterable[V]) -> Kind[T]:
    return Kind(tuple(map(read, positive)), tuple(map(read, negative)))


def _pattern(match: authorization_pb2.StringMatch) -> Pattern:
    kind = match.WhichOneof("match_type")
    if kind is None:
        raise ValueError("a string match of no known type")
    return Pattern(kind, "" if kind == "presence" else getattr(match, kind))


def _service_account(match: authorization_pb2.ServiceAccountMatch) -> ServiceAccount:
    return match.namespace, match.serviceAccount


def _network(address: authorization_pb2.Address) -> Network:
    return ip_network((ip_address(address.address), address.length), strict=False)


def _port(number: int) -> int:
    if number > 65535:
        raise ValueError(f"{number} is no port")
    return number


def _enum_name(message: Message, field: str) -> Any:
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None, f"{field} is an enum"
    number = getattr(message, field)
    if number not in kind.values_by_number:
        raise ValueError(f"{number} is no {field}")
    return kind.values_by_number[number].name
