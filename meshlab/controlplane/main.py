"""Entry point of the control plane, which a lab starts in a netns of its own: ``meshlab.controlplane.main:main``."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

from meshlab.controlplane.plane import Config, ControlPlane
from meshlab.kernel.channel import Channel

_LEFT_S = 1.0


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until the control channel is closed or SIGTERM comes."""
    plane = ControlPlane(Config(**config), Channel.from_fd(fds["control"]))

    async def until_told() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, plane.stop)
        await serve(plane)

    asyncio.run(until_told())


async def serve(plane: ControlPlane) -> None:
    """Serve until the end, and return when nothing is left of what was served.

    gRPC cancels what it serves and does not wait for it. What the end of a loop cancels instead prints a traceback.
    """
    await plane.run()
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=_LEFT_S)
