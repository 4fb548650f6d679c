"""Control planes that do less than the lab's own, as a real one may: what a node proxy does then is asked here."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

from meshlab.controlplane.plane import Config, ControlPlane
from meshlab.kernel.channel import Channel
from meshlab.protocols.xds import Response
from meshlab.protocols.xds_server import DeltaServer, Stream


class _Withholding(ControlPlane):
    """Accepts every stream and answers none: the first configuration does not come."""

    async def serve_stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        await self._authenticate(context)
        await asyncio.Event().wait()


class _NotAgain(DeltaServer):
    def roll_back(self) -> list[tuple[Stream, list[Response]]]:
        self.served = self.accepted
        return []


class _Plain(ControlPlane):
    """After a NACK it sends nothing: the proxy itself must have kept what was in effect."""

    def __init__(self, config: Config, channel: Channel) -> None:
        super().__init__(config, channel)
        self.ads = _NotAgain()


def _run(plane: type[ControlPlane], config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    async def serve() -> None:
        running = plane(Config(**config), Channel.from_fd(fds["control"]))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.run()

    asyncio.run(serve())


def answers_nobody(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    _run(_Withholding, config, fds)


def sends_nothing_after_a_nack(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    _run(_Plain, config, fds)


WITHOUT_CONFIGURATION: dict[str, Any] = {
    "entries": {"controlplane": f"{__name__}:answers_nobody"},
    "allow_pending": True,
    "ready_timeout_s": 2.0,
}
WITHOUT_A_SECOND_SENDING: dict[str, Any] = {"entries": {"controlplane": f"{__name__}:sends_nothing_after_a_nack"}}
"""Settings of a lab."""
