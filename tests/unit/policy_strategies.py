"""Policies and connections that are adversarially close: what a rule names is drawn near what the connection has.

    cases(base)                -> a connection to a pod of ``base``, and policies that just fit it, or just do not
    policy_sets(base, n, seed) -> meshes of such cases, without Hypothesis around them, for tests that live in a lab

A case is read off one drawn string of bytes, two a choice: of 2,000, all differ. Nested strategies were tried first;
Hypothesis varies those by copying parts of an example into the next, and 2,000 had 830 different sets of policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TypeVar

from hypothesis import strategies as st
from near_values import CONDITION, L4_FIELDS, OPERATION, SOURCE, Near, ValuesOf, near_identities

from meshlab.model import (
    FAMILIES,
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    ContainerPort,
    Mesh,
    MtlsMode,
    Namespace,
    Operation,
    PeerAuthentication,
    Pod,
    Rule,
    Source,
)
from meshlab.model import addresses as places

T = TypeVar("T")
HTTP_CONDITIONS = ("request.headers[x-user]", "connection.sni")
_BYTES = 640


@dataclass(frozen=True, slots=True)
class Case:
    """One question to both evaluators, and with ``neighbours`` some twenty."""

    mesh: Mesh
    connection: Connection

    def neighbours(self) -> list[Connection]:
        """Connections that differ in one thing: who calls, the family, the port, the destination."""
        asked, pod = self.connection, self.mesh.pod(self.connection.destination)
        pods = self.mesh.pods
        identities = [pod.identity(self.mesh.trust_domain) for pod in pods[:3]]
        callers = [None, *identities, *near_identities(asked.source or identities[0])]
        source_ips = [address for caller in pods[:2] for address in (caller.ipv4, caller.ipv6)]
        enrolled = [other for other in pods if other is not pod and self.mesh.is_enrolled(other)]
        return [
            *(replace(asked, source=caller) for caller in callers),
            *(replace(asked, source_ip=ip) for ip in source_ips if ip.version == asked.source_ip.version),
            *(replace(asked, port=port.number) for port in pod.ports),
            *(
                replace(asked, destination=other.key, destination_ip=other.address(asked.destination_ip.version))
                for other in enrolled
            ),
        ]


def example_mesh() -> Mesh:
    """Enrolled pods whose namespaces, accounts and labels are prefixes and suffixes of each other, and one outside."""
    namespaces = ("shop", "shop-evil", "xshop", "istio-system")
    workloads = (("a", "web"), ("ab", "web-admin"), ("a", "default"))
    kinds = [(namespace, app, account) for namespace in namespaces for app, account in workloads]
    pods = [_pod(place, *kind) for place, kind in enumerate(kinds)]
    outside = replace(
        _pod(len(kinds), "shop", "ab", "web"), name="outside", annotations={"sidecar.istio.io/status": "{}"}
    )
    ambient = {"istio.io/dataplane-mode": "ambient"}
    return Mesh(namespaces=tuple(Namespace(name=name, labels=ambient) for name in namespaces), pods=(*pods, outside))


def _pod(place: int, namespace: str, app: str, account: str) -> Pod:
    node = place % 2
    return Pod(
        name=f"{app}-{account}",
        namespace=namespace,
        node=f"node-{node + 1}",
        ipv4=places.pod4(node, place),
        ipv6=places.pod6(node, place),
        labels={"app": app, "tier": account},
        service_account=account,
        ports=(ContainerPort(number=8080), ContainerPort(number=9090)),
    )


def cases(base: Mesh) -> st.SearchStrategy[Case]:
    """A connection to an enrolled pod of ``base``, and up to three policies of one kind or of both."""
    return st.binary(min_size=_BYTES, max_size=_BYTES).map(lambda data: _case(Choices(data), base))


def policy_sets(base: Mesh, count: int, seed: int) -> list[Mesh]:
    """``count`` times ``base`` with other policies, the same ones for the same ``seed``."""
    random = Random(seed)  # noqa: S311
    return [_case(Choices(random.randbytes(_BYTES)), base).mesh for _ in range(count)]


class Choices:
    """Choices read off bytes. Zeros, to which Hypothesis shrinks and which follow the end, take the first of each."""

    def __init__(self, data: bytes) -> None:
        self._numbers = iter([data[at] << 8 | data[at + 1] for at in range(0, len(data) - 1, 2)])

    def one_of(self, values: Sequence[T]) -> T:
        return values[next(self._numbers, 0) % len(values)]

    def several(self, make: Callable[[], T], least: int = 1) -> tuple[T, ...]:
        """One, two, or ``least``."""
        return tuple(make() for _ in range(self.one_of((1, least, 2))))

    def up_to(self, most: int, make: Callable[[], T]) -> list[T]:
        """At least one, unless ``most`` is 0."""
        return [make() for _ in range(self.one_of(range(1, most + 1)))] if most else []

    def rarely(self) -> bool:
        return self.one_of(range(16)) == 15


@dataclass(frozen=True, slots=True)
class Drawing:
    """What all parts of one case share."""

    choices: Choices
    near: Near
    favourite: tuple[str, str]
    """A field of ``L4_FIELDS`` that most rules of the case are about, so that none is rare."""


def _case(choices: Choices, base: Mesh) -> Case:
    connection = _connection(choices, base)
    drawing = Drawing(choices, Near(base, connection), favourite=choices.one_of(L4_FIELDS))
    policies, modes = choices.one_of(((1, 0), (3, 0), (2, 2), (2, 2), (0, 3)))
    mesh = replace(
        base,
        authorization_policies=tuple(
            replace(policy, name=f"policy-{n}")
            for n, policy in enumerate(choices.up_to(policies, lambda: _authorization_policy(drawing)))
        ),
        peer_authentications=tuple(
            replace(policy, name=f"mode-{n}")
            for n, policy in enumerate(choices.up_to(modes, lambda: _peer_authentication(drawing)))
        ),
    )
    return Case(mesh, connection)


def _connection(choices: Choices, base: Mesh) -> Connection:
    """From a pod of ``base``, or from somebody who is nearly one, or without identity."""
    source = choices.one_of(base.pods)
    destination = choices.one_of([pod for pod in base.pods if base.is_enrolled(pod)])
    family = choices.one_of(FAMILIES)
    identity = source.identity(base.trust_domain)
    return Connection(
        source=choices.one_of([*[identity] * 5, *[None] * 5, *near_identities(identity)]),
        source_ip=source.address(family),
        destination=destination.key,
        destination_ip=destination.address(family),
        port=choices.one_of([port.number for port in destination.ports] or [80]),
    )


def _authorization_policy(drawing: Drawing) -> AuthorizationPolicy:
    choices, near = drawing.choices, drawing.near
    fewest = 0 if choices.rarely() else 1
    return AuthorizationPolicy(
        name="",
        namespace=choices.one_of(near.policy_namespaces()),
        selector=choices.one_of(near.selectors()),
        action=choices.one_of((Action.ALLOW, Action.ALLOW, Action.DENY)),
        rules=choices.several(lambda: _rule(drawing), fewest),
        target_refs=({"kind": "Service", "name": "s"},) if choices.rarely() else (),
        dry_run=choices.rarely(),
    )


def _peer_authentication(drawing: Drawing) -> PeerAuthentication:
    choices, near = drawing.choices, drawing.near
    modes = tuple(MtlsMode)
    ports = choices.several(lambda: choices.one_of((near.connection.port, near.connection.port, 80, 9090)), least=0)
    return PeerAuthentication(
        name="",
        namespace=choices.one_of(near.policy_namespaces()),
        selector=choices.one_of(near.selectors()),
        mode=choices.one_of((*modes, MtlsMode.STRICT, MtlsMode.STRICT)),
        port_level_mtls={port: choices.one_of(modes) for port in ports},
    )


def _rule(drawing: Drawing) -> Rule:
    """The favourite field alone, or one or two of from, to and when; rarely nothing, which matches everything."""
    if drawing.choices.rarely():
        return Rule()
    make = drawing.choices.one_of((_favourite_rule, _favourite_rule, _any_rule))
    return _with_http(drawing, make(drawing))


def _favourite_rule(drawing: Drawing) -> Rule:
    part, name = drawing.favourite
    match part:
        case "from":
            return Rule(sources=(Source(**_values(drawing, {name: SOURCE[name]})),))
        case "to":
            return Rule(operations=(Operation(**_values(drawing, {name: OPERATION[name]})),))
        case key:
            return Rule(conditions=(Condition(key=key, **_values(drawing, {name: CONDITION[key]})),))


def _any_rule(drawing: Drawing) -> Rule:
    choices = drawing.choices
    parts = choices.one_of((("from",), ("to",), ("when",), ("from", "to"), ("from", "when"), ("to", "when")))
    return Rule(
        sources=choices.several(lambda: Source(**_fields(drawing, SOURCE))) if "from" in parts else (),
        operations=choices.several(lambda: Operation(**_fields(drawing, OPERATION))) if "to" in parts else (),
        conditions=choices.several(lambda: _condition(drawing)) if "when" in parts else (),
    )


def _with_http(drawing: Drawing, rule: Rule) -> Rule:
    """In one of six, its first entry also has a field, or else it has a condition, that only HTTP could meet."""
    if drawing.choices.one_of(range(6)) < 5:
        return rule
    if rule.sources:
        return replace(rule, sources=(replace(rule.sources[0], request_principals=("*",)), *rule.sources[1:]))
    if rule.operations:
        return replace(rule, operations=(replace(rule.operations[0], methods=("GET",)), *rule.operations[1:]))
    key = drawing.choices.one_of(HTTP_CONDITIONS)
    return replace(rule, conditions=(*rule.conditions, Condition(key=key, values=("anything",))))


def _condition(drawing: Drawing) -> Condition:
    key = drawing.choices.one_of(tuple(CONDITION))
    return Condition(key=key, **_fields(drawing, {"values": CONDITION[key], "not_values": CONDITION[key]}))


def _fields(drawing: Drawing, fields: ValuesOf) -> dict[str, tuple[str, ...]]:
    """Values for one or two of ``fields``; rarely for none."""
    choices = drawing.choices
    names = () if choices.rarely() else choices.several(lambda: choices.one_of(tuple(fields)))
    return _values(drawing, {name: fields[name] for name in names})


def _values(drawing: Drawing, fields: ValuesOf) -> dict[str, tuple[str, ...]]:
    result = {}
    for name, values_of in fields.items():
        values = values_of(drawing.near)
        result[name] = drawing.choices.several(partial(drawing.choices.one_of, values))
    return result
