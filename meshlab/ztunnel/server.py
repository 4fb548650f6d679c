"""The server's end of one HBONE connection: the I/O of ``HboneServer``, with this node's policy as its judge."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from meshlab.errors import ProtocolError
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
    WireEvent,
)
from meshlab.proxykit import sockets
from meshlab.proxykit.connection_state import ConnectionState
from meshlab.proxykit.splice import Half, join
from meshlab.proxykit.tunnel import TunnelConnection
from meshlab.ztunnel import headers
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.door import Door
from meshlab.ztunnel.flags import response_flag
from meshlab.ztunnel.guard import POLICY_CHANGE, DeniedError, Live
from meshlab.ztunnel.state import Workload

_DENIED = 401


@dataclass(slots=True)
class _Accepted:
    """A CONNECT that policy let in."""

    record: Record
    live: Live


class ServerTunnel(TunnelConnection):
    """One connection that a client's proxy opened to a pod of ours."""

    def __init__(self, door: Door, on_end: Callable[[ServerTunnel], None]) -> None:
        super().__init__(HboneServer(self._judge), Framing(client=False))
        self._door = door
        self._on_end = on_end
        self._accepted: dict[int, _Accepted] = {}
        self.over = asyncio.Event()
        """The connection is lost."""
        self._dialling: dict[int, asyncio.Task[None]] = {}
        """Who serves a stream, while its app is not reached."""
        self._own: Workload | None = None
        self._source: Target
        self._destination: Target

    # --- before the handshake --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._source = sockets.target_of(transport.get_extra_info("peername"))
        self._destination = sockets.target_of(transport.get_extra_info("sockname"))
        if self._door.closed:
            self.drop("the pod is gone")
        else:
            self._door.tasks.spawn(self._prepare())

    async def _prepare(self) -> None:
        """Have this pod's certificate before the ClientHello is read."""
        self.transport.pause_reading()  # in ``connection_made`` Python 3.11.2 takes no notice of it
        try:
            own = await self._door.shared.state.local_workload(self._door.pod)
            if own is None:
                raise ProtocolError("failed to fetch local workload")
            self._own = own
            self.tls = await self._door.secure(own, self._source)
        except ProtocolError as error:
            self.drop(str(error))
        except Exception:
            self.drop("a bug in meshlab")  # and no peer waits for its end
            raise
        else:
            self.check_established()
            self.transport.resume_reading()

    # --- streams ---------------------------------------------------------------------------------------------------

    @property
    def own(self) -> Workload:
        """The workload that this pod is now: what was pushed since the handshake counts for the next stream."""
        now = self._door.shared.state.workload_of(self._door.pod) or self._own
        assert now is not None  # no handshake before
        return now

    def _judge(self, event: ConnectReceived) -> Target | Refusal:
        record = self._record(event.authority)
        target = self._door.target(self.own, event.authority, self._destination.address)
        if isinstance(target, Refusal):
            return self._refuse(record, target)
        plain = self._door.connection(self.own, self._source.address, target)
        connection = dataclasses.replace(plain, source=record.source_identity)
        try:
            live = self._door.admit(self.own, connection, lambda: self.tell(Revoked(event.stream)))
        except DeniedError as denied:
            return self._refuse(record, Refusal(_DENIED, str(denied)))
        self._accepted[event.stream] = _Accepted(record, live)
        return target

    def _refuse(self, record: Record, refusal: Refusal) -> Refusal:
        record.flag = "DENY" if refusal.status == _DENIED else "CONNECT"
        self._door.shared.log.complete(record, error=refusal.reason)
        return refusal

    def _record(self, authority: str) -> Record:
        return Record(
            direction="inbound",
            source=self._source,
            source_workload=self._door.shared.state.workload_at(self._source.address),
            source_identity=self.tls.peer if self.tls else None,
            destination=self._destination,
            hbone_target=authority,
            destination_workload=self._own,
            destination_identity=self._own.identity if self._own else None,
        )

    def perform(self, effect: OpenUpstream | TunnelOpened | TunnelRefused) -> None:
        assert isinstance(effect, OpenUpstream)  # the others are a client's
        serving = self._serve(effect, self._accepted.pop(effect.stream))
        self._dialling[effect.stream] = self._door.tasks.spawn(serving)

    def stream_closed(self, stream: int) -> None:
        self._close_if_drained()
        if (serving := self._dialling.pop(stream, None)) is not None:
            self._loop.call_soon(serving.cancel)  # not at once: a task that has not begun would have no ``finally``

    async def _serve(self, wanted: OpenUpstream, accepted: _Accepted) -> None:
        record = accepted.record
        client, app = Half(), None
        error = ""
        try:
            app = await self._door.connect_app(wanted.target, self._source.address)
            self._dialling.pop(wanted.stream, None)
            transport = self.open_transport(wanted.stream, client)
            self.tell(UpstreamOpened(wanted.stream, {"baggage": headers.baggage(self.own)}))
            self._door.shared.log.opened(record)
            await join(client, app)
            error = transport.error
        except (OSError, TimeoutError) as failure:
            error, record.flag = str(failure) or type(failure).__name__, response_flag(failure)
            self.tell(UpstreamFailed(wanted.stream))
        except asyncio.CancelledError:
            error = "the tunnel was closed before its app was reached"
            raise
        finally:
            self._dialling.pop(wanted.stream, None)
            if not self._door.guard.release(accepted.live):
                error, record.flag = POLICY_CHANGE, "DENY"
            client.close()
            if app is not None:
                app.close()
            sent = app.received_bytes if app is not None else 0
            self._door.shared.log.complete(record, sent=sent, received=client.received_bytes, error=error)

    # --- the drain -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Ask the client to open its next streams elsewhere; those that are open go on.

        The answer to the PING says that the client has read the GOAWAY, and that every CONNECT that it sent before is
        here. The connection is closed when it has come and no stream is left.
        """
        if self.enter(ConnectionState.DRAINING):
            self.framing.drain()
            self.ping()

    def on_wire(self, event: WireEvent) -> None:
        super().on_wire(event)
        if isinstance(event, ConnectReceived) and self._door.draining:
            self.drain()
            self._close_if_drained()  # it may have been refused

    def answered(self) -> None:
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.state is ConnectionState.DRAINING and not self._unanswered and self.idle:
            self._loop.call_soon(self._close_drained)  # not in the middle of what the connection is doing

    def _close_drained(self) -> None:
        if self.idle:
            self.close("the connection is drained")

    # --- the connection --------------------------------------------------------------------------------------------

    def established(self) -> None:
        """The client was accepted; its CONNECTs may come.

        Where the drain began during the handshake, the first of them is waited for: the client opened the connection
        for a call, and a GOAWAY that came before it could send its CONNECT would be the end of that call.
        """

    def going_away(self) -> None:
        """A client that says so opens no more streams by itself."""

    def ended(self, error: str, before: ConnectionState) -> None:
        if before is ConnectionState.HANDSHAKING:
            self._door.shared.log.failed(self._record(""), error)
        self.over.set()
        self._on_end(self)
