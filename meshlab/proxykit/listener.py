"""A listener that loses nobody when it closes.

Linux resets what waits in the accept queue of a socket that is closed, also where a newer process listens on the same
port (SO_REUSEPORT): the kernel had chosen this queue when the SYN came. So the queue is emptied in the same turn of the
loop in which the socket is closed, and who was in it is served like anybody who came before. ``retire`` does more for
those who come in the microseconds between: it leaves new connections to the newer process first.

    listening --retire: new SYNs go to a newer process--> retiring (5 ms) --the queue is emptied--> closed
        `------------------------------ close: the queue is emptied ----------------------------------^

Source: man 2 accept, man 7 socket, https://docs.kernel.org/networking/ip-sysctl.html (tcp_migrate_req)
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from meshlab.proxykit import sockets
from meshlab.proxykit.tasks import Tasks

Factory = Callable[[], asyncio.BaseProtocol]
"""Makes the protocol of one connection."""

HANDSHAKE_S = 0.005
"""How long a handshake may take that had begun when the listener was retired; the kernel does not say when it ends."""
_PAUSE_S = 1.0
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of ``accept`` that leave the connection in the queue: it is tried again after a pause."""


class Listener:
    """Accepts from one listening socket, which it owns, until it is closed."""

    def __init__(self, sock: socket.socket, factory: Factory) -> None:
        self._sock = sock
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._connecting = Tasks()
        self._resting: asyncio.TimerHandle | None = None
        """Set while connections wait because the process has no descriptor left."""
        self._closed = asyncio.Event()
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept whoever waits, then refuse everybody. A second call does nothing."""
        if self._closed.is_set():
            return
        self._accept()
        if self._resting is not None:
            self._resting.cancel()
        self._closed.set()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def retire(self) -> None:
        """Leave new connections to a newer process, if there is one, and close when nobody can be on the way to us."""
        if not self._closed.is_set():
            sockets.steer_away(self._sock)
            self._loop.call_later(HANDSHAKE_S, self.close)

    async def settled(self) -> None:
        """Return when the listener is closed and each connection that it accepted has its protocol."""
        await self._closed.wait()
        await self._connecting.finished()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._rest()
                    return
                continue  # it was lost while it waited
            connection.setblocking(False)
            self._connecting.spawn(self._connect(connection))

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()  # it was lost before it had a transport

    def _rest(self) -> None:
        self._loop.remove_reader(self._sock)
        self._resting = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._sock, self._accept)
