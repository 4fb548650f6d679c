"""Ztunnels that are right, and unlike the reference: what a check must let pass."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

from meshlab.testing.mutants import leaks
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.pool import ClientTunnel, Key, Pool
from meshlab.ztunnel.splice import Half


def _reset(half: Half) -> None:
    """Close with a RST: linger for 0 seconds (man 7 socket)."""
    sock = half.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    half.transport.abort()


class _ResettingOutbound(Outbound):
    def refuse(self, app: Half) -> None:
        _reset(app)


class _ResettingInbound(Inbound):
    def refuse(self, client: Half) -> None:
        _reset(client)


def rst_on_deny(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_ResettingInbound, outbound=_ResettingOutbound))


class _NoPool(Pool):
    async def get(self, key: Key) -> ClientTunnel:
        tunnel = await self._connect(key)
        tunnel.idle_s = 0
        return tunnel


class _UnpooledOutbound(Outbound):
    pool_class = _NoPool


def no_pooling(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_UnpooledOutbound))


def _log(_: bytes) -> None:
    """In each form in which a mutant lets a canary out, so that none of the forms is what is noticed."""
    line = b'{"level": "info", "message": "connection complete"}'
    for export in (leaks.in_a_datagram, leaks.in_fragments, leaks.in_chunked_gzip, leaks.in_h2_headers):
        export(line)


exports_logs = leaks.exporting(_log)
