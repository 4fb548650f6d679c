"""Ztunnels that are right for HTTP calls between pods under a fixed set of policies, and break a promise beside them.

An app that speaks TLS itself, a server that speaks first, a port that a Service does not have, a reader that takes its
time while its pod makes other calls, a policy that makes place for another one, and an observer who reads handshakes.
They were written without a look at what meshlab checks: whether they are found measures the checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from meshlab.model import Connection, Decision
from meshlab.protocols.hbone import Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import CheckPeer, Tls
from meshlab.proxykit.tunnel import TunnelTransport
from meshlab.ztunnel import rbac
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.shared import ILLEGAL_PORTS, Shared
from meshlab.ztunnel.state import State, Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]

CLIENT_HELLO = b"\x16\x03"
"""How what a TLS client says first begins."""
PEEK_S = 0.1


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


async def _first_bytes(half: Half) -> bytes:
    """Wait until the other end speaks or ends, and return the first two bytes, which stay in the socket."""
    loop = asyncio.get_running_loop()
    with half.transport.get_extra_info("socket").dup() as sock:  # asyncio has the other descriptor for itself
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        try:
            await readable.wait()
            with contextlib.suppress(OSError):
                return bytes(sock.recv(len(CLIENT_HELLO), socket.MSG_PEEK))
            return b""
        finally:
            loop.remove_reader(sock)


# --- opens-every-port-of-a-service -----------------------------------------------------------------------------------


class _AnyPort(Outbound):
    """A port that a Service does not have is the port of the same number at one of its endpoints."""

    def _way(self, own: Workload, dialled: Target, record: Record) -> Route:
        state = self.shared.state
        service = state.service_at(dialled.address, own)
        if service is not None and dialled.port not in service.ports:
            endpoints = [workload for workload in state.endpoints(service) if workload.healthy]
            found = [a for w in endpoints for a in w.addresses if a.version == dialled.address.version]
            dialled = Target(self.shared.rng.choice(found or [dialled.address]), dialled.port)
        return super()._way(own, dialled, record)


opens_every_port_of_a_service = _made_of(Parts(outbound=_AnyPort))


# --- waits-for-the-client-to-speak -----------------------------------------------------------------------------------


class _Sniffing(Outbound):
    """Reads what an app says first, to guess its protocol, before it asks for a way."""

    async def _serve(self, app: Half) -> None:
        await _first_bytes(app)
        await super()._serve(app)


waits_for_the_client_to_speak = _made_of(Parts(outbound=_Sniffing))


# --- stops-the-tunnel-for-a-slow-reader ------------------------------------------------------------------------------


class _Halting(Half):
    """An app that takes no more bytes stops the reading of the whole connection that they come by."""

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.joined and isinstance(self.peer.transport, TunnelTransport):
            self.peer.transport._connection.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def _go_on(self) -> None:
        if self.joined and isinstance(self.peer.transport, TunnelTransport):
            self.peer.transport._connection.transport.resume_reading()


class _HaltingOutbound(Outbound):
    half_class = _Halting


stops_the_tunnel_for_a_slow_reader = _made_of(Parts(outbound=_HaltingOutbound))


# --- ends-with-the-policy-that-admitted ------------------------------------------------------------------------------


class _Tied(Guard):
    """Ties a connection to the policy that let it in: it is over when that one is deleted, whatever the others say."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._admitted_by: dict[Live, str] = {}

    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        live = super().admit(own, connection, cut)
        self._admitted_by[live] = self.decide(own, connection).rule.partition("allowed by: ")[2]
        return live

    def release(self, live: Live) -> bool:
        del self._admitted_by[live]
        return super().release(live)

    def judge_again(self) -> None:
        super().judge_again()
        for live in list(self._live):
            if self._admitted_by[live] and self._admitted_by[live] not in self.policies():
                self._live.remove(live)
                live.cut()


class _TyingDoor(Inbound):
    guard_class = _Tied


ends_with_the_policy_that_admitted = _made_of(Parts(inbound=_TyingDoor))


# --- takes-any-tls-for-strict ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _OverTls(Connection):
    """A connection from out of the mesh whose client speaks TLS."""


class _Lenient(Guard):
    """STRICT wants TLS, it thinks, and whose certificates are shown it leaves to the app."""

    def decide(self, own: Workload, connection: Connection) -> Decision:
        if not isinstance(connection, _OverTls):
            return super().decide(own, connection)
        others = {key: policy for key, policy in self.policies().items() if not _is_strict(policy)}
        return rbac.evaluate(others, own, connection)


def _is_strict(policy: rbac.Policy) -> bool:
    """It was made of a PeerAuthentication, not of an AuthorizationPolicy."""
    return "converted" in policy.name


class _LenientDoor(Inbound):
    guard_class = _Lenient

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self._over_tls: set[Target] = set()

    async def _serve_plain(self, client: Half) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            source = sockets.target_of(client.transport.get_extra_info("peername"))
            async with asyncio.timeout(PEEK_S):  # a server may be the one to speak first
                if await _first_bytes(client) == CLIENT_HELLO:
                    self._over_tls.add(source)
        await super()._serve_plain(client)

    def _admit_plain(self, own: Workload, source: Target, target: Target, cut: Callable[[], None]) -> Live:
        if source not in self._over_tls or target.port in ILLEGAL_PORTS:
            return super()._admit_plain(own, source, target, cut)
        self._over_tls.remove(source)
        plain = self.connection(own, source.address, target)
        return self.admit(own, _OverTls(**{field.name: getattr(plain, field.name) for field in fields(plain)}), cut)


takes_any_tls_for_strict = _made_of(Parts(inbound=_LenientDoor))


# --- shows-certificates-to-everybody ---------------------------------------------------------------------------------


class _Old(Tls):
    """Speaks TLS 1.2, in which the certificates of both ends, and so their identities, pass before the encryption."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, check_peer: CheckPeer) -> None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        super().__init__(context, server_side=server_side, check_peer=check_peer)


class _OldOutbound(Outbound):
    tls_class = _Old


class _OldInbound(Inbound):
    tls_class = _Old


shows_certificates_to_everybody = _made_of(Parts(inbound=_OldInbound, outbound=_OldOutbound))
