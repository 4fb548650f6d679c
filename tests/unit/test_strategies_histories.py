"""Histories that are drawn: files like any other, which expect what the oracle says of each moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from meshlab.lab.sources import read
from meshlab.model import AskStep, CallStep, Topology
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
