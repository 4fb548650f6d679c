"""One pod of this node: its listeners, and what is behind them."""

from __future__ import annotations

import asyncio
import os

from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.outbound import Outbound

OUTBOUND_PORT = 15001
PLAIN_PORT = 15006
HBONE_PORT = 15008


class PodProxy:
    """Serves one pod, from ``start`` to ``close``."""

    def __init__(self, pod: ZdsPod, netns: int, inbound: Inbound, outbound: Outbound) -> None:
        self.pod = pod
        self.netns = netns
        """A descriptor of the pod's netns, which is ours to close."""
        self.inbound = inbound
        self._outbound = outbound
        self._servers: list[asyncio.Server] = []

    @property
    def inode(self) -> tuple[int, int]:
        """What tells one netns from another."""
        status = os.fstat(self.netns)
        return status.st_dev, status.st_ino

    async def start(self) -> None:
        """Have all three listeners.

        Raises:
            OSError: one cannot be bound; none is left open.
        """
        loop = asyncio.get_running_loop()
        accepts = {
            OUTBOUND_PORT: self._outbound.accept,
            PLAIN_PORT: self.inbound.accept_plain,
            HBONE_PORT: self.inbound.accept_hbone,
        }
        try:
            for port, accept in accepts.items():
                sock = sockets.listen_in(self.netns, port)
                server = await loop.create_server(accept, sock=sock, backlog=sockets.BACKLOG, start_serving=False)
                self._servers.append(server)  # first: whoever is cancelled while it starts closes it, too
                await server.start_serving()
        except BaseException:
            self.stop_listening()
            raise

    def stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def drain(self) -> None:
        """Take nothing new; what is open goes on."""
        self.stop_listening()
        self.inbound.drain()

    async def finished(self) -> None:
        """When no connection of this pod is open."""
        await self._outbound.finished()
        await self.inbound.finished()

    async def close(self) -> None:
        """Close the listeners and cut every connection: both apps of each see a FIN."""
        self.stop_listening()
        await self._outbound.close()
        await self.inbound.close()
        os.close(self.netns)
