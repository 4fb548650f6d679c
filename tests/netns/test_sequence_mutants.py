"""Each mutant of sequence is caught by a short history, and by no check of a mesh at rest; the reference holds all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import histories
import pytest

from meshlab.lab.proving import check
from meshlab.lab.sources import read
from meshlab.testing.registry import MUTANTS

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]
    History = Callable[[Lab], bool]

BROKEN_BY: dict[str, tuple[History, ...]] = {
    "address-reuse": (
        histories.an_address_is_that_of_the_pod_that_has_it_now,
        histories.an_identity_is_that_of_the_pod_that_has_the_address_now,
    ),
    "stale-after-reconnect": (
        histories.what_a_control_plane_that_comes_back_does_not_serve_is_gone,
        histories.what_is_deleted_after_the_control_plane_came_back_is_gone,
    ),
    "half-closed-survives-a-deny": (histories.a_policy_cuts_a_connection_whose_client_has_sent_its_fin,),
    "old-certificate-after-enrolment": (histories.a_pod_that_comes_again_shows_the_identity_that_it_has_now,),
    "calls-deleted-endpoints": (histories.no_call_goes_to_an_endpoint_that_was_deleted,),
    "ready-before-its-snapshot": (histories.a_policy_outlives_a_control_plane,),
    "loses-a-policy-at-a-nack": (histories.a_policy_outlives_the_refusal_of_another,),
    "plaintext-during-restart": (
        histories.calls_are_encrypted_after_the_peers_ztunnel_was_restarted,
        histories.a_client_has_its_identity_after_the_peers_ztunnel_was_restarted,
    ),
    "released-pod-stays-captured": (histories.a_released_pod_has_no_identity,),
    "agent-forgets-after-restart": (histories.an_agent_that_comes_back_knows_every_pod,),
    "open-connection-escapes-a-new-policy": (histories.a_new_policy_cuts_an_open_connection,),
    "drops-at-drain": (histories.an_open_connection_goes_on_while_its_ztunnel_drains,),
}
"""Mutant -> the histories of which it holds none."""
PAIRS = [(name, history) for name, some in BROKEN_BY.items() for history in some]
HISTORIES = [history for _, history in PAIRS]
VARIANTS = ("no-pooling", "rst-on-deny", "round-robin-endpoints", "resyncs-at-reconnect", "keeps-what-came-before")
"""Legal variants whose difference touches what comes and goes."""


def test_each_mutant_of_sequence_has_its_history() -> None:
    made = {name for name, mutant in MUTANTS.items() if ".mutants.sequence:" in mutant.entry}
    others = {"agent-writes-no-rules", "agent-trusts-rules-after-a-reboot"}
    agents = {name for name, mutant in MUTANTS.items() if mutant.part == "agent"} - others
    assert set(BROKEN_BY) == made | agents


@pytest.mark.parametrize(("name", "history"), PAIRS, ids=[f"{name}-{history.__name__}" for name, history in PAIRS])
def test_a_mutant_of_sequence_is_caught_by_its_history(name: str, history: History, lab_factory: LabFactory) -> None:
    with lab_factory(histories.LAB, ztunnel="reference", mutant=name) as lab:
        assert not history(lab)


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.__name__)
def test_the_reference_holds_every_history(history: History, lab_factory: LabFactory) -> None:
    with lab_factory(histories.LAB, ztunnel="reference") as lab:
        assert history(lab)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_legal_variant_holds_every_history(name: str, lab_factory: LabFactory) -> None:
    for history in HISTORIES:
        with lab_factory(histories.LAB, ztunnel="reference", variant=name) as lab:
            assert history(lab), history.__name__


@pytest.mark.parametrize(("variant", "cut"), [(None, True), ("keeps-what-came-before", False)])
def test_a_selector_policy_cuts_what_came_before_it_or_not(
    variant: str | None, cut: bool, lab_factory: LabFactory
) -> None:
    """Both are right: a proxy need not look again at which policies select a pod."""
    with lab_factory(histories.LAB, ztunnel="reference", variant=variant) as lab:
        line = lab.pod("shop/client").connect("shop/server:8080")
        assert line.ask()
        lab.apply(histories.DENY_AT_SERVERS)
        assert histories.is_cut(line) is cut
        assert lab.pod("shop/client").http(histories.SERVER_URL).refused


@pytest.mark.parametrize("name", BROKEN_BY)
def test_a_check_of_a_mesh_at_rest_sees_nothing(name: str, tmp_path: Path) -> None:
    report = check.run(read("two-nodes").topology, mutant=name, artifacts=tmp_path)
    assert report.exit_code == 0
