"""Ztunnels with a fault that users have reported of pods that come, proxies that are replaced, and servers that end.

Each is shown by a file of ``topologies/pitfalls``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Any

from meshlab.errors import ProtocolError
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.splice import Half
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.main import Parts, Ztunnel, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.state import Workload

_RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` for zero seconds, as socket(7) has it: closing is a RST."""

# --- refuses-pods-that-start -----------------------------------------------------------------------------------------


class _ReadyOnly(Outbound):
    async def connect(self, way: Route, own: Workload, record: Record) -> Half:
        if not own.healthy:
            raise ProtocolError("the pod is not ready")
        return await super().connect(way, own, record)


def refuses_pods_that_start(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_ReadyOnly))


# --- first-call-without-a-certificate --------------------------------------------------------------------------------


class _Impatient(Outbound):
    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self._called = False

    async def connect(self, way: Route, own: Workload, record: Record) -> Half:
        called, self._called = self._called, True
        return await super().connect(way, own, record) if called else await self.connect_plain(way.target)


def first_call_without_a_certificate(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Impatient))


# --- listens-while-it-drains -----------------------------------------------------------------------------------------


class _Refusing(Outbound):
    is_draining = False

    def _accepted(self, app: Half) -> None:
        if _Refusing.is_draining:
            app.transport.abort()
        else:
            super()._accepted(app)


class _Lingering(Ztunnel):
    async def _drain(self, zds: asyncio.Task[None]) -> None:
        """Close no listener: some of the pods' new connections go on coming here, and not to the successor."""
        zds.cancel()
        _Refusing.is_draining = True
        await asyncio.sleep(self._config.drain_s)


def listens_while_it_drains(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Refusing), _Lingering)


# --- resets-instead-of-ending ----------------------------------------------------------------------------------------


class _Resetting(Half):
    def end(self) -> None:
        """End an app's side with RST once all has left, where its upstream has ended in good order."""
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is None or self.transport.get_write_buffer_size():
            super().end()
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class _ResettingOutbound(Outbound):
    half_class = _Resetting


def resets_instead_of_ending(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_ResettingOutbound))
