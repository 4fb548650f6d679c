"""JSON with file descriptors over a SOCK_SEQPACKET socket: how the processes of a lab talk.

One message is one packet: a header and the JSON. What does not fit travels in a memfd, and more descriptors than Linux
takes at once go ahead in packets of their own: a message has no size limit. Standard library only: netd uses it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_HEADER = struct.Struct("!L")
_WHOLE, _IN_MEMFD, _ONLY_FDS = range(3)
_INLINE_BYTES = 60_000
MAX_FDS = 253
"""SCM_MAX_FD of Linux: descriptors in one message."""


class ChannelClosedError(ConnectionError):
    """The other end is gone."""


def pair() -> tuple[Channel, Channel]:
    """Two connected channels; the second is meant to be inherited or sent."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(left), Channel(right)


class Channel:
    """One end. Not thread-safe: its owner serialises."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._ahead: list[int] = []
        """Descriptors of a message that is not here yet."""

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay open here.

        Raises:
            ChannelClosedError: the other end is gone.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        carried = list(fds)
        memfd = -1
        if len(body) > _INLINE_BYTES:
            memfd = os.memfd_create("message", os.MFD_CLOEXEC)
            with open(memfd, "wb", closefd=False) as file:
                file.write(body)
            carried.append(memfd)
            body = b""
        try:
            self.sock.settimeout(None)  # whatever the last ``receive`` left: a full buffer is no closed end
            while len(carried) > MAX_FDS:
                self._send(_ONLY_FDS, b"", carried[:MAX_FDS])
                del carried[:MAX_FDS]
            self._send(_WHOLE if memfd < 0 else _IN_MEMFD, body, carried)
        except OSError as error:
            if isinstance(error, ConnectionError) or self.sock.fileno() < 0:
                raise ChannelClosedError(str(error)) from error
            raise
        finally:
            if memfd >= 0:
                os.close(memfd)

    def _send(self, kind: int, body: bytes, fds: Sequence[int]) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([_HEADER.pack(kind), body], control)

    def receive(self, timeout_s: float | None = None) -> tuple[Any, list[int]]:
        """The next message and its descriptors (close-on-exec).

        Raises:
            ChannelClosedError: the other end is gone.
            TimeoutError: nothing came in ``timeout_s``.
            OSError: EMFILE, its descriptors found no room in this process.
        """
        kind, body = self._receive(timeout_s)
        while kind == _ONLY_FDS:
            kind, body = self._receive(timeout_s)
        received, self._ahead = self._ahead, []
        if kind == _IN_MEMFD:
            with open(received.pop(), "rb") as file:
                file.seek(0)
                return json.load(file), received
        return json.loads(body), received

    def _receive(self, timeout_s: float | None) -> tuple[int, bytes]:
        fds = array.array("i")
        try:
            self.sock.settimeout(timeout_s)
            data, ancillary, flags, _ = self.sock.recvmsg(
                _HEADER.size + _INLINE_BYTES, socket.CMSG_SPACE(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except (TimeoutError, BlockingIOError) as error:
            raise TimeoutError(f"no message within {timeout_s} s") from error
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not data:
            raise ChannelClosedError("end of file")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        self._ahead += fds
        if flags & socket.MSG_CTRUNC:
            self.close()  # what comes next cannot be told apart any more
            raise OSError(errno.EMFILE, "descriptors were lost on their way: `ulimit -n` is too low")
        return _HEADER.unpack_from(data)[0], data[_HEADER.size :]

    def close(self) -> None:
        for fd in self._ahead:
            os.close(fd)
        self._ahead.clear()
        with contextlib.suppress(OSError):
            self.sock.close()
