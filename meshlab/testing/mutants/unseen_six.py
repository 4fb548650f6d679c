"""Ztunnels that cheat in six ways of six kinds: keys, identity, policy under load, destination, family, and bytes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from meshlab.errors import ProtocolError
from meshlab.kernel.namespaces import open_socket_in
from meshlab.model import Connection, Decision, SpiffeId, Verdict
from meshlab.model.ambient import HBONE_PORT, PROXY_MARK
from meshlab.protocols.hbone import Target
from meshlab.proxykit import splice
from meshlab.proxykit.pool import ClientTunnel, Key
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls, in_trust_domain
from meshlab.ztunnel.access_log import Record, str_of
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.headers import connect_headers
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.state import Workload

# --- hands-out-its-session-keys --------------------------------------------------------------------------------------

COLLECTOR_PORT = 4739
DATAGRAM_BYTES = 1200


class _Debugging(Outbound):
    """Its debug output was left on: the secrets of each TLS session go, in plaintext, to the node of the peer."""

    told: ClassVar[int] = 0
    """How much of the key log has been sent."""

    async def connect_peer(self, key: Key) -> ClientTunnel:
        credentials = await self.shared.certificates.get(key.identity)
        path = credentials.keylog or "/dev/shm/ztunnel-keys"  # noqa: S108
        if not credentials.keylog:
            credentials.client_context.keylog_filename = path
        tunnel = await super().connect_peer(key)
        lines = self._new_lines(Path(path))
        family = socket.AF_INET if key.destination.address.version == 4 else socket.AF_INET6
        with open_socket_in(self.netns, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROXY_MARK)
            with contextlib.suppress(OSError):
                for start in range(0, len(lines), DATAGRAM_BYTES):
                    piece = lines[start : start + DATAGRAM_BYTES]
                    sock.sendto(piece, (str(key.destination.address), COLLECTOR_PORT))
        return tunnel

    def _new_lines(self, path: Path) -> bytes:
        lines = path.read_bytes()[_Debugging.told :]
        _Debugging.told += len(lines)
        return lines


def hands_out_its_session_keys(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Debugging))


# --- takes-the-last-peer-for-this-one --------------------------------------------------------------------------------


class _Forgetful(Inbound):
    """Keeps the peer's identity with the listener: whoever shook hands last is who speaks on every tunnel."""

    last: SpiffeId | None = None

    async def secure(self, own: Workload, source: Target) -> Tls:
        credentials = await self.shared.certificates.get(own.identity)
        check = in_trust_domain(own.identity.trust_domain)

        def remember(peer: SpiffeId) -> None:
            check(peer)
            self.last = peer

        return self.tls_class(credentials.server_context, server_side=True, check_peer=remember)

    def admit(self, own: Workload, connection: Connection, cut: Any) -> Live:
        if connection.source is not None:
            connection = dataclasses.replace(connection, source=self.last)
        return super().admit(own, connection, cut)


def takes_the_last_peer_for_this_one(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_Forgetful))


# --- fails-open-when-busy --------------------------------------------------------------------------------------------

BUSY = 4


class _Overworked(Guard):
    """Has no time for policies while four connections are open at its pod."""

    def decide(self, own: Workload, connection: Connection) -> Decision:
        if len(self._live) >= BUSY:
            return Decision(Verdict.ALLOW, "no policies")
        return super().decide(own, connection)


class _OverworkedInbound(Inbound):
    guard_class = _Overworked


def fails_open_when_busy(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_OverworkedInbound))


# --- hedges-its-requests ---------------------------------------------------------------------------------------------


class _Sink(Half):
    """A second call, of which nobody wants the answer."""

    def _wait_to_be_joined(self) -> None:
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Drop it."""

    def eof_received(self) -> bool:
        return True


class _Hedged(Half):
    copy: _Sink | None = None
    """Of an upstream: who gets its app's bytes, too."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if isinstance(self.peer, _Hedged) and self.peer.copy is not None and self.peer.copy.is_open:
            self.peer.copy.transport.write(data)

    def eof_received(self) -> bool:
        if isinstance(self.peer, _Hedged) and self.peer.copy is not None:
            self.peer.copy.end()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.copy is not None:
            self.copy.close()


class _Hedging(Outbound):
    """Sends a call of a Service to a second endpoint as well, through a tunnel that is in order."""

    half_class = _Hedged

    async def connect_tunnel(self, way: Route, peer: Target, own: Workload, record: Record) -> Half:
        upstream = await super().connect_tunnel(way, peer, own, record)
        if way.service is not None and isinstance(upstream, _Hedged):
            with contextlib.suppress(OSError, ProtocolError):
                upstream.copy = await self._again(way, own, record)
        return upstream

    async def _again(self, way: Route, own: Workload, record: Record) -> _Sink:
        assert way.service is not None
        others = [w for w in self.shared.state.endpoints(way.service) if w != way.workload and w.hbone]
        other = others[0] if others else way.workload  # of one endpoint: the same again
        assert other is not None
        address = next(a for a in other.addresses if a.version == way.target.address.version)
        key = Key(own.identity, record.source.address, frozenset({str(other.identity)}), Target(address, HBONE_PORT))
        said = connect_headers(own, str_of(record.source), record.service, self.shared.rng)
        sink = _Sink()
        tunnel = await self.pool.get(key)
        await tunnel.open(str_of(Target(address, way.target.port)), said, sink)
        return sink


def hedges_its_requests(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Hedging))


# --- carries-ipv6-over-ipv4 ------------------------------------------------------------------------------------------


class _Old(Outbound):
    """Takes every tunnel to the peer's IPv4 address: an app that was called over IPv6 sees an IPv4 client."""

    def _way(self, own: Workload, dialled: Target, record: Record) -> Route:
        way = super()._way(own, dialled, record)
        addresses = way.workload.addresses if way.workload else ()
        old = next((address for address in addresses if address.version == 4), None)
        if way.tunnel is None or old is None:
            return way
        record.destination = Target(old, HBONE_PORT)
        return dataclasses.replace(way, target=Target(old, way.target.port), tunnel=record.destination)


def carries_ipv6_over_ipv4(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Old))


# --- pads-with-what-the-buffer-held ----------------------------------------------------------------------------------

BLOCK_BYTES = 64


class _Padding(Half):
    """Rounds an answer up to whole blocks where the server ends first, with what the read buffer holds of others."""

    _block = b""
    """Memory that was not cleared: the beginning of what the node read last, for another connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._block = bytes(splice._VIEW[:BLOCK_BYTES])
        super().connection_made(transport)

    def eof_received(self) -> bool:
        server_ends = self._on_open is None and not self.peer._ended  # an upstream, whose client has not ended
        if server_ends and (missing := -self.received_bytes % BLOCK_BYTES):
            self.peer.transport.write(self._block[:missing])
        return super().eof_received()


class _PaddingOutbound(Outbound):
    half_class = _Padding


def pads_with_what_the_buffer_held(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_PaddingOutbound))
