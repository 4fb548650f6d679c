"""The side of a splice that a coroutine reads and writes.

    socket or tunnel <-> Half <-- join --> Pipe <-> await read(), await send()

Flow control is the splice's: the other side is not read while much waits here, and ``send`` waits while the other side
takes no more bytes.
"""

from __future__ import annotations

import asyncio
from typing import cast

from meshlab.proxykit.splice import Half, join

_PIECE_BYTES = 1 << 16


class Pipe(Half):
    """One side of a splice, which is its own transport: what the other half writes to it can be read."""

    def __init__(self, half: Half) -> None:
        super().__init__()
        self.transport = cast("asyncio.Transport", self)
        self.is_open = True
        self._reader = asyncio.StreamReader(_PIECE_BYTES)
        self._reader.set_transport(half.transport)
        self._may_send = asyncio.Event()
        join(half, self)

    # --- the coroutine's side --------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return what has come; no bytes are the end."""
        return await self._reader.read(_PIECE_BYTES)

    async def send(self, data: bytes) -> None:
        """Write, and wait while the other side takes no more. What is sent to a side that is lost is dropped."""
        if data and self.peer.is_open:
            self.peer.transport.write(data)
            await self._may_send.wait()

    def finish(self) -> None:
        """Send the end."""
        self._ended = True
        self.peer.end()

    def leave(self) -> None:
        """Close the other side, once what was sent has left."""
        self.peer.close()

    # --- the splice's side -----------------------------------------------------------------------------------------

    def end(self) -> None:
        self._reader.feed_eof()

    def close(self) -> None:
        """Take notice that the other half is lost, or that both have ended."""
        self.is_open = False
        self._reader.feed_eof()
        self._may_send.set()

    # --- as a transport --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def pause_reading(self) -> None:
        self._may_send.clear()

    def resume_reading(self) -> None:
        self._may_send.set()
