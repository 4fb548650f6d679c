"""Two byte streams joined into one, each direction for itself: sockets, or a socket and a tunnel.

    app --bytes--> Half | Half --bytes--> tunnel          a full buffer on one side stops reading on the other
        <--bytes--      |      <--bytes--                 FIN on one side is FIN on the other; both: the end
                                                          a side that is lost: the other gets a FIN too, no RST

A ``Half`` is an asyncio protocol. It reads nothing before it is joined: what a refused app had sent is still in its
socket then, which is why the kernel resets it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

_BUFFER = bytearray(1 << 16)
_VIEW = memoryview(_BUFFER)
"""One for all: a loop reads and hands on before it reads again."""


class Half(asyncio.BufferedProtocol):
    """One side of a splice."""

    def __init__(self, on_open: Callable[[Half], object] | None = None) -> None:
        self.transport: asyncio.Transport
        self.peer: Half
        self.received_bytes = 0
        self.is_open = False
        self.writable = True
        """This side takes more bytes. It is kept up to date before the join as well, which then asks for it."""
        self._on_open = on_open
        self._ended = False
        self._ending = False
        self._joined: asyncio.Future[None] | None = None

    @property
    def joined(self) -> bool:
        return self._joined is not None

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True
        # Not at once: up to Python 3.11.3 asyncio adds its reader after this, paused or not.
        asyncio.get_running_loop().call_soon(self._wait_to_be_joined)
        if self._on_open:
            self._on_open(self)

    def _wait_to_be_joined(self) -> None:
        if not self.joined:
            self.transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_VIEW[:nbytes]))

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the FIN on, and stay open for what the other side has still to say."""
        self._ended = True
        self.peer.end()
        if self.peer._ended:
            self.close()
            self.peer.close()
        return True

    def pause_writing(self) -> None:
        self.writable = False
        if self.joined and not self.peer._ended:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        if self._ending:
            asyncio.get_running_loop().call_soon(self._write_eof)
        if self.joined and self.peer.is_open and not self.peer._ended:  # else its end would be read again
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._joined is None:
            return
        self.peer.close()
        if not self.peer.is_open and not self._joined.done():
            self._joined.set_result(None)

    # --- the splice's side -----------------------------------------------------------------------------------------

    def end(self) -> None:
        """No more is written to this side: its FIN leaves behind what still waits.

        asyncio would send it by itself, and fail where a RST has come at that moment. So it is told when all has left,
        and never in the middle of its own writing.
        """
        if not self.is_open or self.transport.is_closing():
            return
        self._ending = True
        if self.transport.get_write_buffer_size() == 0:
            asyncio.get_running_loop().call_soon(self._write_eof)
        else:
            self.transport.set_write_buffer_limits(high=0)

    def close(self) -> None:
        """Let go of this side, once what was written has left."""
        if self.is_open:
            self._write_eof()
            self.transport.close()

    def _write_eof(self) -> None:
        if self._ending and self.is_open and not self.transport.is_closing():
            self._ending = False
            with contextlib.suppress(OSError):  # the RST is read next
                self.transport.write_eof()


def join(one: Half, other: Half) -> asyncio.Future[None]:
    """Let bytes pass between two halves; the future is done when both are lost.

    What happened to a half before the join counts: what it received is passed on, also if it is lost by now, and where
    the other side takes no more bytes it is not read.
    """
    joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for half, peer in ((one, other), (other, one)):
        half.peer, half._joined = peer, joined
    for half, peer in ((one, other), (other, one)):
        if peer.writable or not half.is_open:
            half.transport.resume_reading()
        else:
            half.transport.pause_reading()
        if not half.is_open:
            peer.close()
    if not one.is_open and not other.is_open and not joined.done():
        joined.set_result(None)
    return joined
