"""One example of a campaign: one or two sets of policies and the calls that tell each from its neighbours. Pure.

Two sets show what one cannot: that after a change no call is judged as before. The second is often the first with one
thing changed, and calls that the change turns are among its calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hypothesis import strategies as st

from meshlab.fuzz.choose import MOST, Candidate, Chosen, choose
from meshlab.fuzz.requests import oddities
from meshlab.model import Action, AuthorizationPolicy, CallShape, Mesh
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.strategies.routes import draw_routing
from meshlab.strategies.shapes import draw_shape

_CHOICES = 220
"""Of 300 examples, one took 142, and half of them 66."""
_CHOICES_IF_READ = 900
"""Where a waypoint reads requests, whose oddities are drawn for each port."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Policies, and the calls that are made while they are in effect."""

    mesh: Mesh
    calls: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Example:
    stages: tuple[Stage, ...]

    def __repr__(self) -> str:
        """Short: whole it has 50 kB."""
        return f"<example of {' and '.join(f'{len(stage.calls)} calls' for stage in self.stages)}>"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """Hypothesis' printer reads the fields of a dataclass, unless it has this."""
        printer.text(repr(self))


def examples(mesh: Mesh, possible: tuple[Candidate, ...], most: int = MOST) -> st.SearchStrategy[Example]:
    """Examples on the pods of ``mesh``; at most ``most`` calls in each stage."""
    if any(call.is_read for call in possible):
        return drawn(lambda choices: _draw_either(choices, mesh, possible, most), _CHOICES_IF_READ)
    return drawn(lambda choices: draw_example(choices, mesh, possible, most), _CHOICES)


def of_policies(mesh: Mesh, possible: tuple[Candidate, ...], most: int = MOST) -> Example:
    """The policies of ``mesh`` itself, in one stage."""
    return Example((Stage(mesh, tuple(choose(mesh, possible, most=most))),))


def draw_example(choices: Choices, mesh: Mesh, possible: tuple[Candidate, ...], most: int) -> Example:
    turn, shapes = choices.number(), (_draw_shapes(choices), _draw_shapes(choices))
    first = draw_policies(Drawing.about(choices, mesh))
    stages = [Stage(first, _shaped(choose(first, possible, most=most, turn=turn), shapes[0]))]
    if choices.one_of((False, True)):
        second = choices.one_of((_less, _turned, _others))(choices, first)
        calls = choose(second, possible, most=most, turn=turn + 1, before=first)
        stages.append(Stage(second, _shaped(calls, shapes[1])))
    return Example(tuple(stages))


def _draw_either(choices: Choices, mesh: Mesh, possible: tuple[Candidate, ...], most: int) -> Example:
    """Mostly routes and policies of requests."""
    make = choices.one_of((draw_routed, draw_routed, draw_routed, draw_example))
    return make(choices, mesh, possible, most)


def draw_routed(choices: Choices, mesh: Mesh, possible: tuple[Candidate, ...], most: int) -> Example:
    """Routes and policies of requests, in one stage."""
    turn, routed = choices.number(), draw_routing(choices, mesh)
    odd = partial(oddities, choices, mesh)
    return Example((Stage(routed, tuple(choose(routed, possible, most=most, turn=turn, odd=odd))),))


Shapes = tuple[tuple[int, CallShape], ...]
"""Numbers that say which calls, and what these send; all others are plain."""


def _draw_shapes(choices: Choices) -> Shapes:
    """Of up to two calls of a stage."""
    return tuple((choices.number(), draw_shape(choices)) for _ in range(choices.one_of(range(3))))


def _shaped(calls: Sequence[Chosen], shapes: Shapes) -> tuple[Chosen, ...]:
    """``calls``, some of those to a built-in echo with a shape of their own."""
    shaped = [*calls]
    echoed = [place for place, one in enumerate(calls) if one.call.is_echoed and not one.call.is_read]
    for number, shape in shapes if echoed else ():
        place = echoed[number % len(echoed)]
        shaped[place] = replace(calls[place], shape=shape)
    return tuple(shaped)


def _less(choices: Choices, mesh: Mesh) -> Mesh:
    """One policy less, or none at all."""
    rules, modes = mesh.authorization_policies, mesh.peer_authentications
    gone = choices.number() % (len(rules) + len(modes) + 1)
    if gone == len(rules) + len(modes):
        return replace(mesh, authorization_policies=(), peer_authentications=())
    return replace(
        mesh,
        authorization_policies=tuple(policy for place, policy in enumerate(rules) if place != gone),
        peer_authentications=tuple(policy for place, policy in enumerate(modes) if place + len(rules) != gone),
    )


def _turned(choices: Choices, mesh: Mesh) -> Mesh:
    """One policy with the other action, or with its last rule gone."""
    if not mesh.authorization_policies:
        return _less(choices, mesh)
    place = choices.number() % len(mesh.authorization_policies)
    changed = choices.one_of((_other_action, _last_rule_gone))(mesh.authorization_policies[place])
    policies = [*mesh.authorization_policies]
    policies[place] = changed
    return replace(mesh, authorization_policies=tuple(policies))


def _other_action(policy: AuthorizationPolicy) -> AuthorizationPolicy:
    if policy.action is Action.ALLOW and not policy.rules:
        return policy  # a DENY without rules is refused
    return replace(policy, action=Action.DENY if policy.action is Action.ALLOW else Action.ALLOW)


def _last_rule_gone(policy: AuthorizationPolicy) -> AuthorizationPolicy:
    least = 1 if policy.action is Action.DENY else 0
    return replace(policy, rules=policy.rules[: max(least, len(policy.rules) - 1)])


def _others(choices: Choices, mesh: Mesh) -> Mesh:
    return draw_policies(Drawing.about(choices, mesh))
