"""The connection to the agent: which pods there are. The rules of the conversation are ``protocols.zds``'s.

    connect (backing off 10 ms to 15 s) --> hello --> request, ack, request, ack ... --> lost: connect again

The pods go on being served while the agent is away. Only then, and before the first snapshot, is this not ``synced``.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from typing import Protocol

from meshlab.errors import ProtocolError
from meshlab.kernel.channel import close_all, descriptors
from meshlab.protocols.zds import (
    MAX_PACKET_BYTES,
    Added,
    Deleted,
    Kept,
    ProxySession,
    SnapshotSent,
    UnreadableError,
    ZdsPod,
)

_FIRST_BACKOFF_S = 0.01
_MAX_BACKOFF_S = 15.0
_MAX_FDS = 8


class Pods(Protocol):
    """Who serves the pods."""

    async def add(self, pod: ZdsPod, netns: int) -> None:
        """Serve a pod; ``netns`` is the callee's.

        Raises:
            OSError: not now; the callee tries again by itself.
        """

    async def remove(self, uid: str) -> None: ...

    async def keep_only(self, uids: frozenset[str]) -> None: ...


class ZdsClient:
    def __init__(self, path: str, pods: Pods) -> None:
        self._path = path
        self._pods = pods
        self.synced = False
        """A snapshot was taken in on the connection that is open now."""

    async def run(self) -> None:
        """Talk to the agent for ever.

        Raises:
            ProtocolError: it said what has no place in the conversation; a ztunnel then ends.
        """
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, self._path)
                    backoff_s = _FIRST_BACKOFF_S
                    await self._converse(sock)
            except (OSError, UnreadableError):
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
            finally:
                self.synced = False
            await asyncio.sleep(backoff_s)

    async def _converse(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        session = ProxySession()
        await loop.sock_sendall(sock, session.hello())
        while True:
            packet, fds = await _receive(sock)
            if not packet:
                return
            try:
                error = await self._handle(session, packet, fds)
            except ProtocolError as broken:
                await loop.sock_sendall(sock, session.ack(str(broken)))
                raise
            await loop.sock_sendall(sock, session.ack(error))

    async def _handle(self, session: ProxySession, packet: bytes, fds: list[int]) -> str:
        """Do one request; why it could not be done."""
        try:
            event = session.receive(packet, len(fds))
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise
        match event:
            case Added(pod):
                try:
                    await self._pods.add(pod, fds[0])
                except OSError as error:
                    return f"failure to start proxy : {error}"
            case Deleted(uid):
                await self._pods.remove(uid)
            case SnapshotSent(uids):
                await self._pods.keep_only(uids)
                self.synced = True
            case Kept():
                pass  # it counts at the snapshot
        return ""


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors; empty at the end. One byte more than is allowed is read, so that it shows."""
    await _readable(sock)
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds = descriptors(ancillary)
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise UnreadableError("failure to read message : truncated descriptors")
    return data, fds


async def _readable(sock: socket.socket) -> None:
    """asyncio has no ``recvmsg``."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        loop.remove_reader(sock)
        readable.set_result(None)

    loop.add_reader(sock, ready)
    try:
        await readable
    finally:
        loop.remove_reader(sock)
