"""Ztunnels that are right, and unlike the reference: what a check must let pass."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

from meshlab.model import Connection
from meshlab.protocols.hbone import Target
from meshlab.protocols.xds import ZTUNNEL_TYPES, DeltaClient, Node, Request, Response, Update
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.pool import ClientTunnel, Key, Pool
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls, one_of
from meshlab.proxykit.xds_client import XdsClient
from meshlab.testing.mutants import leaks
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.state import State, Workload


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


# --- refuses-late ----------------------------------------------------------------------------------------------------

_LATE_S = 0.3


class _LateOutbound(Outbound):
    def refuse(self, app: Half) -> None:
        asyncio.get_running_loop().call_later(_LATE_S, app.close)


class _LateInbound(Inbound):
    def refuse(self, client: Half) -> None:
        asyncio.get_running_loop().call_later(_LATE_S, client.close)


def refuses_late(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_LateInbound, outbound=_LateOutbound))


# --- resumes-tls -----------------------------------------------------------------------------------------------------


class _Resuming(Tls):
    """A client that offers the session of an earlier connection to the same peer: no certificate is shown again."""

    sessions: ClassVar[dict[Key, ssl.SSLSession]] = {}
    key: Key

    def start(self) -> None:
        if (known := self.sessions.get(self.key)) is not None:
            self._object.session = known
        super().start()

    def _read(self) -> bytes:
        data = super()._read()
        if self._object.session is not None and self._object.session.has_ticket:
            self.sessions[self.key] = self._object.session
        return data


class _ResumingOutbound(_UnpooledOutbound):
    async def secure(self, key: Key) -> Tls:
        credentials = await self.shared.certificates.get(key.identity)
        tls = _Resuming(credentials.client_context, server_side=False, check_peer=one_of(key.peers))
        tls.key = key
        return tls


class _TicketInbound(Inbound):
    async def secure(self, own: Workload, source: Target) -> Tls:
        tls = await super().secure(own, source)
        tls._object.context.num_tickets = 2
        return tls


def resumes_tls(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_TicketInbound, outbound=_ResumingOutbound))


# --- round-robin-endpoints -------------------------------------------------------------------------------------------


class _InTurn(Outbound):
    turns: ClassVar[itertools.count[int]] = itertools.count()

    def choose(self, endpoints: Sequence[Workload]) -> Workload:
        return sorted(endpoints, key=lambda endpoint: endpoint.uid)[next(self.turns) % len(endpoints)]


def round_robin_endpoints(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_InTurn))


# --- chooses-the-source-port -----------------------------------------------------------------------------------------


class _OwnPorts(Inbound):
    """Reaches apps from their client's address and a port of its own choice."""

    ports: ClassVar[itertools.count[int]] = itertools.count(20_000)

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        sock = await sockets.connect_from(self.netns, target, source, next(self.ports))
        _, app = await asyncio.get_running_loop().create_connection(Half, sock=sock)
        return app


def chooses_the_source_port(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_OwnPorts))


# --- passes-small-pieces ---------------------------------------------------------------------------------------------


class _Pieces(Half):
    """Passes on no more than 1000 bytes at a time."""

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), 1000):
            super().data_received(data[at : at + 1000])


class _PiecesOutbound(Outbound):
    half_class = _Pieces


def passes_small_pieces(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_PiecesOutbound))


def _log(_: bytes) -> None:
    """In each form in which a mutant lets a canary out, so that none of the forms is what is noticed."""
    line = b'{"level": "info", "message": "connection complete"}'
    for export in (leaks.in_a_datagram, leaks.in_fragments, leaks.in_chunked_gzip, leaks.in_h2_headers):
        export(line)


exports_logs = leaks.exporting(_log)


# --- resyncs-at-reconnect --------------------------------------------------------------------------------------------


class _Resyncing(DeltaClient):
    """Holds nothing on a new stream as far as it says, and drops what the first answer of each type lacks."""

    def __init__(self, node: Node, types: Sequence[str] = ZTUNNEL_TYPES) -> None:
        super().__init__(node, types)
        self._before: dict[str, set[str]] = {type_url: set() for type_url in types}
        """By type: what was held when the stream began, until its first answer comes."""

    def start(self) -> list[Request]:
        for type_url, held in self._held.items():
            self._before[type_url].update(held)
            held.clear()
        return super().start()

    def receive(self, response: Response) -> Update:
        update = super().receive(response)
        before = self._before.get(update.type_url, set())
        missing = before - update.resources.keys() - update.errors.keys()
        before.clear()
        return dataclasses.replace(update, removed=(*update.removed, *missing))


class _ResyncingStream(XdsClient):
    client_class = _Resyncing


def resyncs_at_reconnect(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(xds=_ResyncingStream))


# --- keeps-what-came-before ------------------------------------------------------------------------------------------


class _AsListedBefore(Guard):
    """Judges an open connection again by those selector policies only that its workload listed when it came."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._listed: dict[Live, tuple[str, ...]] = {}

    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        live = super().admit(own, connection, cut)
        self._listed[live] = own.authorization_policies
        return live

    def release(self, live: Live) -> bool:
        self._listed.pop(live, None)
        return super().release(live)

    def judge_again(self) -> None:
        if (own := self._state.workload_of(self._pod)) is None:
            return
        for live in list(self._live):
            then = dataclasses.replace(own, authorization_policies=self._listed[live])
            if not self.decide(then, live.connection).allowed:
                self._live.remove(live)
                live.cut()


class _DoorAsBefore(Inbound):
    guard_class = _AsListedBefore


def keeps_what_came_before(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_DoorAsBefore))
