"""Policies whose values are near to what the pods of a mesh have, so that they just fit a call, or just do not.

    authorization_policies(mesh)   one, with every L4 field in it sooner or later
    peer_authentications(mesh)     one, of mesh, namespace or workload, with and without ports
    policies(mesh)                 ``mesh`` with one to three of them in place of its own

Whatever these give, Istio's API server takes: ``topology.dump`` writes it and ``topology.load`` reads it back.
HTTP fields are among them, since they change what a ztunnel is sent; faults of certificates and sequences of events
would be further parts of a ``Drawing``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TypeVar

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
from meshlab.strategies.near import CONDITION, L4_FIELDS, OPERATION, SOURCE, Near, Values, ValuesOf

P = TypeVar("P", AuthorizationPolicy, PeerAuthentication)
_CHOICES = 120
_HTTP_CONDITIONS = ("request.headers[x-user]", "connection.sni")
_KEYS = {
    "principals": "source.principal",
    "namespaces": "source.namespace",
    "ip_blocks": "source.ip",
    "ports": "destination.port",
}
"""Field of ``from`` or ``to`` -> the key of a condition about the same."""
_FAVOURITES = (*L4_FIELDS, *(field for field in L4_FIELDS if field[0] in ("to", "source.principal")))
"""Those have most that can go wrong: between two entries of ``to``, and in a name of five parts."""
_MANY = 16
"""Values of a rule that is wrong if any of them is."""
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
        return cls(choices, near, choices.one_of(_FAVOURITES))

    @classmethod
    def about(cls, choices: Choices, mesh: Mesh) -> Drawing:
        """About a call to an enrolled pod of ``mesh``."""
        return cls.of(choices, Near(mesh, draw_connection(choices, mesh)))

    def anew(self) -> Drawing:
        """About another call, or the same, and another field."""
        near = replace(self.near, connection=draw_connection(self.choices, self.near.base))
        return Drawing.of(self.choices, near)


def draw_connection(choices: Choices, mesh: Mesh) -> Connection:
    """Of a pod to another one, which is enrolled if any is."""
    enrolled = [pod for pod in mesh.pods if mesh.is_enrolled(pod)]
    destination = choices.one_of([pod for pod in enrolled if pod.ports] or enrolled or mesh.pods)
    source = choices.one_of([pod for pod in mesh.pods if pod.key != destination.key] or mesh.pods)
    port = choices.one_of([port.number for port in destination.ports] or [80])
    return connection(mesh, source, destination, port, choices.one_of(FAMILIES))


def draw_policies(drawing: Drawing) -> Mesh:
    """Policies that hide each other, in one of two; else few and sharp ones, so that one wrong value is seen."""
    make = drawing.choices.one_of((_many_policies, _sharp_policies, _sharp_policies))
    return make(drawing)


def _many_policies(drawing: Drawing) -> Mesh:
    choices = drawing.choices
    policies, modes = choices.one_of(((1, 0), (3, 0), (2, 2), (2, 2), (0, 3)))
    rules = choices.up_to(policies, lambda: draw_authorization_policy(drawing, ""))
    tls = choices.up_to(modes, lambda: draw_peer_authentication(drawing, ""))
    return _with_policies(drawing.near.base, rules, tls)


def _sharp_policies(drawing: Drawing) -> Mesh:
    """One to three policies of one rule: the first about the drawing's call, each other about a call of its own."""
    more = drawing.choices.one_of((1, 0, 2))
    rules = [_sharp_policy(drawing), *(_sharp_policy(drawing.anew()) for _ in range(more))]
    return _with_policies(drawing.near.base, rules)


def _with_policies(mesh: Mesh, rules: Sequence[AuthorizationPolicy], tls: Sequence[PeerAuthentication] = ()) -> Mesh:
    return replace(
        mesh,
        authorization_policies=tuple(_named(rules, "policy")),
        peer_authentications=tuple(_named(tls, "mode")),
    )


def _named(policies: Iterable[P], word: str) -> Iterator[P]:
    """Name them by their number in their namespace: those of two namespaces have the same names, as is usual."""
    counts = Counter[str]()
    for policy in policies:
        yield replace(policy, name=f"{word}-{counts[policy.namespace]}")
        counts[policy.namespace] += 1


