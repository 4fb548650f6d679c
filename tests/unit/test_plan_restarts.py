"""When a container is started again: which exits are followed by a start, and after how long."""

from __future__ import annotations

import signal

import pytest

from meshlab.model import RestartPolicy
from meshlab.plan.restarts import FORGOTTEN_S, restart_after_s


@pytest.mark.parametrize(
    ("policy", "status", "again"),
    [
        ("Always", 0, True),
        ("Always", 3, True),
        ("Always", -signal.SIGKILL, True),
        ("OnFailure", 0, False),
        ("OnFailure", 3, True),
        ("OnFailure", -signal.SIGSEGV, True),
        ("Never", 0, False),
        ("Never", 3, False),
        ("Never", -signal.SIGKILL, False),
    ],
)
def test_the_policy_and_the_exit_status_decide_whether(policy: RestartPolicy, status: int, again: bool) -> None:
    assert (restart_after_s(policy, status, 1.0, None) is not None) == again


def test_the_first_restart_is_at_once_and_each_pause_is_twice_the_one_before_up_to_a_bound() -> None:
    paused: float | None = None
    pauses = []
    for _ in range(8):
        paused = restart_after_s("Always", 1, 0.01, paused)
        pauses.append(paused)
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]


def test_what_has_run_for_long_is_restarted_as_if_for_the_first_time() -> None:
    assert restart_after_s("Always", 1, FORGOTTEN_S - 0.1, 1.6) == 3.0
    assert restart_after_s("Always", 1, FORGOTTEN_S, 1.6) == 0.0
