"""What the recorder keeps: blocks of packets in a memfd that the lab reads too, and the output of programs in memory.

Both have bounds. What does not fit is not kept, and both say so.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Sequence

from meshlab.kernel.recorder_requests import LogReport, LogSince
from meshlab.proofs.packets import BLOCK, GAP, LOST, RECORD

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, and FALLOC_FL_KEEP_SIZE, which it asks for
_PAGE = 4096
_READ_BYTES = 64 << 10
_HEAD_BYTES = 64 << 10
_TAIL_BYTES = 192 << 10
"""With the head, what a report of a log shows."""
_KEPT_BYTES = 4 << 20
"""What is kept for those who read a log as it grows."""
_ALARMS = (b"panicked at", b"Traceback (most recent call last)")
_MOST_ALARMS = 20
_ALARM_BYTES = 500

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Recording:
    """An append-only memfd of records (``proofs.packets``), whose beginning can be freed. Nothing reaches a disk."""

    def __init__(self, limit_bytes: int) -> None:
        self.fd = os.memfd_create("recording", os.MFD_CLOEXEC)
        self.limit_bytes = limit_bytes
        self.position = 0
        """Where the next record goes: how many bytes were recorded since the beginning."""
        self.released = 0

    @property
    def kept(self) -> int:
        return self.position - self.released

    def append(self, node: int, block: bytes | memoryview) -> None:
        """Keep a block, or, beyond the limit, the word that it was lost."""
        if self.kept + len(block) > self.limit_bytes:
            self._write([RECORD.pack(GAP, node, LOST.size), LOST.pack(len(block))])
        else:
            self._write([RECORD.pack(BLOCK, node, len(block)), block])

    def release(self, before: int) -> None:
        """Free what stands before this position; positions stay what they were."""
        self.released = max(self.released, min(before, self.position))
        pages = self.released // _PAGE * _PAGE
        if pages and _libc.fallocate(self.fd, _PUNCH_HOLE, 0, pages):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "free recorded blocks")

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        """A file in memory takes all of it or raises."""
        self.position += os.pwritev(self.fd, parts, self.position)


class Log:
    """The output of one program: its head, its last 4 MiB, and every line that looks like the end of it."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.total_bytes = 0
        self.alarms: list[str] = []
        """The first twenty lines with a panic or a traceback, wherever they stand."""
        self.more_alarms = 0
        """How many more there were."""
        self._head = bytearray()
        self._tail = bytearray()
        self._line = b""

    def read(self) -> bool:
        """Take what is there; False at the end of the pipe."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return True
        self._keep(data)
        return bool(data)

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    @property
    def kept_bytes(self) -> int:
        return len(self._head) + len(self._tail)

    def forget(self) -> None:
        """Keep the alarms and the number of bytes, and no text: whoever asks for it is told how much is lost."""
        self._head, self._tail = bytearray(), bytearray()

    def drain(self) -> None:
        """Take all that is there now."""
        before = self.total_bytes if self.fd < 0 else -1
        while before != self.total_bytes:
            before = self.total_bytes
            self.read()

    def report(self) -> LogReport:
        """Text, how many bytes came in all, how many of them are left out, and the alarms.

        A last line that has no end yet counts: a program that panics may never write another byte.
        """
        tail = self._last(min(_TAIL_BYTES, self.total_bytes - len(self._head)))
        lost = self.total_bytes - len(self._head) - len(tail)
        between = f"\n... {lost} bytes left out ...\n".encode() if lost else b""
        text = bytes(self._head) + between + tail
        return LogReport(
            text=text.decode(errors="replace"),
            bytes=self.total_bytes,
            lost=lost,
            alarms=[*self.alarms, *_alarms_in([self._line])][:_MOST_ALARMS],
            more_alarms=self.more_alarms,
        )

    def since(self, place: int) -> LogSince:
        """The whole lines from byte ``place`` on, how much of them is not kept any more, and where to go on."""
        wanted = max(0, self.total_bytes - place)
        data = self._last(wanted)
        whole = data.rfind(b"\n") + 1
        return LogSince(
            text=data[:whole].decode(errors="replace"),
            lost=wanted - len(data),
            next=self.total_bytes - (len(data) - whole),
        )

    def _last(self, size: int) -> bytes:
        """The last ``size`` bytes, or as many as are kept."""
        return bytes(self._tail[-size:]) if size > 0 else b""

    def _keep(self, data: bytes) -> None:
        self.total_bytes += len(data)
        self._watch(data)
        self._head += data[: _HEAD_BYTES - len(self._head)]
        self._tail += data  # not a list of pieces: a program may write two bytes at a time
        del self._tail[:-_KEPT_BYTES]

    def _watch(self, data: bytes) -> None:
        """Pipes cut lines where they like, so the end of the last line waits for the rest of it."""
        *whole, line = (self._line + data).split(b"\n")
        found = _alarms_in(whole)
        kept = found[: _MOST_ALARMS - len(self.alarms)]
        self.alarms += kept
        self.more_alarms += len(found) - len(kept)
        self._line = line[:_PAGE] if _alarms_in([line]) else line[-_PAGE:]


class EndedLogs:
    """The logs of programs that have ended. A lab may restart programs for hours, so it forgets the oldest texts."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: deque[Log] = deque()
        self._bytes = 0

    def add(self, log: Log) -> None:
        """Keep a log that nobody writes any more; the newest one always keeps its text."""
        self._kept.append(log)
        self._bytes += log.kept_bytes
        while self._bytes > self.limit_bytes and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._bytes -= oldest.kept_bytes
            oldest.forget()


def _alarms_in(lines: Sequence[bytes]) -> list[str]:
    return [line[:_ALARM_BYTES].decode(errors="replace") for line in lines if any(word in line for word in _ALARMS)]
