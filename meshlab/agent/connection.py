"""One node proxy's ZDS connection: the packets of a session, with descriptors, over its socket. It never blocks."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from meshlab.errors import ProtocolError
from meshlab.kernel.channel import close_all, descriptors
from meshlab.protocols.zds import (
    MAX_PACKET_BYTES,
    Acknowledged,
    AgentEffect,
    AgentSession,
    Refused,
    Removed,
    SendPacket,
    Synced,
    ZdsPod,
    describe_answer,
    describe_request,
)

Note = Callable[[dict[str, Any]], None]
_ANSWER_TIMEOUT_S = 5.0
"""How long istio-cni waits for an answer before it drops the connection."""


class Connection:
    """A session and its socket. Methods return what happened; they raise ``ProtocolError`` when it is over."""

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        pods: Iterable[ZdsPod],
        netns_of: Callable[[str], int],
        note: Note,
    ) -> None:
        sock.setblocking(False)
        self.number = number
        self.pid = _pid_of(sock)
        """The process id of the proxy in the lab's pid namespace."""
        self.uids: set[str] = set()
        """The pods that the proxy has acknowledged, and not been rid of since."""
        self.session = AgentSession(pods)
        self.answer_due: float | None = None
        """When the proxy must have answered; ``None`` while nothing is outstanding."""
        self._sock = sock
        self._netns_of = netns_of
        self._note = note
        self._greeted = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def add(self, pod: ZdsPod, now: float) -> list[AgentEffect]:
        return self._perform(self.session.add(pod), now)

    def remove(self, uid: str, now: float) -> list[AgentEffect]:
        return self._perform(self.session.remove(uid), now)

    def receive(self, now: float) -> list[AgentEffect]:
        """Take one packet.

        Raises:
            ProtocolError: it ended, or broke the protocol.
        """
        packet = self._read()
        self._note({"k": "zds-from-ztunnel", **self._packet(packet, 0, self._described(packet))})
        effects = self.session.receive(packet)
        self._greeted = True
        self.answer_due = None
        return self._perform(effects, now)

    def close(self) -> None:
        self._note({"k": "zds-close", "conn": self.number})
        self._sock.close()

    def _read(self) -> bytes:
        try:
            packet, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(64))
        except OSError as error:
            raise ProtocolError(f"the connection is lost: {error}") from error
        received = descriptors(ancillary)
        close_all(received)
        if received or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(f"a packet of more than {MAX_PACKET_BYTES} bytes, or with descriptors")
        if not packet:
            raise ProtocolError("the proxy closed the connection")
        return packet

    def _perform(self, effects: list[AgentEffect], now: float) -> list[AgentEffect]:
        """Send what is to be sent, and return the rest."""
        for effect in effects:
            match effect:
                case SendPacket():
                    self._send(effect)
                    self.answer_due = now + _ANSWER_TIMEOUT_S
                case Synced():
                    self._note({"k": "zds-synced", "conn": self.number})
                case Acknowledged(uid):
                    self.uids.add(uid)
                case Removed(uid) | Refused(uid, _):
                    self.uids.discard(uid)
        return [effect for effect in effects if not isinstance(effect, SendPacket)]

    def _send(self, packet: SendPacket) -> None:
        fds = [] if packet.netns_of is None else [self._netns_of(packet.netns_of)]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._note({"k": "zds-to-ztunnel", **self._packet(packet.data, len(fds), describe_request(packet.data))})
        try:
            self._sock.sendmsg([packet.data], control)
        except OSError as error:
            raise ProtocolError(f"the connection is lost: {error}") from error

    def _described(self, packet: bytes) -> dict[str, Any]:
        try:
            return describe_answer(packet, greeted=self._greeted)
        except ProtocolError:
            return {}

    def _packet(self, packet: bytes, fds: int, described: dict[str, Any]) -> dict[str, Any]:
        return {"conn": self.number, "msg": described, "hex": packet.hex(), "nfds": fds}


def _pid_of(sock: socket.socket) -> int:
    """The process id of the process that connected (man 7 unix, SO_PEERCRED)."""
    pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
