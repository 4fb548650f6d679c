"""What any right data plane does with connections that pause, end on one side only, are hung up, or come in crowds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
from long_streams import (
    HANG_UPS,
    answer_after_a_hang_up,
    answer_after_the_clients_fin,
    calls_after_abandoned_downloads,
    is_denied_in_a_crowd,
    is_in_clear_after_a_pause,
    request_after_the_servers_fin,
)
from open_connections import DENY_CLIENT, LAB

from meshlab.model import Mesh, Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

LabFactory = Callable[..., AbstractContextManager["Lab"]]
pytestmark = pytest.mark.meshlab_dataplane

SOURCES = pytest.mark.parametrize("source", ["shop/client", "out/plain"], ids=["tunnelled", "in-plaintext"])


@pytest.fixture(scope="module")
def shared(lab_factory: LabFactory) -> Iterator[Lab]:
    """One lab for the module; every test leaves it without policies."""
    with lab_factory(LAB) as lab:
        yield lab


@pytest.fixture
def mesh(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.replace(Mesh())


def test_what_an_app_says_after_a_pause_is_encrypted_as_well(mesh: Lab) -> None:
    assert not is_in_clear_after_a_pause(mesh)


@SOURCES
def test_a_client_that_has_ended_its_side_gets_all_of_a_slow_answer(mesh: Lab, source: str) -> None:
    assert answer_after_the_clients_fin(mesh, source) == [b"first", b"second", b""]


@SOURCES
def test_a_server_that_has_ended_its_side_gets_all_that_its_client_says_later(mesh: Lab, source: str) -> None:
    assert request_after_the_servers_fin(mesh, source) == [b"first", b"second", b""]


@pytest.mark.parametrize("then", ["shop/client", "shop/other"], ids=["the-same-pod", "another-pod-of-the-node"])
@pytest.mark.parametrize("how", HANG_UPS)
def test_after_a_hang_up_the_next_client_of_the_port_gets_its_own_answer_only(mesh: Lab, how: str, then: str) -> None:
    assert answer_after_a_hang_up(mesh, how, then) == b"own answer"


def test_answers_that_were_left_unread_cost_the_next_calls_nothing(mesh: Lab) -> None:
    assert calls_after_abandoned_downloads(mesh) == [Outcome.OK] * 3


def test_a_denied_client_is_refused_while_the_pod_has_a_crowd_of_others(mesh: Lab) -> None:
    mesh.apply(DENY_CLIENT)
    assert is_denied_in_a_crowd(mesh)
