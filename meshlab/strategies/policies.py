"""Policies whose values are near to what the pods of a mesh have, so that they just fit a call, or just do not.

    authorization_policies(mesh)   one, with every L4 field in it sooner or later
    peer_authentications(mesh)     one, of mesh, namespace or workload, with and without ports
    policies(mesh)                 ``mesh`` with one to three of them in place of its own

Whatever these give, Istio's API server takes: ``topology.dump`` writes it and ``topology.load`` reads it back.
HTTP fields are among them, since they change what a ztunnel is sent; faults of certificates and sequences of events
would be further parts of a ``Drawing``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from random import Random

from hypothesis import strategies as st

from meshlab.model import (
    FAMILIES,
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    Mesh,
    MtlsMode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
)
from meshlab.oracle import connection
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.near import CONDITION, L4_FIELDS, OPERATION, SOURCE, Near, ValuesOf

_CHOICES = 120
_HTTP_CONDITIONS = ("request.headers[x-user]", "connection.sni")
_SERVICE = {"group": "", "kind": "Service", "name": "s"}


def authorization_policies(mesh: Mesh, name: str = "generated") -> st.SearchStrategy[AuthorizationPolicy]:
    """An AuthorizationPolicy near to some call between the pods of ``mesh``."""
    return drawn(lambda choices: draw_authorization_policy(Drawing.about(choices, mesh), name), _CHOICES // 2)


def peer_authentications(mesh: Mesh, name: str = "generated") -> st.SearchStrategy[PeerAuthentication]:
    """A PeerAuthentication near to some call between the pods of ``mesh``."""
    return drawn(lambda choices: draw_peer_authentication(Drawing.about(choices, mesh), name), _CHOICES // 4)


def policies(mesh: Mesh) -> st.SearchStrategy[Mesh]:
    """``mesh`` with one to three generated policies of one kind or of both, and none of its own."""
    return drawn(lambda choices: draw_policies(Drawing.about(choices, mesh)), _CHOICES)


def policy_sets(mesh: Mesh, count: int, seed: int) -> list[Mesh]:
    """``count`` times what ``policies`` gives, without Hypothesis around it; the same for the same ``seed``."""
    random = Random(seed)  # noqa: S311
    return [draw_policies(Drawing.about(Choices(random.randbytes(2 * _CHOICES)), mesh)) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What all parts of one example share."""

    choices: Choices
    near: Near
    favourite: tuple[str, str]
    """A field of ``L4_FIELDS`` that most rules of the example are about, so that none is rare."""

    @classmethod
    def of(cls, choices: Choices, near: Near) -> Drawing:
        return cls(choices, near, choices.one_of(L4_FIELDS))

    @classmethod
    def about(cls, choices: Choices, mesh: Mesh) -> Drawing:
        """About a call to an enrolled pod of ``mesh``."""
        return cls.of(choices, Near(mesh, draw_connection(choices, mesh)))


def draw_connection(choices: Choices, mesh: Mesh) -> Connection:
    """Of a pod to another one, which is enrolled if any is."""
    enrolled = [pod for pod in mesh.pods if mesh.is_enrolled(pod)]
    destination = choices.one_of([pod for pod in enrolled if pod.ports] or enrolled or mesh.pods)
    source = choices.one_of([pod for pod in mesh.pods if pod.key != destination.key] or mesh.pods)
    port = choices.one_of([port.number for port in destination.ports] or [80])
    return connection(mesh, source, destination, port, choices.one_of(FAMILIES))


def draw_policies(drawing: Drawing) -> Mesh:
    choices = drawing.choices
    policies, modes = choices.one_of(((1, 0), (3, 0), (2, 2), (2, 2), (0, 3)))
    rules = choices.up_to(policies, lambda: draw_authorization_policy(drawing, ""))
    tls = choices.up_to(modes, lambda: draw_peer_authentication(drawing, ""))
    return replace(
        drawing.near.base,
        authorization_policies=tuple(replace(policy, name=f"policy-{place}") for place, policy in enumerate(rules)),
        peer_authentications=tuple(replace(policy, name=f"mode-{place}") for place, policy in enumerate(tls)),
    )


def draw_authorization_policy(drawing: Drawing, name: str) -> AuthorizationPolicy:
    choices, near = drawing.choices, drawing.near
    action = choices.one_of((Action.ALLOW, Action.ALLOW, Action.DENY))
    waypoint = choices.rarely()
    selector = choices.one_of(near.selectors())
    none = choices.rarely() and (near.anything or action is Action.ALLOW)
    return AuthorizationPolicy(
        name=name,
        namespace=choices.one_of(near.policy_namespaces()),
        selector=None if waypoint else selector,
        action=action,
        rules=() if none else choices.several(lambda: _rule(drawing)),
        target_refs=(_SERVICE,) if waypoint else (),
        dry_run=choices.rarely(),
    )


def draw_peer_authentication(drawing: Drawing, name: str) -> PeerAuthentication:
    choices, near = drawing.choices, drawing.near
    modes, selector = tuple(MtlsMode), choices.one_of(near.selectors())
    ports = choices.several(lambda: choices.one_of((near.connection.port, near.connection.port, 80, 9090)), least=0)
    with_ports = near.anything or bool(selector)
    return PeerAuthentication(
        name=name,
        namespace=choices.one_of(near.policy_namespaces()),
        selector=selector,
        mode=choices.one_of((*modes, MtlsMode.STRICT, MtlsMode.STRICT)),
        port_level_mtls={port: choices.one_of(modes) for port in ports} if with_ports else {},
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
    key = drawing.choices.one_of(_HTTP_CONDITIONS)
    return replace(rule, conditions=(*rule.conditions, Condition(key=key, values=("anything",))))


def _condition(drawing: Drawing) -> Condition:
    key = drawing.choices.one_of(tuple(CONDITION))
    return Condition(key=key, **_fields(drawing, {"values": CONDITION[key], "not_values": CONDITION[key]}))


def _fields(drawing: Drawing, fields: ValuesOf) -> dict[str, tuple[str, ...]]:
    """Values for one or two of ``fields``; rarely for none, where Istio takes that."""
    choices = drawing.choices
    none = choices.rarely() and drawing.near.anything
    names = () if none else choices.several(lambda: choices.one_of(tuple(fields)))
    if not drawing.near.anything:
        names = _together(names)
    return _values(drawing, {name: fields[name] for name in names})


def _together(names: tuple[str, ...]) -> tuple[str, ...]:
    """Without service accounts, where there are principals or namespaces: Istio takes no source with both."""
    if not any("principals" in name or "namespaces" in name for name in names):
        return names
    return tuple(name for name in names if "service_accounts" not in name)


def _values(drawing: Drawing, fields: ValuesOf) -> dict[str, tuple[str, ...]]:
    result = {}
    for name, values_of in fields.items():
        values = values_of(drawing.near)
        result[name] = drawing.choices.several(partial(drawing.choices.one_of, values))
    return result
