"""What a set of policies asks of a call: whether each value matches, and whether a nearly equal one would. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

Reply = Callable[[], bool]
Ask = Callable[[Connection], tuple[object, Reply]]


def questions(mesh: Mesh) -> Iterator[tuple[Callable[[Pod], bool], Ask]]:
    """Of whom, and what: the second half gives what the answer hangs on, and how to find it."""
    for policy in mesh.authorization_policies:
        applies = _scope(mesh, policy.namespace, policy.selector)
        yield applies, _whether_it_matches(policy)
        for rule in policy.rules:
            for single, others in _singles(rule):
                yield applies, _single(policy.namespace, single)
                for other in others:
                    yield applies, _confused(policy.namespace, single, other)
    for authentication in mesh.peer_authentications:
        applies = _scope(mesh, authentication.namespace, authentication.selector)
        for port in (0, *authentication.port_level_mtls):
            yield applies, _vouched(port)
    yield (lambda pod: True), _vouched(0)


def _scope(mesh: Mesh, namespace: str, selector: object) -> Callable[[Pod], bool]:
    """Also the pods next to it: that a policy does not apply to them is a thing to see."""
    labels = dict(selector) if isinstance(selector, dict) else {}

    def applies(pod: Pod) -> bool:
        return pod.namespace == namespace or namespace == mesh.root_namespace or has_labels(pod.labels, labels)

    return applies


def _whether_it_matches(policy: AuthorizationPolicy) -> Ask:
    def ask(asked: Connection) -> tuple[object, Reply]:
        key = (asked.source, asked.source_ip, asked.destination, asked.destination_ip, asked.port)
        return key, lambda: match_policy(policy, asked) is not None

    return ask


def _vouched(port: int) -> Ask:
    def ask(asked: Connection) -> tuple[object, Reply]:
        key = (asked.source is None, asked.port == port)
        return key, lambda: asked.source is None and (not port or asked.port == port)

    return ask


def _single(namespace: str, rule: Rule) -> Ask:
    """One value alone. It hangs on one end of the connection only, and is looked up by that."""
    matches, hangs_on = _matches(namespace, rule), _hangs_on(rule)

    def ask(asked: Connection) -> tuple[object, Reply]:
        return getattr(asked, hangs_on), lambda: matches(asked)

    return ask


def _confused(namespace: str, rule: Rule, other: Rule) -> Ask:
    """Whether a proxy that takes one value for another, nearly equal one shows it."""
    one, another, hangs_on = _matches(namespace, rule), _matches(namespace, other), _hangs_on(rule)

    def ask(asked: Connection) -> tuple[object, Reply]:
        return getattr(asked, hangs_on), lambda: one(asked) is not another(asked)

    return ask


def _matches(namespace: str, rule: Rule) -> Callable[[Connection], bool]:
    policy = AuthorizationPolicy(name="", namespace=namespace, action=Action.DENY, rules=(rule,))
    return lambda asked: match_policy(policy, asked) is not None


def _hangs_on(rule: Rule) -> str:
    """The attribute of a connection that decides a rule of one value."""
    if rule.operations:
        return "port"
    if rule.sources:
        return "source_ip" if rule.sources[0].ip_blocks else "source"
    return _ATTRIBUTES.get(rule.conditions[0].key, "port")


def _singles(rule: Rule) -> Iterator[tuple[Rule, list[Rule]]]:
    """A rule for each value that ``rule`` names, as if it named nothing else, and those of nearly equal values."""
    for source in rule.sources:
        for name, value in _values(source, _SOURCE):
            yield _of_source(name, value), [_of_source(name, other) for other in confusable(value)]
    for operation in rule.operations:
        for name, value in _values(operation, _OPERATION):
            yield _of_operation(name, value), [_of_operation(name, other) for other in confusable(value)]
    for condition in rule.conditions:
        for value in (*condition.values, *condition.not_values):
            others = confusable(value) if condition.key in _ATTRIBUTES else ()
            yield _of_condition(condition.key, value), [_of_condition(condition.key, other) for other in others]


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
def _of_source(name: str, value: str) -> Rule:
    return Rule(sources=(Source(**{name: (value,)}),))


@lru_cache(maxsize=4096)
def _of_operation(name: str, value: str) -> Rule:
    return Rule(operations=(Operation(**{name: (value,)}),))


@lru_cache(maxsize=4096)
def _of_condition(key: str, value: str) -> Rule:
    return Rule(conditions=(Condition(key=key, values=(value,)),))
