"""What may have led to a failing call, as topologies with steps. Pure.

    the policies, the call                          the verdict itself is wrong
    the policies, all calls that failed             one call's fault was seen at another, too
    policies that turn it, the call, then those     a verdict outlives its policies, or comes before them
    the policies, other calls first                 a verdict is taken for that of another call
    all of the stage before, all of this one        anything else

The shortest come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from meshlab.fuzz.choose import Chosen, decided
from meshlab.fuzz.example import Example, Stage
from meshlab.model import Action, AuthorizationPolicy, CallStep, Mesh, PolicyStep, Rule, Step, Topology
from meshlab.play.faults import Wrong
from meshlab.play.moments import expecting


def stories(base: Topology, example: Example, wrong: Sequence[Wrong], before: Example | None) -> Iterator[Topology]:
    """Every way to tell what happened to the call that the first of ``wrong`` names, on the pods of ``base``.

    Args:
        wrong: what was wrong with the example, and is of one kind.
        before: the example that was played before this one.
    """
    return filter(None, _stories(base, example, wrong, before))


def _stories(
    base: Topology, example: Example, wrong: Sequence[Wrong], before: Example | None
) -> Iterator[Topology | None]:
    place = _place(example, wrong[0])
    stage = example.stages[place]
    failing = _named(stage, wrong[0])
    earlier = [*(before.stages if before else ()), *example.stages[:place]]
    for one, group in groupby(failing):
        alone = [*group]
        yield _told(base, [(stage, alone)])
        here = [each for each in wrong if _place(example, each) == place]
        together = [other for other in stage.calls if any(other in _named(stage, each) for each in here)]
        if len(together) > 1:
            yield _told(base, [(stage, together)])
        turned = Stage(_turning(stage.mesh, one), ())
        again = decided(turned.mesh, one.call, one.shape)
        if again is not None and again.decision.verdict is not one.decision.verdict:
            yield _told(base, [(turned, [one]), (stage, alone)])
        for others in _others(stage, one):
            yield _told(base, [(stage, [*others, *alone])])
    if earlier:
        yield _told(base, [(earlier[-1], earlier[-1].calls), (stage, [*stage.calls, *failing])])
    yield _told(base, [(each, each.calls) for each in example.stages])


def _place(example: Example, wrong: Wrong) -> int:
    """Of the stage in which it was wrong; where that is not known, of the first with such a call."""
    places = [wrong.stage, *range(len(example.stages))]
    return next((place for place in places if _named(example.stages[place], wrong)), wrong.stage)


def _named(stage: Stage, wrong: Wrong) -> list[Chosen]:
    """Return the calls that ``wrong`` names. Where none has its destination, return those to Services of that pod.

    Of several between the same ends it is the one that sent the same, if any did.
    """
    alike = [one for one in stage.calls if (one.call.source.key, one.call.family) == (wrong.source, wrong.family)]
    reached = [one for one in alike if wrong.to in {f"{way.destination.key}:{way.port}" for way in one.call.ways}]
    called = [one for one in alike if one.call.to == wrong.to]
    return [one for one in called if one.shape == wrong.shape] or called or reached


def _turning(mesh: Mesh, one: Chosen) -> Mesh:
    """Other policies, by which the call ends otherwise where any can make it: nobody may, or everybody."""
    nobody = AuthorizationPolicy(
        name="nobody", namespace=one.call.destination.namespace, action=Action.DENY, rules=(Rule(),)
    )
    rules = (nobody,) if one.decision.allowed else ()
    return replace(mesh, authorization_policies=rules, peer_authentications=())


def _others(stage: Stage, one: Chosen) -> Iterator[list[Chosen]]:
    """Calls that end otherwise: between the same pods, then of one of them, then all calls of the stage."""
    otherwise = [other for other in stage.calls if other.decision.verdict is not one.decision.verdict]
    between = [other for other in otherwise if _shared(other, one) == 2]
    beside = [other for other in otherwise if _shared(other, one)]
    told: list[list[Chosen]] = [[]]
    for others in (between, beside, [other for other in stage.calls if other != one]):
        if others not in told:
            told.append(others)
            yield others


def _shared(other: Chosen, one: Chosen) -> int:
    """How many ends two calls have in common."""
    return (other.call.source == one.call.source) + (other.call.destination == one.call.destination)


def _told(base: Topology, stages: Sequence[tuple[Stage, Sequence[Chosen]]]) -> Topology | None:
    """``None``: the policies do not say one thing of each call, so that a right proxy may fail it.

    So it is where routes differ: a step changes policies only.
    """
    (first, calls), *rest = stages
    if any(stage.mesh.routes != first.mesh.routes for stage, _ in rest):
        return None
    steps: list[Step] = [*_steps(calls)]
    for stage, more in rest:
        change = PolicyStep(
            authorization_policies=stage.mesh.authorization_policies,
            peer_authentications=stage.mesh.peer_authentications,
            replaces=True,
        )
        steps += [change, *_steps(more)]
    return expecting(replace(base, mesh=first.mesh, expect=(), steps=tuple(steps)))


def _steps(calls: Sequence[Chosen]) -> Iterator[CallStep]:
    """Equal calls, one after the other, are one step."""
    for one, group in groupby(calls):
        call = one.call
        yield CallStep(
            source=call.source.key,
            to=call.to,
            family=call.family,
            expect=one.decision.verdict,
            shape=one.shape,
            times=len([*group]),
        )
