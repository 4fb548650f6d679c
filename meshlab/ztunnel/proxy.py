"""One pod of this node: its listeners, and what is behind them."""

from __future__ import annotations

import os

from meshlab.model.ambient import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import sockets
from meshlab.proxykit.listener import Listener
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.outbound import Outbound


class PodProxy:
    """Serves one pod, from ``start`` to ``close``."""

    def __init__(self, pod: ZdsPod, netns: int, inbound: Inbound, outbound: Outbound) -> None:
        self.pod = pod
        self.netns = netns
        """A descriptor of the pod's netns, which is ours to close."""
        self.inbound = inbound
        self.outbound = outbound
        self._listeners: list[Listener] = []

    @property
    def inode(self) -> tuple[int, int]:
        """What tells one netns from another."""
        status = os.fstat(self.netns)
        return status.st_dev, status.st_ino

    def start(self) -> None:
        """Have all three listeners.

        Raises:
            OSError: one cannot be bound; none is left open.
        """
        accepts = {
            OUTBOUND_PORT: self.outbound.accept,
            PLAINTEXT_PORT: self.inbound.accept_plain,
            HBONE_PORT: self.inbound.accept_hbone,
        }
        try:
            for port, accept in accepts.items():
                self._listeners.append(Listener(sockets.listen_in(self.netns, port), accept))
        except BaseException:
            self.stop_listening()
            raise

    def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    def drain(self) -> None:
        """Take nothing new; what is open goes on, and what waits in a queue of the kernel's is taken as well."""
        for listener in self._listeners:
            listener.retire()
        self.inbound.drain()

    async def finished(self) -> None:
        """When no connection of this pod is open."""
        for listener in self._listeners:
            await listener.settled()
        await self.outbound.finished()
        await self.inbound.finished()

    async def close(self) -> None:
        """Close the listeners and cut every connection: both apps of each see a FIN."""
        self.stop_listening()
        await self.outbound.close()
        await self.inbound.close()
        os.close(self.netns)
