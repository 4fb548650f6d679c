"""15008 and 15006: what others send to the apps of one pod.

    15008  TLS --> CONNECT --> authority, policy (its identity) --> the app, from the client's address -> 200 -> splice
    15006  plaintext --------> policy (no identity) --------------> the app, from the client's address --------> splice

A connection is judged again whenever xDS changes anything, from the moment at which policy let it in: it is cut where
policy no longer allows it, also while its app is still being dialled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.splice import Half, join
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.door import Door
from meshlab.ztunnel.flags import response_flag
from meshlab.ztunnel.guard import POLICY_CHANGE, Live
from meshlab.ztunnel.server import ServerTunnel
from meshlab.ztunnel.shared import ILLEGAL_PORTS, Shared
from meshlab.ztunnel.state import Workload


class Inbound(Door):
    """The inbound side of one pod."""

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self._tunnels: set[ServerTunnel] = set()

    def accept_hbone(self) -> ServerTunnel:
        """A protocol for the next connection to 15008."""
        tunnel = ServerTunnel(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel

    def accept_plain(self) -> Half:
        """A protocol for the next connection to 15006."""
        return Half(self._accepted_plain)

    def drain(self) -> None:
        """Take no new streams on the connections that are open."""
        self.draining = True
        for tunnel in self._tunnels:
            tunnel.drain()

    async def finished(self) -> None:
        """When no connection is open, after ``drain``."""
        while self._tunnels:
            await next(iter(self._tunnels)).over.wait()
        await self.tasks.finished()

    async def close(self) -> None:
        self.closed = True
        for tunnel in [tunnel for tunnel in self._tunnels if tunnel.connected]:  # the others drop themselves
            tunnel.close("the pod is gone")
        await self.tasks.cancel()

    # --- plaintext -------------------------------------------------------------------------------------------------

    def _accepted_plain(self, client: Half) -> None:
        if self.closed:
            client.transport.abort()
        else:
            self.tasks.spawn(self._serve_plain(client))

    async def _serve_plain(self, client: Half) -> None:
        sock = client.transport.get_extra_info("socket")
        app: Half | None = None
        record: Record | None = None
        live: Live | None = None
        error = ""
        try:
            source, target = sockets.target_of(sock.getpeername()), sockets.original_destination(sock)
            record = Record(direction="inbound", source=source, destination=target)
            own = await self._own_workload(record)
            live = self._admit_plain(own, source, target, _cut(client))
            app = await self.connect_app(target, source.address)
            self.shared.log.opened(record)
            await join(client, app)
        except (OSError, TimeoutError, ProtocolError) as failure:
            error = str(failure) or type(failure).__name__
            if record is not None:
                record.flag = response_flag(failure)
            self.refuse(client)
        finally:
            if live is not None and record is not None and not self.guard.release(live):
                error, record.flag = POLICY_CHANGE, "DENY"
            client.close()
            if app is not None:
                app.close()
            if record is not None:
                said = app.received_bytes if app is not None else 0
                self.shared.log.complete(record, sent=said, received=client.received_bytes, error=error)

    def refuse(self, client: Half) -> None:
        """Tell a client that it may not: see ``Outbound.refuse``."""
        client.close()

    async def _own_workload(self, record: Record) -> Workload:
        own = await self.shared.state.local_workload(self.pod)
        if own is None:
            raise ProtocolError("failed to fetch local workload")
        record.destination_workload = own
        record.source_workload = self.shared.state.workload_at(record.source.address)
        return own

    def _admit_plain(self, own: Workload, source: Target, target: Target, cut: Callable[[], None]) -> Live:
        if target.port in ILLEGAL_PORTS:
            raise ProtocolError("self call: a connection to a port of ztunnel's own")
        return self.admit(own, self.connection(own, source.address, target), cut)


def _cut(client: Half) -> Callable[[], None]:
    """What ends the running task and its client's connection: from this call on nothing more of the client is read."""
    serving = asyncio.current_task()
    assert serving is not None

    def cut() -> None:
        client.close()
        serving.cancel()  # it may still be dialling the app

    return cut
