"""Entry point of a node's agent, which a lab starts in the node's netns: ``meshlab.agent.main:main``."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from meshlab.agent.agent import Agent
from meshlab.kernel.channel import Channel


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until the control channel is closed or SIGTERM comes.

    Args:
        config: ``node``, ``uds``, ``record``; ``pods``, as ``enrol`` has them, that an agent which comes back knows.
        fds: ``control``; ``netns-0``, ``netns-1``, ..., one for each of ``pods``.
    """
    serve(Agent, config, fds)


def serve(kind: type[Agent], config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """``main`` with an agent of some kind."""
    netns = [fds[f"netns-{place}"] for place in range(len(config.get("pods", ())))]
    agent = kind(config, Channel.from_fd(fds["control"]), netns)
    stop, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)  # its number arrives at ``wake``
    signal.set_wakeup_fd(wake)
    agent.run(stop)
