"""What a set of policies asks of a call: whether each value matches, and whether a nearly equal one would. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshlab.fuzz.confusable import confusable
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    Mesh,
    Operation,
    Pod,
    Rule,
    Source,
    has_labels,
)
from meshlab.oracle.matching import match_policy


@dataclass(frozen=True, slots=True)
class Question:
    """One question that a policy asks of a call."""

    applies: Callable[[Pod], bool]
    """Whether it is asked of calls to this pod."""
    hangs_on: tuple[str, ...]
    """The attributes of a connection that decide the answer."""
    reply: Callable[[Connection], bool]


def questions(mesh: Mesh) -> Iterator[Question]:
    """Every question that the policies of ``mesh`` ask."""
    for policy in mesh.authorization_policies:
        applies = _scope(mesh, policy.namespace, policy.selector)
        yield Question(applies, _EVERYTHING, _match(policy))
        for rule in policy.rules:
            for single, others in _singles(policy.namespace, rule):
                yield Question(applies, single.hangs_on, single.matches)
                for other in others:
                    yield Question(applies, single.hangs_on, _differ(single, other))
    for authentication in mesh.peer_authentications:
        applies = _scope(mesh, authentication.namespace, authentication.selector)
        for port in (0, *authentication.port_level_mtls):
            yield Question(applies, _ENDS, _unvouched(port))
    yield Question(lambda pod: True, _ENDS, _unvouched(0))


def _scope(mesh: Mesh, namespace: str, selector: object) -> Callable[[Pod], bool]:
    """Also the pods next to it: that a policy does not apply to them is a thing to see."""
    labels = dict(selector) if isinstance(selector, dict) else {}

    def applies(pod: Pod) -> bool:
        return pod.namespace == namespace or namespace == mesh.root_namespace or has_labels(pod.labels, labels)

    return applies


def _match(policy: AuthorizationPolicy) -> Callable[[Connection], bool]:
    return lambda asked: match_policy(policy, asked) is not None


def _differ(one: _Single, other: _Single) -> Callable[[Connection], bool]:
    """Whether a proxy that takes one value for the other, nearly equal one shows it."""
    return lambda asked: one.matches(asked) is not other.matches(asked)


def _unvouched(port: int) -> Callable[[Connection], bool]:
    """Whether nobody vouches for the caller, on that port (0: on any)."""
    return lambda asked: asked.source is None and (not port or asked.port == port)


class _Single:
    """One value, as if its policy named nothing else. It hangs on one attribute of the connection only."""

    def __init__(self, namespace: str, rule: Rule, attribute: str) -> None:
        self.hangs_on = (attribute,)
        self._policy = AuthorizationPolicy(name="", namespace=namespace, action=Action.DENY, rules=(rule,))
        self._attribute = attribute
        self._known: dict[object, bool] = {}

    def matches(self, asked: Connection) -> bool:
        """Whether the value matches, worked out once for each value of the attribute."""
        value = getattr(asked, self._attribute)
        known = self._known.get(value)
        if known is None:
            known = self._known[value] = match_policy(self._policy, asked) is not None
        return known


def _singles(namespace: str, rule: Rule) -> Iterator[tuple[_Single, list[_Single]]]:
    """Each value that ``rule`` names, and those that are nearly equal to it."""
    for source in rule.sources:
        for name, value in _values(source, _SOURCE):
            yield _of_source(namespace, name, value), [_of_source(namespace, name, one) for one in confusable(value)]
    for operation in rule.operations:
        for _, value in _values(operation, _OPERATION):
            yield _of_port(namespace, value), [_of_port(namespace, one) for one in confusable(value)]
    for condition in rule.conditions:
        key = condition.key
        for value in (*condition.values, *condition.not_values):
            others = confusable(value) if key in _ATTRIBUTES else ()
            yield _of_condition(namespace, key, value), [_of_condition(namespace, key, one) for one in others]


_EVERYTHING = ("source", "source_ip", "destination", "destination_ip", "port")
_ENDS = ("source", "port")
_ATTRIBUTES = {
    "source.ip": "source_ip",
    "source.namespace": "source",
    "source.principal": "source",
    "destination.ip": "destination_ip",
    "destination.port": "port",
}
_SOURCE = ("principals", "namespaces", "service_accounts", "ip_blocks")
_OPERATION = ("ports",)


def _values(entry: Source | Operation, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        for value in (*getattr(entry, name), *getattr(entry, f"not_{name}")):
            yield name, value


@lru_cache(maxsize=4096)
def _of_source(namespace: str, name: str, value: str) -> _Single:
    rule = Rule(sources=(Source(**{name: (value,)}),))
    return _Single(namespace, rule, "source_ip" if name == "ip_blocks" else "source")


@lru_cache(maxsize=4096)
def _of_port(namespace: str, value: str) -> _Single:
    return _Single(namespace, Rule(operations=(Operation(ports=(value,)),)), "port")


@lru_cache(maxsize=4096)
def _of_condition(namespace: str, key: str, value: str) -> _Single:
    rule = Rule(conditions=(Condition(key=key, values=(value,)),))
    return _Single(namespace, rule, _ATTRIBUTES.get(key, "port"))
