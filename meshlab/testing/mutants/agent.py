"""Agents that break a promise and say that they keep it: pods are not captured, or still are, or are forgotten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from meshlab.agent.agent import Agent, EnrolledPod
from meshlab.agent.main import serve
from meshlab.agent.requests import Release, Released
from meshlab.kernel.channel import Channel


class _Idle(Agent):
    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        """Leave the pod as it is, and say that it is enrolled."""


def agent_writes_no_rules(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(_Idle, config, fds)


class _Keeping(Agent):
    def _release(self, number: int, request: Release) -> None:
        """Leave the pods as they are, and say that they are released."""
        self._reply(number, Released(released=request.uids, failed={}, unacknowledged=[]))


def released_pod_stays_captured(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(_Keeping, config, fds)


class _Forgetting(Agent):
    """Of the pods that it should know from its start it forgets the first, so that no snapshot has it."""

    def __init__(self, config: Mapping[str, Any], channel: Channel, netns: Sequence[int] = ()) -> None:
        pods = config.get("pods", [])
        super().__init__({**config, "pods": pods[1:]}, channel, netns[1:])
        self._forgotten = [pod["uid"] for pod in pods[:1]]
        for fd in netns[:1]:
            os.close(fd)

    def _accept(self) -> None:
        super()._accept()
        self._connections[-1].uids.update(self._forgotten)


def agent_forgets_after_restart(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(_Forgetting, config, fds)


class _Trusting(Agent):
    """One that finds the socket of another before it believes that every pod of its node has its rules."""

    def __init__(self, config: Mapping[str, Any], channel: Channel, netns: Sequence[int] = ()) -> None:
        self._came_back = os.path.exists(config["uds"])
        super().__init__(config, channel, netns)

    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        if not self._came_back:
            super().write_rules(pod, known=known)


def agent_trusts_rules_after_a_reboot(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(_Trusting, config, fds)
