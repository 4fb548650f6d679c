"""Ztunnels that break one promise each. Every one carries all traffic that should pass: only a proof tells it apart.

A mutant is the reference with small overrides; the reference itself knows nothing of them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.proxykit import sockets
from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.pool import Key
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls
from meshlab.ztunnel import rbac
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.state import Workload

CLEAR_AFTER_BYTES = 64 << 10


# --- leaks-plaintext -------------------------------------------------------------------------------------------------


class _Tee(Half):
    """An app's connection of which a copy goes to ``copy``."""

    copy: asyncio.StreamWriter | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.copy is not None:
            self.copy.write(data)


class _Leaking(Outbound):
    half_class = _Tee

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        assert isinstance(app, _Tee)
        if way.tunnel:
            sock = await sockets.connect_from(self.netns, way.target)
            _, app.copy = await asyncio.open_connection(sock=sock)
        try:
            return await super().carry(app, upstream, way)
        finally:
            if app.copy is not None:
                app.copy.close()


def leaks_plaintext(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Leaking))


# --- falls-back-to-plaintext -----------------------------------------------------------------------------------------


class _FallingBack(Outbound):
    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        try:
            return await super().connect_tunnel(way, peer, own, record)
        except (OSError, ProtocolError):
            return await self.connect_plain(way.target)


def falls_back_to_plaintext(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_FallingBack))


# --- calls-services-in-clear -----------------------------------------------------------------------------------------


class _PodsOnly(Outbound):
    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        if way.service is not None:
            return await self.connect_plain(way.target)
        return await super().connect_tunnel(way, peer, own, record)


def calls_services_in_clear(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_PodsOnly))


# --- clear-on-15008 --------------------------------------------------------------------------------------------------


class _NoTls(Tls):
    """Says who the peer is without having asked."""

    def __init__(self, peer: SpiffeId) -> None:
        self.peer, self.ended = peer, False
        self._unsent = bytearray()

    def start(self) -> None:
        """Nothing is shaken."""

    def receive(self, data: bytes) -> bytes:
        return data

    def send(self, plaintext: bytes) -> None:
        self._unsent += plaintext

    def outgoing(self) -> bytes:
        unsent, self._unsent = self._unsent, bytearray()
        return bytes(unsent)

    def close(self) -> None:
        """Nothing is said."""


class _ClearOutbound(Outbound):
    async def secure(self, key: Key) -> Tls:
        return _NoTls(SpiffeId.parse(min(key.peers)))


class _ClearInbound(Inbound):
    async def secure(self, own: Workload, source: Target) -> Tls:
        client = self.shared.state.workload_at(source.address)
        return _NoTls(client.identity if client else own.identity)


def clear_on_15008(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_ClearInbound, outbound=_ClearOutbound))


# --- clear-after-handshake -------------------------------------------------------------------------------------------


class _SoonClear(Tls):
    """TLS for the first 64 KiB in each direction."""

    sent = received = 0

    def send(self, plaintext: bytes) -> None:
        secret = plaintext[: CLEAR_AFTER_BYTES - self.sent]
        self.sent += len(secret)
        super().send(secret)
        self._outgoing.write(plaintext[len(secret) :])

    def receive(self, data: bytes) -> bytes:
        if self.received == CLEAR_AFTER_BYTES:
            return data
        plaintext = super().receive(data)
        return plaintext + self._incoming.read() if self.received == CLEAR_AFTER_BYTES else plaintext

    def _read_some(self) -> bytes:
        if self.received == CLEAR_AFTER_BYTES:
            raise ssl.SSLWantReadError
        data = self._object.read(CLEAR_AFTER_BYTES - self.received)
        self.received += len(data)
        return data


class _SoonClearOutbound(Outbound):
    tls_class = _SoonClear


class _SoonClearInbound(Inbound):
    tls_class = _SoonClear


def clear_after_handshake(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_SoonClearInbound, outbound=_SoonClearOutbound))


# --- ignores-deny ----------------------------------------------------------------------------------------------------


class _Lenient(Guard):
    def policies(self) -> Mapping[str, rbac.Policy]:
        return {name: policy for name, policy in super().policies().items() if policy.action != "DENY"}


class _LenientInbound(Inbound):
    guard_class = _Lenient


def ignores_deny(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_LenientInbound))


# --- one-certificate-for-all -----------------------------------------------------------------------------------------


class _OneCertificate(Certificates):
    first: SpiffeId | None = None

    async def get(self, identity: SpiffeId) -> Credentials:
        self.first = self.first or identity
        return await super().get(self.first)


class _Trusting(Outbound):
    """Else it would refuse the peers that do as it does."""

    async def secure(self, key: Key) -> Tls:
        credentials = await self.shared.certificates.get(key.identity)
        return self.tls_class(credentials.client_context, server_side=False, check_peer=lambda peer: None)


def one_certificate_for_all(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Trusting, certificates=_OneCertificate))
