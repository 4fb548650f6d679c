"""Ztunnels that are wrong about open connections and refused configuration are seen by what any data plane is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from odd_planes import WITHOUT_A_SECOND_SENDING, WITHOUT_CONFIGURATION
from open_connections import (
    LAB,
    is_cut_by_a_policy,
    is_cut_while_its_app_is_dialled,
    is_denied_after_a_version_was_refused,
    readiness,
)

from meshlab.testing.registry import MUTANTS

if TYPE_CHECKING:
    from meshlab.lab import Lab

CAUGHT: dict[str, Callable[[Lab], bool]] = {
    "never-cuts-open-connections": lambda lab: not is_cut_by_a_policy(lab, "shop/client"),
    "cuts-tunnels-only": lambda lab: not is_cut_by_a_policy(lab, "out/plain"),
    "admits-after-dialling": lambda lab: not is_cut_while_its_app_is_dialled(lab, "out/plain"),
    "drops-what-it-refuses": lambda lab: not is_denied_after_a_version_was_refused(lab),
    "ready-at-once": lambda lab: readiness(lab, "node-1") == 200,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "drops-what-it-refuses": WITHOUT_A_SECOND_SENDING,
    "ready-at-once": WITHOUT_CONFIGURATION,
}


def test_each_mutant_of_connections_has_its_test_here() -> None:
    assert {name for name, mutant in MUTANTS.items() if ".mutants.connections:" in mutant.entry} == set(CAUGHT)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_mutant_is_caught(name: str, lab_factory: Callable[..., AbstractContextManager[Lab]]) -> None:
    with lab_factory(LAB, ztunnel="reference", mutant=name, **SETTINGS.get(name, {})) as lab:
        assert CAUGHT[name](lab)
