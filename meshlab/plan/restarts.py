"""When a container that has ended is started again, as its pod's ``restartPolicy`` says. Pure.

    ended --Never; OnFailure and status 0--> not at all
          `--else--> at once, then after 0.1 s, 0.2 s, 0.4 s ... 3 s at most; at once again after 6 s of running

A lab lasts for seconds, so its times are a hundredth of Kubernetes': 10 s, doubled up to 300 s, forgotten after 600 s.

Source: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
"""

from __future__ import annotations

from meshlab.model import RestartPolicy

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 3.0
FORGOTTEN_S = 6.0
"""A container that has run for so long is restarted as if it had never been before."""


def restart_after_s(policy: RestartPolicy, status: int, ran_s: float, paused_s: float | None) -> float | None:
    """Return after how many seconds a container that has ended is started again; ``None`` means never.

    Args:
        status: its exit status; negative: the signal that killed it.
        ran_s: how long it ran.
        paused_s: how long it was waited before the start of the life that has ended; ``None`` if that was no restart.
    """
    if policy == "Never" or (policy == "OnFailure" and status == 0):
        return None
    if paused_s is None or ran_s >= FORGOTTEN_S:
        return 0.0
    return min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * paused_s))
