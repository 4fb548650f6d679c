"""One TCP connection on the traffic loop: what has arrived and was not read yet, and how the connection ended.

Everything here runs on the loop's thread. No end of a connection is an exception: it is one word in ``closed_by``.

    refused       RST to the SYN                peer          FIN
    unreachable   no route, or ICMP said so     peer-reset    RST
    timeout       ETIMEDOUT                     us            this end closed or reset it

The word that comes first stays. After a FIN this end may still send, as TCP allows, until it closes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

from meshlab.errors import UsageError
from meshlab.model import Address

US = "us"
GONE = "the end of its pod"
PEER = "peer"
_UNREAD_BYTES = 4 << 20
"""How much may wait to be read before nothing more is taken from the socket."""
_LEAVE_S = 1.0
"""How long ``close`` waits until what was sent has left this end."""
_QUIET_ROUNDS = 3
"""Rounds of the loop in which nothing came, after which all that had arrived is known: select, read, call back."""
_WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "peer-reset",
    errno.ECONNABORTED: "peer-reset",
    errno.EPIPE: "peer-reset",  # Linux' word for a RST that came after a FIN
    errno.ETIMEDOUT: "timeout",
}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 seconds: close(2) then sends RST. Source: socket(7)"""


def word(error: OSError) -> str:
    """Return how a connection ended that the kernel reports ``error`` of."""
    return _WORDS.get(error.errno or 0, "unreachable")


def now_ns() -> int:
    """CLOCK_REALTIME, the clock of the captures."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


class Stream(asyncio.Protocol):
    """See the module. ``sock`` is unconnected and non-blocking; it belongs to the stream from here on."""

    def __init__(self, sock: socket.socket, ended: Callable[[], None]) -> None:
        self._sock = sock
        self._ended = ended
        """Called once, when the socket is closed."""
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Future[None] | None = None
        self._unread = bytearray()
        self._most_unread = _UNREAD_BYTES
        self._may_write = True
        self._half_closed = False
        self._changed = asyncio.Event()
        self.local: tuple[Address, int] | None = None
        self.closed_by = ""
        self.closed_at_ns = 0
        self.error = ""
        """The operating system's words, where there are some."""
        self.over = False
        """The socket is closed."""
        self.received = 0
        """Bytes."""

    # --- beginning and end -------------------------------------------------------------------------------------------

    async def connect(self, address: Address, port: int) -> None:
        """Connect; where that fails, ``closed_by`` says how."""
        target = (str(address), port)
        try:
            code = self._sock.connect_ex(target)
            host, own_port = self._sock.getsockname()[:2]  # now: after a refusal the kernel has forgotten the port
            self.local = (ip_address(host), own_port)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            self._connecting = asyncio.ensure_future(self._reach(target, under_way=bool(code)))
            await self._connecting
        except OSError as error:
            self._end(word(error), error.strerror or str(error))
        except asyncio.CancelledError:
            if not self.closed_by:
                raise  # it was not ``end`` that cancelled
        finally:
            self._connecting = None
            if self.closed_by and self._transport is None and not self.over:
                self._gone()

    async def _reach(self, target: tuple[str, int], *, under_way: bool) -> None:
        loop = asyncio.get_running_loop()
        if under_way:
            await loop.sock_connect(self._sock, target)
        await loop.create_connection(lambda: self, sock=self._sock)

    def end(self, by: str, error: str = "") -> None:
        """End the connection at once, for the reason ``by``; what was not sent yet is lost."""
        self._end(by, error)
        if self._transport is not None:
            self._transport.abort()
        elif self._connecting is not None:
            self._connecting.cancel()  # and closes the socket when the loop has let go of it
        elif not self.over:
            self._gone()

    def reset(self) -> None:
        """Send RST."""
        if not self.over:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.end(US)

    async def close(self) -> None:
        """Close this end, after what was sent has left it; after a second at the latest."""
        self._end(US)
        if self._transport is None:
            self.end(US)
            return
        self._transport.close()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self.wait(lambda: self.over)
        except TimeoutError:
            self._transport.abort()
            await self.wait(lambda: self.over)

    def half_close(self) -> None:
        """Send FIN behind what was sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._half_closed = True
            self._transport.write_eof()

    # --- bytes -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send, or queue for sending.

        Raises:
            UsageError: this end has said with ``half_close`` that it sends no more.
        """
        assert self._transport is not None, "only a connected stream is written to"
        if self._half_closed:
            raise UsageError("this end of the connection was half-closed: it can receive, and send no more")
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait until most of what was written is in the kernel's hands, or the connection has ended."""
        await self.wait(lambda: self._may_write or self.over)

    async def arrived(self, count: int) -> None:
        """Wait until ``count`` bytes can be read, or no more come."""
        self._most_unread = max(_UNREAD_BYTES, count)
        self._read_on()
        await self.wait(lambda: len(self._unread) >= count or bool(self.closed_by))

    async def arrived_line(self, most: int) -> None:
        """Wait until a line's end can be read, or so many bytes, or no more come."""
        await self.wait(lambda: b"\n" in self._unread or len(self._unread) >= most or bool(self.closed_by))

    def take(self, most: int | None = None) -> bytes:
        """Return what has arrived, of it at most so many bytes, and forget it."""
        data = bytes(self._unread[:most])
        del self._unread[: len(data)]
        self._read_on()
        return data

    @property
    def unread(self) -> int:
        """How many bytes have arrived and were not read."""
        return len(self._unread)

    @property
    def line_bytes(self) -> int:
        """How long the first unread line is, with its end; 0: it has none yet."""
        return self._unread.find(b"\n") + 1

    async def settle(self) -> None:
        """Take in what the kernel has already received."""
        quiet = 0
        while quiet < _QUIET_ROUNDS and not self.closed_by:
            before = self.received
            await asyncio.sleep(0)
            quiet = 0 if self.received != before else quiet + 1

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()

    async def wait(self, until: Callable[[], bool]) -> None:
        """Wait for what bytes, room or an end can bring."""
        while not until():
            self._changed.clear()
            await self._changed.wait()

    # --- asyncio's side ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.closed_by:  # it was ended while it was being made
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._unread += data
        if len(self._unread) >= self._most_unread and self._transport is not None:
            self._transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        self._end(PEER)
        return True  # this end may still send

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError):
            self._end(word(exc), exc.strerror or str(exc))
        self._end(US)
        self._gone()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._changed.set()

    def _read_on(self) -> None:
        if self._transport is not None and not self.over and len(self._unread) < self._most_unread:
            self._transport.resume_reading()

    def _end(self, by: str, error: str = "") -> None:
        if not self.closed_by:
            self.closed_by, self.closed_at_ns, self.error = by, now_ns(), error
        self._changed.set()

    def _gone(self) -> None:
        """The socket is closed, or is not needed any more."""
        self._sock.close()
        if not self.over:
            self.over = True
            self._ended()
        self._changed.set()
