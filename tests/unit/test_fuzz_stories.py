"""What may have led to a failing call, told as steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.fuzz.choose import Chosen, candidates, choose
from meshlab.fuzz.example import Example, Stage
from meshlab.fuzz.stories import stories
from meshlab.lab.sources import read
from meshlab.model import CallStep, Mesh, PolicyStep, Topology
from meshlab.play.faults import Wrong

BASE = read("quickstart").topology
POSSIBLE = candidates(BASE.mesh)
FREE = replace(BASE.mesh, authorization_policies=(), peer_authentications=())
FIRST = Stage(BASE.mesh, tuple(choose(BASE.mesh, POSSIBLE, most=20)))
SECOND = Stage(FREE, tuple(choose(FREE, POSSIBLE, most=20, before=BASE.mesh)))
EXAMPLE = Example((FIRST, SECOND))


def told(example: Example, one: Chosen, before: Example | None = None, stage: int = 0) -> list[Topology]:
    wrong = Wrong("verdict", "text", one.call.source.key, one.call.to, one.call.family, stage=stage)
    return list(stories(BASE, example, [wrong], before))


def calls(topology: Topology) -> list[CallStep]:
    return [step for step in topology.steps if isinstance(step, CallStep)]


DENIED = next(one for one in FIRST.calls if not one.decision.allowed and one.call.hbone)
BESIDE = next(
    one
    for one in FIRST.calls
    if one.decision.allowed
    and (one.call.source == DENIED.call.source) is not (one.call.destination == DENIED.call.destination)
)
ALLOWED = next(one for one in FIRST.calls if one.decision.allowed and one.call.hbone)


@pytest.mark.parametrize("one", [DENIED, ALLOWED], ids=["denied", "allowed"])
def test_the_first_story_is_the_call_alone_and_the_second_turns_it(one: Chosen) -> None:
    alone, turned, *_ = told(Example((FIRST,)), one)
    (step,) = alone.steps
    assert isinstance(step, CallStep)
    assert (step.source, step.to, step.family) == (one.call.source.key, one.call.to, one.call.family)
    assert step.expect is one.decision.verdict
    first, change, second = turned.steps
    assert isinstance(first, CallStep)
    assert isinstance(change, PolicyStep)
    assert isinstance(second, CallStep)
    assert first.expect is not second.expect
    assert second.expect is one.decision.verdict
    assert change.authorization_policies == BASE.mesh.authorization_policies


def test_a_call_of_the_second_stage_is_judged_by_its_policies() -> None:
    both = [one.call for one in FIRST.calls]
    one = next(one for one in SECOND.calls if one.call in both)
    alone = told(EXAMPLE, one, stage=1)[0]
    assert alone.mesh.authorization_policies == ()


def test_calls_that_ended_otherwise_come_before_it_first_those_between_the_same_pods() -> None:
    same = replace(
        DENIED, decision=ALLOWED.decision, call=replace(DENIED.call, family=6 if DENIED.call.family == 4 else 4)
    )
    stage = replace(FIRST, calls=(BESIDE, same, DENIED))
    told_of = [topology for topology in told(Example((stage,)), DENIED) if topology.mesh == BASE.mesh]
    between = told_of[1]
    assert [step.family for step in calls(between)] == [same.call.family, DENIED.call.family]
    assert all(calls(topology)[-1].to == DENIED.call.to for topology in told_of[:-1])


def test_calls_that_failed_together_are_told_together() -> None:
    wrong = [Wrong("in-clear", "text", one.call.source.key, one.call.to, one.call.family) for one in (DENIED, ALLOWED)]
    alone, together, *_ = stories(BASE, Example((FIRST,)), wrong, None)
    assert len(alone.steps) == 1
    assert {step.to for step in calls(together)} == {DENIED.call.to, ALLOWED.call.to}


def test_a_fault_whose_stage_is_not_known_is_told_of_the_stage_with_its_call() -> None:
    only = next(one for one in SECOND.calls if one.call.to == "shop/server:8080" and one.call.hbone)
    example = Example((replace(FIRST, calls=()), replace(SECOND, calls=(only,))))
    assert told(example, only)[0].mesh.authorization_policies == ()


def test_a_proxy_that_names_the_pod_means_also_the_service_before_it() -> None:
    by_name = next(one for one in SECOND.calls if one.call.service)
    wrong = Wrong("identity", "text", by_name.call.source.key, "shop/server:8080", by_name.call.family)
    alone, *_ = stories(BASE, Example((replace(SECOND, calls=(by_name,)),)), [wrong], None)
    assert [step.to for step in calls(alone)] == ["server.shop:80"]


def test_the_example_before_is_told_when_there_was_one() -> None:
    before = Example((SECOND,))
    longest = [
        topology for topology in told(Example((FIRST,)), DENIED, before) if topology.mesh.peer_authentications == ()
    ]
    assert any(len(calls(topology)) == len(SECOND.calls) + len(FIRST.calls) + 1 for topology in longest)


def test_without_a_call_every_stage_is_told() -> None:
    (story,) = stories(BASE, EXAMPLE, [Wrong("lost", "ztunnel ended")], None)
    assert len(calls(story)) == len(FIRST.calls) + len(SECOND.calls)
    assert isinstance(story.mesh, Mesh)
