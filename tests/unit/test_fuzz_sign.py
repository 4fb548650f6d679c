"""What makes a failure this one: a smaller file with another sign shows another fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.fuzz.sign import Before, Sign, seen_sign, sign_of
from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    CallStep,
    Mesh,
    Operation,
    PolicyStep,
    Rule,
    Topology,
    Verdict,
)
from meshlab.play.faults import Wrong

BASE = replace(read("quickstart").topology, expect=())
FREE = replace(BASE.mesh, authorization_policies=(), peer_authentications=())
NOBODY = AuthorizationPolicy(name="nobody", namespace="shop", action=Action.DENY, rules=(Rule(),))
NOT_9090 = replace(NOBODY, rules=(Rule(operations=(Operation(ports=("9090",)),)),))
CALL = CallStep(source="shop/client", to="shop/server:8080", family=4, expect=Verdict.ALLOW)
OTHER = replace(CALL, to="shop/server:9090")
OPENED, CLOSED = PolicyStep(replaces=True), PolicyStep(authorization_policies=(NOBODY,), replaces=True)
WRONG = Wrong("verdict", "", seen="reset (connection reset by peer)", expect=Verdict.ALLOW)


def told(mesh: Mesh, *steps: CallStep | PolicyStep) -> Topology:
    return replace(BASE, mesh=mesh, steps=steps)


def with_policies(*policies: AuthorizationPolicy) -> Mesh:
    return replace(FREE, authorization_policies=policies)


@pytest.mark.parametrize(
    ("topology", "before"),
    [
        pytest.param(told(FREE, CALL), set(), id="alone"),
        pytest.param(told(FREE, OTHER, CALL), set(), id="after calls that end alike"),
        pytest.param(told(with_policies(NOT_9090), OTHER, CALL), {Before.OTHER_CALLS}, id="after another verdict"),
        pytest.param(
            told(with_policies(NOBODY), OPENED, CALL), {Before.OTHER_POLICIES}, id="after policies that turn it"
        ),
        pytest.param(
            told(with_policies(NOBODY), CALL, OPENED, CALL),
            {Before.OTHER_POLICIES, Before.OTHER_CALLS},
            id="after both",
        ),
    ],
)
def test_a_sign_says_what_the_verdict_may_have_been_mistaken_for(topology: Topology, before: set[Before]) -> None:
    place = len(topology.steps) - 1
    assert sign_of(topology, replace(WRONG, stage=place)).before == before


def test_a_call_alone_under_other_policies_is_not_the_call_that_was_judged_by_old_ones() -> None:
    stale = sign_of(told(with_policies(NOBODY), OPENED, CALL), replace(WRONG, stage=1))
    assert stale.is_kept_by(stale)
    assert not stale.is_kept_by(sign_of(told(with_policies(NOT_9090), CALL), WRONG)), "another fault"
    assert stale.is_kept_by(sign_of(told(FREE, CALL), WRONG)), "what came before was not needed"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(WRONG, expect=Verdict.DENY), id="refused should have been answered"),
        pytest.param(replace(WRONG, seen="timeout"), id="another ending"),
        pytest.param(replace(WRONG, seen="reset, and its bytes arrived"), id="bytes arrived"),
        pytest.param(replace(WRONG, kind="in-clear"), id="another kind"),
    ],
)
def test_another_kind_verdict_or_ending_is_another_fault(other: Wrong) -> None:
    alone = told(FREE, CALL)
    assert not sign_of(alone, WRONG).is_alike(sign_of(alone, other))


def test_a_lab_that_was_lost_has_no_call_to_be_known_by() -> None:
    lost = replace(WRONG, kind="lost")
    assert sign_of(told(FREE, CALL), lost) == Sign("lost") == seen_sign(lost)


def test_which_ending_a_refused_call_meets_is_chance() -> None:
    alone = told(FREE, CALL)
    assert sign_of(alone, WRONG) == sign_of(alone, replace(WRONG, seen="closed"))
