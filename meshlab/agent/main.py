"""Entry point of a node's agent, which a lab starts in the node's netns: ``meshlab.agent.main:main``."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from meshlab.agent.agent import Agent
from meshlab.kernel.channel import Channel


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until the control channel is closed or SIGTERM comes."""
    serve(Agent(config, Channel.from_fd(fds["control"])))


def serve(agent: Agent) -> None:
    stop, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)  # its number arrives at ``wake``
    signal.set_wakeup_fd(wake)
    agent.run(stop)
