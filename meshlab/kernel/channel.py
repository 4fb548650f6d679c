"""JSON objects with file descriptors over a SOCK_SEQPACKET socket: how the processes of a lab talk.

One message is one packet: a header and the JSON. What does not fit travels in a memfd, and more descriptors than Linux
takes at once go ahead in packets of their own. What comes is not trusted: an end that sends anything else is lost.

    send --room--> socket                        take <-- what is here now, or nothing
         --none--> queue --flush, when writable--> socket     receive <-- waits, with a deadline

``send`` never waits. What finds no room is queued and goes out when the socket is writable again, so a process that
serves many is never stopped by one that does not read. The queue has a bound; at the bound the channel is closed, and
whoever sends is told that the other end does not read.

Standard library only: netd uses it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import selectors
import socket
import stat
import struct
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_HEADER = struct.Struct("!L")
_WHOLE, _IN_MEMFD, _ONLY_FDS = range(3)
_INLINE_BYTES = 60_000
MAX_FDS = 253
"""SCM_MAX_FD of Linux: descriptors in one message."""
UNSENT_LIMIT_BYTES = 64 << 20
"""An end that leaves more than this unread is taken for lost."""
MESSAGE_LIMIT_BYTES = 256 << 20
"""The largest message that is read: a memfd of any size costs its sender nothing, and its reader memory."""


_LONGEST_WAIT_S = 86_400.0
"""A selector cannot wait for ever: a request that asks for longer waits for a day."""


def wait_s(timeout_s: float) -> float:
    """Return how many seconds to wait at most for a request that wants to wait so long."""
    return min(_LONGEST_WAIT_S, float(timeout_s))


class ChannelClosedError(ConnectionError):
    """The other end is gone, or does not read."""


class NoMessageError(ChannelClosedError):
    """The other end sent what is no message, so nothing that it sends can be made sense of."""


class _Packet(NamedTuple):
    kind: int
    body: bytes
    fds: tuple[int, ...]
    cost: int
    """Bytes that it holds while it is unsent, in a memfd too."""


def pair() -> tuple[Channel, Channel]:
    """Two connected channels; the second is meant to be inherited or sent."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(left), Channel(right)


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among the ancillary data that ``recvmsg`` gave; they are the caller's to close."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is not open any more does not keep the others open."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Channel:
    """One end. Any thread may send; one thread at a time receives and flushes."""

    def __init__(self, sock: socket.socket, unsent_limit_bytes: int = UNSENT_LIMIT_BYTES) -> None:
        self.sock = sock
        self.on_unsent: Callable[[], None] | None = None
        """Called when something was queued: whoever has a loop waits for room there and then calls ``flush``."""
        self._unsent: deque[_Packet] = deque()
        self._unsent_bytes = 0
        self._unsent_limit_bytes = unsent_limit_bytes
        self._sending = allocate_lock()
        self._ahead: list[int] = []
        """Descriptors of a message that is not here yet."""

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self.sock.fileno()

    # --- sending ---

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message, or queue it where there is no room; the descriptors stay open here.

        Raises:
            ChannelClosedError: the other end is gone, or has left too much unread.
            ValueError: it is larger than a message may be.
        """
        packets, memfd = _packets(json.dumps(message, separators=(",", ":")).encode(), fds)
        try:
            with self._sending:
                # Only a message of one packet is sent from here: cut by Ctrl-C between two, it would never end.
                if len(packets) == 1 and not self._unsent and self._wrote(packets[0]):
                    return
                self._queue(packets)
        finally:
            if memfd >= 0:
                os.close(memfd)
        (self.on_unsent or self.flush)()

    def flush(self) -> None:
        """Write what there is room for.

        Raises:
            ChannelClosedError: the other end is gone.
        """
        with self._sending:
            while self._unsent and self._wrote(self._unsent[0]):
                packet = self._unsent.popleft()
                self._unsent_bytes -= packet.cost
                close_all(packet.fds)

    @property
    def unsent(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unsent)

    def _wrote(self, packet: _Packet) -> bool:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", packet.fds))] if packet.fds else []
        try:
            self.sock.sendmsg([_HEADER.pack(packet.kind), packet.body], control, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if isinstance(error, ConnectionError) or self.sock.fileno() < 0:
                raise ChannelClosedError(str(error)) from error
            raise
        return True

    def _queue(self, packets: Iterable[_Packet]) -> None:
        if self.sock.fileno() < 0:
            raise ChannelClosedError("it was closed here")
        kept = [packet._replace(fds=tuple(map(os.dup, packet.fds))) for packet in packets]
        self._unsent_bytes += sum(packet.cost for packet in kept)
        self._unsent.extend(kept)
        if self._unsent_bytes > self._unsent_limit_bytes:
            waiting = self._unsent_bytes
            self.close()
            raise ChannelClosedError(f"the other end does not read: {waiting} bytes wait for it")

    # --- receiving ---

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """Wait for the next message, and write meanwhile what was queued; its descriptors are close-on-exec.

        Raises:
            ChannelClosedError: the other end is gone, or sent what is no message.
            TimeoutError: nothing came in ``timeout_s``.
            OSError: EMFILE, its descriptors found no room in this process.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self.take()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no message within {timeout_s} s")
            self._wait(left)
        return message

    def take(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, or None while it is not here, or not whole.

        Raises:
            ChannelClosedError, OSError: as ``receive``.
        """
        while (packet := self._read()) is not None:
            kind, body = packet
            if kind == _ONLY_FDS:
                continue
            received, self._ahead = self._ahead, []
            try:
                return _message(kind, body, received), received
            except BaseException:
                close_all(received)
                raise
        return None

    def _wait(self, timeout_s: float | None) -> None:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for _, events in poll.poll(None if timeout_s is None else timeout_s * 1000):
            if events & select.POLLOUT:
                self.flush()

    def _read(self) -> tuple[int, bytes] | None:
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                _HEADER.size + _INLINE_BYTES, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not data:
            raise ChannelClosedError("end of file")
        self._ahead += descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            self._forget_ahead()
            self.sock.shutdown(socket.SHUT_RD)  # what comes next cannot be told apart any more; last words can be sent
            raise OSError(errno.EMFILE, "descriptors were lost on their way: `ulimit -n` is too low")
        if len(data) < _HEADER.size:
            raise NoMessageError(f"a packet of {len(data)} bytes")
        return _HEADER.unpack_from(data)[0], data[_HEADER.size :]

    # --- loops ---

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Let ``selector``, where this channel is registered, wait for room as long as something is unsent."""
        key = selector.get_key(self)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if key.events != events:
            selector.modify(self, events, key.data)

    def attach(
        self, loop: AbstractEventLoop, received: Callable[[dict[str, Any], list[int]], None], ended: Callable[[], None]
    ) -> Callable[[], None]:
        """Let an asyncio loop read and write: ``received`` gets each message, ``ended`` is called at the end.

        Returns a function that ends this; what is sent afterwards goes out if there is room.
        """
        fd = self.fileno()

        def readable() -> None:
            try:
                if (message := self.take()) is not None:
                    received(*message)
            except ChannelClosedError:
                ended()

        def writable() -> None:
            try:
                self.flush()
            except ChannelClosedError:
                ended()
            if not self._unsent:
                loop.remove_writer(fd)

        def detach() -> None:
            loop.remove_reader(fd)
            loop.remove_writer(fd)
            self.on_unsent = None

        loop.add_reader(fd, readable)
        self.on_unsent = lambda: loop.add_writer(fd, writable)
        return detach

    # --- the end ---

    def close(self) -> None:
        """Close this end; what is unsent is thrown away."""
        self._forget_ahead()
        while self._unsent:
            close_all(self._unsent.popleft().fds)
        self._unsent_bytes = 0
        with contextlib.suppress(OSError):
            self.sock.close()

    def _forget_ahead(self) -> None:
        close_all(self._ahead)
        self._ahead.clear()


def _message(kind: int, body: bytes, fds: list[int]) -> dict[str, Any]:
    """What a packet says; the descriptor that holds it, where it is in a memfd, is taken from the end of ``fds``."""
    try:
        if kind not in {_WHOLE, _IN_MEMFD}:
            raise ValueError(f"a packet of kind {kind}")
        message = json.loads(_body_of(fds.pop()) if kind == _IN_MEMFD else body)
    except (OSError, LookupError, ValueError, RecursionError) as error:
        raise NoMessageError(f"it sent what is no message: {error}") from error
    if not isinstance(message, dict):
        raise NoMessageError(f"it sent what is no message: a {type(message).__name__}")
    return message


def _body_of(memfd: int) -> bytes:
    """All of a memfd, which is closed. Whoever sent it may have sent a pipe, which has no end."""
    try:
        status = os.fstat(memfd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MESSAGE_LIMIT_BYTES:
            raise ValueError(f"a file of mode {status.st_mode:o} and {status.st_size} bytes")
        return os.pread(memfd, status.st_size, 0)
    finally:
        os.close(memfd)


def _packets(body: bytes, fds: Sequence[int]) -> tuple[list[_Packet], int]:
    """A message as packets, and the memfd that holds its body, where there is one (-1: none)."""
    carried, memfd, cost = list(fds), -1, _HEADER.size + len(body)
    if len(body) > MESSAGE_LIMIT_BYTES:
        raise ValueError(f"a message of {len(body)} bytes, more than {MESSAGE_LIMIT_BYTES}")
    if len(body) > _INLINE_BYTES:
        memfd = os.memfd_create("message", os.MFD_CLOEXEC)
        with open(memfd, "wb", closefd=False) as file:
            file.write(body)
        carried.append(memfd)
        body = b""
    ahead = range(0, max(0, len(carried) - 1) // MAX_FDS * MAX_FDS, MAX_FDS)
    packets = [_Packet(_ONLY_FDS, b"", tuple(carried[start : start + MAX_FDS]), _HEADER.size) for start in ahead]
    rest = tuple(carried[len(packets) * MAX_FDS :])
    packets.append(_Packet(_WHOLE if memfd < 0 else _IN_MEMFD, body, rest, cost))
    return packets, memfd
