"""Ztunnels that are right for pods as a lab usually has them, and break a promise to apps that are otherwise.

Other ports, a service of two ports, a server that does not answer, a client that does not wait, a listener that is for
its own pod only, and a mesh in which nothing changes for a while. They were written without a look at what meshlab
checks, after ``unseen``, ``unseen_two`` and ``unseen_three``: whether they are found measures the checks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from meshlab.model import Connection, Decision, Verdict
from meshlab.protocols.hbone import Target
from meshlab.protocols.xds import Update
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.pool import ClientTunnel, Key
from meshlab.proxykit.splice import Half, join
from meshlab.ztunnel import rbac
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.state import State, Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]

FIRST_EPHEMERAL_PORT = 32768
QUIET_S = 15.0
KEPT_BYTES = 1 << 16


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- admits-at-ephemeral-ports ---------------------------------------------------------------------------------------


class _PortMinded(Guard):
    """Takes what comes to a port that clients have for the way back of something that was let out."""

    def decide(self, own: Workload, connection: Connection) -> Decision:
        if connection.port >= FIRST_EPHEMERAL_PORT:
            return Decision(Verdict.ALLOW, "an ephemeral port")
        return super().decide(own, connection)


class _PortMindedDoor(Inbound):
    guard_class = _PortMinded


admits_at_ephemeral_ports = _made_of(Parts(inbound=_PortMindedDoor))


# --- keeps-one-port-of-a-service -------------------------------------------------------------------------------------


class _ByVip(Outbound):
    """Remembers by a service's address which of its ports was called first, and calls that one from then on."""

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self._first: dict[IPv4Address | IPv6Address, int] = {}

    def _way(self, own: Workload, dialled: Target, record: Record) -> Route:
        service = self.shared.state.service_at(dialled.address, own)
        if service is not None and dialled.port in service.ports:
            dialled = Target(dialled.address, self._first.setdefault(dialled.address, dialled.port))
        return super()._way(own, dialled, record)


keeps_one_port_of_a_service = _made_of(Parts(outbound=_ByVip))


# --- asks-again-without-an-answer ------------------------------------------------------------------------------------


class _Unanswered(Half):
    """An app's side keeps what it ``said``; a tunnel's side that ends without a byte does not pass its end on."""

    said = b""
    unanswered: asyncio.Future[None] | None = None
    dial: Callable[[], Awaitable[Half]]

    def data_received(self, data: bytes) -> None:
        if self.received_bytes <= KEPT_BYTES:
            self.said += data
        super().data_received(data)

    def eof_received(self) -> bool:
        if self.unanswered is None or self.received_bytes or not 0 < self.peer.received_bytes <= KEPT_BYTES:
            return super().eof_received()
        self.unanswered.set_result(None)
        self.peer = self  # the app does not see it end
        return True


class _AskingAgain(Outbound):
    half_class = _Unanswered

    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        upstream = await super().connect_tunnel(way, peer, own, record)
        assert isinstance(upstream, _Unanswered)
        upstream.dial = lambda: super(_AskingAgain, self).connect_tunnel(way, peer, own, record)
        return upstream

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        assert isinstance(app, _Unanswered)
        assert isinstance(upstream, _Unanswered)
        if way.tunnel is None:
            return await super().carry(app, upstream, way)
        unanswered = upstream.unanswered = asyncio.get_running_loop().create_future()
        await asyncio.wait({join(app, upstream), unanswered}, return_when=asyncio.FIRST_COMPLETED)
        if not unanswered.done():
            return getattr(upstream.transport, "error", "")
        second = await upstream.dial()
        upstream.close()
        over = join(app, second)
        second.transport.write(app.said)
        if app._ended:
            second.end()
        await over
        return getattr(second.transport, "error", "")


asks_again_without_an_answer = _made_of(Parts(outbound=_AskingAgain))


# --- keeps-the-window-of-abandoned-answers ---------------------------------------------------------------------------


class _KeepingWindows(Outbound):
    """Of a stream that was reset, what its app did not take stays counted against the window of the connection."""

    async def connect_peer(self, key: Key) -> ClientTunnel:
        tunnel = await super().connect_peer(key)
        framing = tunnel.framing

        def forget(stream: int) -> None:
            framing._unconsumed.pop(stream, None)  # the right one acknowledges it as well

        framing._give_back = forget  # type: ignore[method-assign]
        return tunnel


keeps_the_window_of_abandoned_answers = _made_of(Parts(outbound=_KeepingWindows))


# --- forgets-policies-when-nothing-changes ---------------------------------------------------------------------------


class _Dated(State):
    """Knows when xDS last said anything."""

    said_s = 0.0

    def apply(self, update: Update) -> dict[str, str]:
        self.said_s = time.monotonic()
        return super().apply(update)


class _Expiring(Guard):
    """Takes policies for expired when xDS has said nothing for fifteen seconds, until it speaks again."""

    def policies(self) -> Mapping[str, rbac.Policy]:
        assert isinstance(self._state, _Dated)
        return super().policies() if time.monotonic() - self._state.said_s < QUIET_S else {}


class _ExpiringDoor(Inbound):
    guard_class = _Expiring


forgets_policies_when_nothing_changes = _made_of(Parts(inbound=_ExpiringDoor, state=_Dated))


# --- opens-loopback-to-the-mesh --------------------------------------------------------------------------------------


class _AsASidecar(Inbound):
    """Where nobody listens at the pod's address it tries the pod's loopback, as the first sidecars did."""

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        try:
            return await super().connect_app(target, source)
        except ConnectionRefusedError:
            loopback = Target(ip_address("127.0.0.1" if target.address.version == 4 else "::1"), target.port)
            return await super().connect_app(loopback, loopback.address)


opens_loopback_to_the_mesh = _made_of(Parts(inbound=_AsASidecar))
