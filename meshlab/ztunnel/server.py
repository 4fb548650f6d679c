"""The server's end of one HBONE connection: the I/O of ``HboneServer``, with this node's policy as its judge."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshlab.errors import ProtocolError
from meshlab.model import Connection
from meshlab.protocols.hbone import (
    ConnectReceived,
    Framing,
    HboneServer,
    OpenUpstream,
    Refusal,
    Revoked,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamFailed,
    UpstreamOpened,
)
from meshlab.ztunnel import headers, sockets
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.splice import Half, join
from meshlab.ztunnel.state import Workload
from meshlab.ztunnel.tunnel import TunnelConnection

if TYPE_CHECKING:
    from meshlab.ztunnel.guard import Live
    from meshlab.ztunnel.inbound import Inbound


@dataclass(slots=True)
class _Accepted:
    """A CONNECT that policy allowed."""

    record: Record
    connection: Connection


class ServerTunnel(TunnelConnection):
    """One connection that a client's proxy opened to a pod of ours."""

    def __init__(self, inbound: Inbound) -> None:
        super().__init__(HboneServer(self._judge), Framing(client=False))
        self._inbound = inbound
        self._accepted: dict[int, _Accepted] = {}
        self._own: Workload | None = None
        self._source: Target
        self._destination: Target

    # --- before the handshake --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._source = sockets.target_of(transport.get_extra_info("peername"))
        self._destination = sockets.target_of(transport.get_extra_info("sockname"))
        self._inbound.tasks.spawn(self._prepare())

    async def _prepare(self) -> None:
        """Have this pod's certificate before the ClientHello is read."""
        self.transport.pause_reading()  # in ``connection_made`` Python 3.11.2 takes no notice of it
        try:
            own = await self._inbound.shared.state.local_workload(self._inbound.pod)
            if own is None:
                raise ProtocolError("failed to fetch local workload")
            self._own = own
            self.tls = await self._inbound.secure(own, self._source)
        except ProtocolError as error:
            self.drop(str(error))
        else:
            self.check_established()
            self.transport.resume_reading()

    # --- streams ---------------------------------------------------------------------------------------------------

    @property
    def own(self) -> Workload:
        """The workload that this pod is now: what was pushed since the handshake counts for the next stream."""
        now = self._inbound.shared.state.workload_of(self._inbound.pod) or self._own
        assert now is not None  # no handshake before
        return now

    def _judge(self, event: ConnectReceived) -> Target | Refusal:
        record = self._record(event.authority)
        target = self._inbound.target(self.own, event.authority, self._destination.address)
        if isinstance(target, Refusal):
            return self._refuse(record, target)
        plain = self._inbound.connection(self.own, self._source.address, target)
        connection = dataclasses.replace(plain, source=record.source_identity)
        decision = self._inbound.guard.decide(self.own, connection)
        if not decision.allowed:
            return self._refuse(record, Refusal(401, f"connection closed due to policy rejection: {decision.rule}"))
        self._accepted[event.stream] = _Accepted(record, connection)
        return target

    def _refuse(self, record: Record, refusal: Refusal) -> Refusal:
        self._inbound.shared.log.complete(record, error=refusal.reason)
        return refusal

    def _record(self, authority: str) -> Record:
        return Record(
            direction="inbound",
            source=self._source,
            source_workload=self._inbound.shared.state.workload_at(self._source.address),
            source_identity=self.tls.peer if self.tls else None,
            destination=self._destination,
            hbone_target=authority,
            destination_workload=self._own,
            destination_identity=self._own.identity if self._own else None,
        )

    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        assert isinstance(effect, OpenUpstream)  # the others are a client's
        stream, accepted = effect.stream, self._accepted.pop(effect.stream)
        live = self._inbound.guard.admit(accepted.connection, lambda: self.tell(Revoked(stream)))
        self._inbound.tasks.spawn(self._serve(effect, accepted.record, live))

    async def _serve(self, wanted: OpenUpstream, record: Record, live: Live) -> None:
        client, app = Half(), None
        error = ""
        try:
            app = await self._inbound.connect_app(wanted.target, self._source.address)
            transport = self.open_transport(wanted.stream, client)
            self.tell(UpstreamOpened(wanted.stream, {"baggage": headers.baggage(self.own)}))
            self._inbound.shared.log.opened(record)
            await join(client, app)
            error = transport.error
        except (OSError, TimeoutError) as failure:
            error = str(failure) or type(failure).__name__
            self.tell(UpstreamFailed(wanted.stream))
        finally:
            self._inbound.guard.release(live)
            client.close()
            if app is not None:
                app.close()
            sent = app.received_bytes if app is not None else 0
            self._inbound.shared.log.complete(record, sent=sent, received=client.received_bytes, error=error)

    def drain(self) -> None:
        """Ask the client to open its next streams elsewhere; those that are open go on."""
        if self.was_established:
            self.framing.drain()
            self.flush_soon()

    # --- the connection --------------------------------------------------------------------------------------------

    def established(self) -> None:
        """The client was accepted; its CONNECTs may come."""

    def going_away(self) -> None:
        """A client that says so opens no more streams by itself."""

    def ended(self, error: str) -> None:
        if not self.was_established:
            self._inbound.shared.log.failed(self._record(""), error)
        self._inbound.tunnel_closed(self)
