"""A TPACKET_V3 receive ring over an AF_PACKET socket: every packet of every link of a netns, both directions.

The socket is made in its netns by netd (protocol 0, so nothing comes before the ring stands) and works from anywhere.
Blocks are handed out as they are; whoever takes them gives each back before the kernel has filled all others.

Source: Documentation/networking/packet_mmap.rst of Linux; packet(7).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Iterator

_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_FRAME_BYTES = 2048
_BLOCK_BYTES = 256 << 10
_BLOCKS = 32
_RETIRE_MS = 4
"""A block that is not full is handed over after this: 2.8 ms from wire to reader."""

_STATUS = struct.Struct("=I")
_STATUS_AT = 8
_USED = struct.Struct("=I")
_USED_AT = 20
_KERNELS = 0
_OURS = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """One ring. It owns the socket."""

    def __init__(self, fd: int, *, blocks: int = _BLOCKS) -> None:
        self.sock = socket.socket(fileno=fd)
        self.packets = 0
        """Seen by the kernel so far, as of the last ``statistics``."""
        self.drops = 0
        self._blocks = blocks
        self._next = 0
        self.sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        size = blocks * _BLOCK_BYTES
        request = struct.pack("=7I", _BLOCK_BYTES, blocks, _FRAME_BYTES, size // _FRAME_BYTES, _RETIRE_MS, 0, 0)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._memory)
        _bind_all_links(fd)

    def fileno(self) -> int:
        return self.sock.fileno()

    def ready(self) -> Iterator[memoryview]:
        """The used bytes of each block that is full or timed out; a block goes back when the next one is asked for."""
        for _ in range(self._blocks):
            at = self._next * _BLOCK_BYTES
            if not _STATUS.unpack_from(self._view, at + _STATUS_AT)[0] & _OURS:
                return
            used = _USED.unpack_from(self._view, at + _USED_AT)[0]
            yield self._view[at : at + used]
            _STATUS.pack_into(self._view, at + _STATUS_AT, _KERNELS)
            self._next = (self._next + 1) % self._blocks

    def statistics(self) -> None:
        """Bring ``packets`` and ``drops`` up to date (the kernel's own counters start again at each read)."""
        packets, drops, _ = struct.unpack("=III", self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12))
        self.packets += packets
        self.drops += drops

    def close(self) -> None:
        self._view.release()
        self._memory.close()
        self.sock.close()


def _bind_all_links(fd: int) -> None:
    """bind(2) to ifindex 0, which CPython's own bind cannot say: it looks the name up (ENODEV)."""
    address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0, 0, 0, 0)
    if _libc.bind(fd, address, len(address)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "bind to all links")
