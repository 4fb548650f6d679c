"""What Linux answers over netlink. It is trusted; but what it tells of has names and addresses of strangers' making."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from benchmarks.parsers.parser import Parser, repeated
from meshlab.kernel import listening
from meshlab.kernel import nft_wire as wire
from meshlab.kernel.arrivals import ArrivalsSocket
from meshlab.kernel.netlink import NLMSG_ERROR, Answer, Message, NetlinkSocket, attribute, framed, string
from meshlab.kernel.nft_decode import decode
from meshlab.kernel.nft_encode import nested
from meshlab.kernel.nftables import encode
from meshlab.plan.redirect import inpod_rules


class _Sock(socket.socket):
    """A netlink socket on which one packet waits."""

    def __init__(self, packet: bytes) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._packets = [packet]

    def setsockopt(self, *_: object) -> None:
        """There is no kernel that it could be told to."""

    def sendto(self, *_: object) -> int:
        return 0

    def recv(self, *_: object) -> bytes:
        if not self._packets:
            raise BlockingIOError
        return self._packets.pop()


def _answers(data: bytes) -> Sequence[Answer]:
    with _Sock(data) as sock:
        return NetlinkSocket(sock, "pod:shop/a").exchange(b"")


def _refusal() -> tuple[bytes, ...]:
    """The error of a message with the kernel's own words."""
    head = struct.pack("=i", -22) + bytes(16)
    return (framed([Message(NLMSG_ERROR, 0x300, head + string(1, "no such table"))]),)


def _read_rules(data: bytes) -> None:
    decode((answer.kind, answer.body) for answer in _answers(data))


class _Arrivals(ArrivalsSocket):
    def __init__(self, sock: socket.socket, body: bytes) -> None:
        super().__init__(sock, "pod:shop/a")
        self._body = body

    def dump(self, kind: int, body: bytes, timeout_s: float = 1.0) -> list[bytes]:
        return [self._body]


def _count(data: bytes) -> None:
    with _Sock(b"") as sock:
        _Arrivals(sock, data).counts()


def _elements() -> tuple[bytes, ...]:
    counter = nested(7, string(1, "counter") + nested(2, attribute(1, bytes(8)) + attribute(2, struct.pack("!Q", 3))))
    key = nested(1, attribute(1, bytes([10, 0, 0, 1]) * 4 + struct.pack("!HH", 80, 0)))
    return (wire.HEAD + nested(3, nested(1, key + counter)),)


def _sockets() -> tuple[bytes, ...]:
    rest = struct.pack("!H2x16s48x", 8080, bytes(16)) + attribute(11, b"\1")
    return tuple(bytes([family, 10, 0, 0]) + rest for family in (socket.AF_INET, socket.AF_INET6))


PARSERS = (
    Parser(
        name="netlink answers",
        run=_answers,
        seeds=lambda: (*_refusal(), _refusal()[0] * 2),
        documented=(ValueError,),
        shapes={"small messages": repeated(b"", struct.pack("=IHHII", 16, 3, 0, 0, 0))},
    ),
    Parser(
        name="nft rules",
        run=_read_rules,
        seeds=lambda: (framed(encode(inpod_rules().ruleset)),),
        documented=(ValueError,),
        share=0.3,
    ),
    Parser(name="nft counters", run=_count, seeds=_elements, documented=(ValueError,)),
    Parser(name="listening sockets", run=listening.decode, seeds=_sockets, documented=(ValueError,)),
)
