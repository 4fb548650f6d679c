"""An agent that breaks a promise: everything works, and nothing is encrypted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshlab.agent.agent import Agent, EnrolledPod
from meshlab.agent.main import serve


class _Idle(Agent):
    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        """Leave the pod as it is, and say that it is enrolled."""


def agent_writes_no_rules(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(_Idle, config, fds)
