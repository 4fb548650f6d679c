"""Ztunnels that deny in part, late or in name only, that vouch for whom they have not seen, or that hide something.

Each carries all traffic that should pass, and refuses every call that should be refused, as its caller sees it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

from meshlab.model import Connection, Decision, SpiffeId, Verdict
from meshlab.protocols.hbone import Refusal, Target
from meshlab.protocols.hbone.events import ConnectReceived
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.pool import Key
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls, one_of
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.server import ServerTunnel
from meshlab.ztunnel.state import State, Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- leaks-first-bytes, denies-after-a-byte, withholds-answers-only --------------------------------------------------


class _LateGuard(Guard):
    """Lets everybody in, and remembers who should have been refused."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self.denied: set[tuple[IPv4Address | IPv6Address, int]] = set()

    def decide(self, own: Workload, connection: Connection) -> Decision:
        decision = super().decide(own, connection)
        if decision.allowed:
            return decision
        self.denied.add((connection.source_ip, connection.port))
        return Decision(Verdict.ALLOW, "later")


class _FewBytes(Half):
    """An app's connection that is cut when the client's first bytes have passed."""

    most: ClassVar[int] = 20

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._write, self.transport.write = self.transport.write, self._write_few  # type: ignore[method-assign]

    def _write_few(self, data: Any) -> None:
        self._write(bytes(data)[: self.most])
        asyncio.get_running_loop().call_later(0.01, self.peer.transport.close)


class _OneByte(_FewBytes):
    most = 1


class _Deaf(Half):
    """An app's connection whose answers are kept back."""

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.peer.transport.close)


class _Door(Inbound):
    guard_class = _LateGuard
    half_class: ClassVar[type[Half]] = _FewBytes

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        assert isinstance(self.guard, _LateGuard)
        if (source, target.port) not in self.guard.denied:
            return await super().connect_app(target, source)
        sock = await sockets.connect_from(self.netns, target, source)
        _, app = await asyncio.get_running_loop().create_connection(self.half_class, sock=sock)
        return app


class _DoorForOneByte(_Door):
    half_class = _OneByte


class _DoorWithoutAnswers(_Door):
    half_class = _Deaf


leaks_first_bytes = _made_of(Parts(inbound=_Door))
denies_after_a_byte = _made_of(Parts(inbound=_DoorForOneByte))
withholds_answers_only = _made_of(Parts(inbound=_DoorWithoutAnswers))


# --- denies-late-at-the-vip ------------------------------------------------------------------------------------------


class _LateForServices(ServerTunnel):
    """A call that was dialled by a service's address is let in, and refused when the app has been reached."""

    def _judge(self, event: ConnectReceived) -> Target | Refusal:
        guard = self._door.guard
        assert isinstance(guard, _LateGuardForServices)
        guard.late = ";host=" in str(event.headers.get("forwarded", ""))
        try:
            return super()._judge(event)
        finally:
            guard.late = False


class _LateGuardForServices(_LateGuard):
    late = False

    def decide(self, own: Workload, connection: Connection) -> Decision:
        return super().decide(own, connection) if self.late else Guard.decide(self, own, connection)


class _ServiceDoor(_DoorWithoutAnswers):
    guard_class = _LateGuardForServices

    def accept_hbone(self) -> ServerTunnel:
        tunnel = _LateForServices(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel


denies_late_at_the_vip = _made_of(Parts(inbound=_ServiceDoor))


# --- shows-no-certificate --------------------------------------------------------------------------------------------


class _Bare(Credentials):
    """Roots to verify others by, and nothing to show."""

    def _load_chain(self, context: ssl.SSLContext) -> None:
        """Nothing is shown."""


class _ByAddress(Tls):
    """Takes the client for whose address it has."""

    claimed: SpiffeId

    def _shake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.peer = self.claimed
        return True


class _Anonymous(Outbound):
    async def secure(self, key: Key) -> Tls:
        credentials = await self.shared.certificates.get(key.identity)
        bare = _Bare(*(getattr(credentials, field.name) for field in fields(credentials)))
        return self.tls_class(bare.client_context, server_side=False, check_peer=one_of(key.peers))


class _Credulous(Inbound):
    async def secure(self, own: Workload, source: Target) -> Tls:
        credentials = await self.shared.certificates.get(own.identity)
        credentials.server_context.verify_mode = ssl.CERT_NONE
        client = self.shared.state.workload_at(source.address)
        tls = _ByAddress(credentials.server_context, server_side=True, check_peer=lambda peer: None)
        tls.claimed = client.identity if client else own.identity
        return tls


shows_no_certificate = _made_of(Parts(inbound=_Credulous, outbound=_Anonymous))


# --- loses-the-source-address ----------------------------------------------------------------------------------------


class _FromItself(Inbound):
    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        return await super().connect_app(target, target.address)


loses_the_source_address = _made_of(Parts(inbound=_FromItself))


# --- always-the-first-endpoint ---------------------------------------------------------------------------------------


class _First(Outbound):
    def choose(self, endpoints: Sequence[Workload]) -> Workload:
        return min(endpoints, key=lambda endpoint: endpoint.uid)


always_the_first_endpoint = _made_of(Parts(outbound=_First))
