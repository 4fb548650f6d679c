"""Histories that are drawn: files like any other, which expect what the oracle says of each moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AskStep,
    AuthorizationPolicy,
    CallStep,
    Namespace,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
)
from meshlab.play.moments import expecting
from meshlab.strategies import histories
from meshlab.strategies.choices import Choices
from meshlab.strategies.histories import HistoryDrawing, with_echo_image
from meshlab.topology import dump, load

TWO_NODES = read("two-nodes").topology


@given(history=histories(TWO_NODES))
@settings(max_examples=20, deadline=None)
def test_a_history_is_a_file_whose_calls_expect_what_the_oracle_says_then(history: Topology) -> None:
    assert history.steps
    assert load(dump(history), "history").steps == history.steps
    assert expecting(history) == history


def test_a_mesh_in_which_nobody_can_call_has_no_history() -> None:
    alone = replace(TWO_NODES, mesh=replace(TWO_NODES.mesh, pods=TWO_NODES.mesh.pods[:1]))
    with pytest.raises(ValueError, match="no pod can call another one"):
        histories(alone)


def test_what_is_taken_changes_the_mesh_and_what_cannot_be_is_not_taken() -> None:
    drawing = HistoryDrawing(Choices(b""), with_echo_image(TWO_NODES))
    assert list(drawing.ask()) == []
    assert drawing.take(AskStep(name="line-0", alive=True)) is None
    before = len(drawing.mesh.pods)
    gone = [drawing.take(step) for step in drawing.go()]
    assert drawing.steps == gone
    assert len(drawing.mesh.pods) == before - 1
    (called,) = [drawing.take(step) for step in drawing.call()]
    assert isinstance(called, CallStep)
    assert called.source in {pod.key for pod in drawing.mesh.pods}


# --- stories ---------------------------------------------------------------------------------------------------------

QUICKSTART = with_echo_image(read("quickstart").topology)


def drawn(story: str, *numbers: int, topology: Topology = QUICKSTART) -> tuple[HistoryDrawing, list[Step]]:
    """The steps of one story, of the ``numbers`` that are chosen and zeros, from the mesh of the file on."""
    drawing = HistoryDrawing(Choices(b"".join(number.to_bytes(2, "big") for number in numbers)), topology)
    for step in getattr(drawing, story)():
        drawing.take(step)
    assert expecting(replace(topology, expect=(), steps=tuple(drawing.steps))) is not None
    return drawing, drawing.steps


def kinds(steps: list[Step]) -> list[str]:
    return [type(step).__name__.removesuffix("Step") for step in steps]


def expected(steps: list[Step]) -> list[str]:
    return [step.expect for step in steps if isinstance(step, CallStep)]


def test_a_denied_call_is_made_after_a_restart_and_again_when_the_policy_has_gone() -> None:
    drawing, steps = drawn("deny_until_a_restart")
    assert kinds(steps) == ["Policy", "Verb", "Call", "Policy", "Call"]
    assert expected(steps) == ["deny", "allow"]
    assert drawing.mesh == QUICKSTART.mesh


def test_a_denied_call_is_made_after_a_mangled_policy_was_pushed() -> None:
    _, steps = drawn("refuse_a_mangled_policy")
    assert kinds(steps) == ["Policy", "Push", "Call", "Policy"]
    assert expected(steps) == ["deny"]


@pytest.mark.parametrize("which", [0, 1], ids=["caller", "called"])
def test_a_pod_of_the_same_name_comes_under_another_account(which: int) -> None:
    drawing, steps = drawn("take_a_place", 0, which, 0)
    assert kinds(steps)[:2] == ["Call", "Change"]
    assert len(steps) >= 3, "it calls, or is called"
    assert [pod.key for pod in drawing.mesh.pods if pod.service_account == "late"] != []
    assert {pod.key for pod in drawing.mesh.pods} == {pod.key for pod in QUICKSTART.mesh.pods}


def test_another_pod_comes_at_the_address_of_one_that_went() -> None:
    drawing, steps = drawn("take_a_place", 0, 0, 1)
    assert kinds(steps)[:3] == ["Call", "Change", "Change"]
    came = drawing.mesh.pod("shop/late")
    assert came.ipv4 in {pod.ipv4 for pod in QUICKSTART.mesh.pods}
    assert came.ipv4 not in {pod.ipv4 for pod in drawing.mesh.pods if pod.key != came.key}


def test_a_service_is_called_often_when_an_endpoint_has_gone() -> None:
    drawing, steps = drawn("be_an_endpoint")
    assert kinds(steps) == ["Change", "Call", "Change", "Call"]
    last = steps[-1]
    assert isinstance(last, CallStep)
    assert (last.to, last.times) == ("server.shop:80", 8)
    assert drawing.mesh.pods == QUICKSTART.mesh.pods


def test_a_released_pod_is_refused_where_plaintext_is() -> None:
    drawing, steps = drawn("release_a_pod")
    assert kinds(steps) == ["Policy", "Change", "Call", "Change", "Call"]
    assert expected(steps) == ["allow", "deny"]
    assert not drawing.mesh.is_enrolled(drawing.mesh.pod("shop/late"))


def test_each_pod_of_a_node_calls_or_is_called_when_its_agent_was_restarted() -> None:
    _, steps = drawn("restart_an_agent")
    assert steps[0] == VerbStep(verb="restart", instance="agent@node-1")
    ends = {end for step in steps if isinstance(step, CallStep) for end in (step.source, step.to.rpartition(":")[0])}
    assert {"shop/client", "shop/store"} <= ends
    assert set(expected(steps)) == {"allow"}


def test_a_call_is_made_again_when_the_proxy_of_the_called_pod_was_restarted() -> None:
    _, steps = drawn("restart_the_peers_proxy")
    assert kinds(steps) == ["Call", "Verb", "Call"]
    assert steps[0] == steps[2]


def test_slow_calls_go_on_during_an_upgrade_but_not_where_a_connection_is_held() -> None:
    _, (step,) = drawn("upgrade_under_calls")
    assert isinstance(step, TrafficStep)
    assert (step.failed_new, "delay=" in step.pairs[0][1]) == (0, True)
    drawing = HistoryDrawing(Choices(b""), QUICKSTART)
    for story in (drawing.connect, drawing.upgrade_under_calls):
        for one in story():
            drawing.take(one)
    assert kinds(drawing.steps) == ["Connect"]


def test_a_story_takes_all_policies_away_where_these_allow_no_call() -> None:
    nobody = AuthorizationPolicy(name="nobody", namespace="istio-system", action=Action.ALLOW, rules=())
    denied = replace(QUICKSTART, mesh=replace(QUICKSTART.mesh, authorization_policies=(nobody,)))
    _, steps = drawn("restart_the_peers_proxy", topology=denied)
    assert kinds(steps) == ["Policy", "Call", "Verb", "Call"]


def test_a_story_of_a_mesh_without_members_does_not_happen() -> None:
    outside = replace(QUICKSTART, mesh=replace(QUICKSTART.mesh, namespaces=(Namespace(name="shop"),)))
    for story in ("deny_until_a_restart", "refuse_a_mangled_policy", "take_a_place", "release_a_pod"):
        _, steps = drawn(story, topology=outside)
        assert kinds(steps) in ([], ["Policy"])