def _sharp_policy(drawing: Drawing) -> AuthorizationPolicy:
    choices, destination = drawing.choices, drawing.near.destination
    labels = dict(destination.labels)
    few_values = drawing.favourite[0] == "to" or drawing.favourite[0] == "destination.port"
    make = choices.one_of((_misses_rule, _fits_rule, _joined_rule, _joined_rule if few_values else _misses_rule))
    return AuthorizationPolicy(
        name="",
        namespace=destination.namespace,
        selector=choices.one_of((None, labels, labels)) or None,
        action=choices.one_of((Action.ALLOW, Action.ALLOW, Action.DENY)),
        rules=(make(drawing),),
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
    """About the favourite field in one way or another, or about anything; rarely nothing, which matches everything."""
    if drawing.choices.rarely():
        return Rule()
    make = drawing.choices.one_of((_favourite_rule, _misses_rule, _fits_rule, _joined_rule, _any_rule, _any_rule))
    return _with_http(drawing, make(drawing))


def _favourite_rule(drawing: Drawing) -> Rule:
    """The favourite field alone, with a value or two."""
    part, name = drawing.favourite
    return _with_part(Rule(), part, {name: _some(drawing, _values_of(drawing).all)})


def _misses_rule(drawing: Drawing) -> Rule:
    """The favourite field with many values of which each just misses: one that is taken for a fit turns the rule."""
    part, name = drawing.favourite
    misses = _values_of(drawing).misses
    many = range(drawing.choices.one_of(range(4, _MANY + 1)))
    return _with_part(Rule(), part, {name: tuple(dict.fromkeys(drawing.choices.one_of(misses) for _ in many))})


def _fits_rule(drawing: Drawing) -> Rule:
    """Conditions of which each just fits: one that is taken for a miss turns the rule."""
    part, name = drawing.favourite
    key, fits = _KEYS.get(name.removeprefix("not_"), part), _values_of(drawing).fits
    if key not in CONDITION:
        return _favourite_rule(drawing)
    values = dict.fromkeys(drawing.choices.one_of(fits) for _ in range(_MANY // 4))
    return Rule(conditions=tuple(Condition(key=key, values=(value,)) for value in values))


def _joined_rule(drawing: Drawing) -> Rule:
    """Two clauses about what the favourite field is about: entries of one list are ORed, all others are ANDed.

    Both are negative two times in three, since two such clauses joined the other way are not seen in most calls.
    """
    choices, (part, name) = drawing.choices, drawing.favourite
    positive = name.removeprefix("not_")
    key = _KEYS.get(positive, part)
    negative = choices.one_of((True, True, True, False))
    field = {"values": ("values", "not_values")}.get(positive, (positive, f"not_{positive}"))[negative]
    values, when = _values_of(drawing), ("values", "not_values")[negative]
    one, other = (choices.one_of(kind) for kind in (values.fits, values.misses))
    if part not in ("from", "to") or (key in CONDITION and choices.one_of((False, False, True))):
        first = _with_part(Rule(), part, {field: (one,)})
        return _with_part(first, key, {when: (other,)})
    return _with_part(_with_part(Rule(), part, {field: (one,)}), part, {field: (other,)})


def _with_part(rule: Rule, part: str, fields: dict[str, tuple[str, ...]]) -> Rule:
    """``rule`` with one more entry in its ``from`` or ``to``, or with a condition of that key."""
    match part:
        case "from":
            return replace(rule, sources=(*rule.sources, Source(**fields)))
        case "to":
            return replace(rule, operations=(*rule.operations, Operation(**fields)))
        case key:
            return replace(rule, conditions=(*rule.conditions, Condition(key=key, **fields)))


def _values_of(drawing: Drawing) -> Values:
    """Of the favourite field."""
    part, name = drawing.favourite
    table = {"from": SOURCE, "to": OPERATION}.get(part)
    return table[name](drawing.near) if table else CONDITION[part](drawing.near)


def _some(drawing: Drawing, values: Sequence[str]) -> tuple[str, ...]:
    """One or two."""
    return drawing.choices.several(partial(drawing.choices.one_of, values))


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
    return {name: _some(drawing, values_of(drawing.near).all) for name, values_of in fields.items()}
