"""How a history that failed is told: its last steps first, then all that led to the failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.fuzz.histories import History, endings, first, stories
from meshlab.fuzz.reduce import fewer_steps, plainer, reduced
from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    CallStep,
    PolicyStep,
    PushStep,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
    Verdict,
)
from meshlab.play.faults import Wrong
from meshlab.play.moments import expecting

BASE = replace(read("quickstart").topology, expect=())
CALL = CallStep(source="shop/client", to="shop/server:8080", expect=Verdict.ALLOW)
RESTART = VerbStep(verb="restart", instance="agent@node-1")
NOBODY = AuthorizationPolicy(name="nobody", namespace="shop", action=Action.ALLOW, rules=())
UPGRADE = VerbStep(verb="upgrade", instance="ztunnel@node-1", to="same")
TRAFFIC = TrafficStep(
    pairs=(("shop/client", "http://shop%2Fserver:8080/?delay=200ms"),), during=(UPGRADE,), failed_new=0
)


def told(*steps: Step) -> History:
    return History(replace(BASE, steps=steps))


def at(place: int, kind: str = "verdict") -> list[Wrong]:
    return [Wrong(kind, "", source="shop/client", stage=place)]


def test_the_last_steps_come_with_the_policies_of_their_moment() -> None:
    denied = replace(CALL, expect=Verdict.DENY)
    history = told(PolicyStep(authorization_policies=(NOBODY,), replaces=True), *[RESTART] * 3, denied, CALL)
    three, five = endings(history, at(4))
    assert five.steps == history.topology.steps[:5]
    assert five.mesh == BASE.mesh
    assert three.steps == (RESTART, RESTART, denied)
    assert three.mesh.authorization_policies == (NOBODY,)
    assert three.mesh.pods == BASE.mesh.pods


def test_a_short_history_is_an_ending_by_itself_and_longer_ones_have_several() -> None:
    assert [one.steps for one in endings(told(CALL, RESTART, CALL), at(2))] == [(CALL, RESTART, CALL)]
    lengths = [len(one.steps) for one in endings(told(*[RESTART] * 12, CALL), at(12))]
    assert lengths == [3, 6, 12]


def test_an_ending_that_changes_what_is_not_there_is_none() -> None:
    history = told(RESTART, RESTART, RESTART, replace(CALL, source="shop/late"))
    assert list(endings(history, at(3))) == []


def test_what_a_file_expects_is_told_as_steps() -> None:
    history = first(read("quickstart").topology)
    place = next(place for place, step in enumerate(history.topology.steps) if step == CALL)
    assert [one.steps[-1] for one in stories(history, at(place))][:2] == [CALL, CALL]


@pytest.mark.parametrize("kind", ["lost", "rejected"])
def test_what_ends_a_lab_is_told_to_the_end(kind: str) -> None:
    history = told(RESTART, CALL, RESTART, CALL)
    assert [len(one.steps) for one in stories(history, at(0, kind))] == [3, 4, 4]
    three, _ = endings(history, at(0, kind))
    assert three.steps == (CALL, RESTART, CALL)


@pytest.mark.parametrize(
    "step", [TRAFFIC, PushStep(type_name="istio.security.Authorization", name="shop/mangled", body=b"\xff")]
)
def test_a_step_that_can_fail_by_itself_is_what_is_left(step: Step) -> None:
    def fails(topology: Topology) -> bool:
        return step in topology.steps

    assert reduced(told(CALL, RESTART, step, CALL).topology, fails).steps == (step,)


def test_how_often_a_call_is_made_is_left_as_it_is() -> None:
    often = replace(CALL, to="server.shop:80", times=8)
    made = {one.times for small in plainer(told(often).topology) for one in small.steps if isinstance(one, CallStep)}
    assert made == {8}


def test_steps_are_taken_away_without_making_the_others_plainer() -> None:
    history = told(CALL, RESTART, CALL)
    assert all(small.mesh == BASE.mesh for small in fewer_steps(history.topology))
    assert all(len(small.steps) == 3 for small in plainer(history.topology))


def test_a_file_in_which_a_pod_that_is_not_there_calls_is_none() -> None:
    assert expecting(told(TRAFFIC).topology) is not None
    elsewhere = replace(TRAFFIC, pairs=(("shop/late", TRAFFIC.pairs[0][1]),))
    assert expecting(told(elsewhere).topology) is None
