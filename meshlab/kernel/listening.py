"""Who listens in a netns: asked of the kernel by ``sock_diag``, so that no program notices that it was asked.

/proc/net/tcp6 would not do: it does not say whether a socket on ``::`` also takes IPv4.
Sources: man 7 sock_diag, include/uapi/linux/inet_diag.h
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshlab.kernel.netlink import NetlinkSocket, attributes, understood
from meshlab.model import Address

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN = 10
_INET_DIAG_SKV6ONLY = 11
_REQUEST = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states; the socket's identity is not given, so all are meant."""
_MESSAGE = struct.Struct("!4xH2x16s48x")
"""inet_diag_msg: local port and address."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that listens."""

    address: Address
    """``0.0.0.0`` or ``::`` for every address of its netns."""
    port: int
    only6: bool = False
    """A socket on ``::`` that takes no IPv4."""

    def takes(self, address: Address, port: int) -> bool:
        """Whether a connection to ``address`` and ``port`` comes to this socket."""
        if port != self.port:
            return False
        if not self.address.is_unspecified:
            return address == self.address
        return address.version == self.address.version or (address.version == 4 and not self.only6)


def listeners(sock: NetlinkSocket) -> tuple[Listener, ...]:
    """Every TCP socket that listens in the netns of ``sock``, which is of ``NETLINK_SOCK_DIAG``.

    Raises:
        KernelRefusedError: the kernel has no ``tcp_diag``.
    """
    return tuple(
        decode(body)
        for family in (socket.AF_INET, socket.AF_INET6)
        for body in sock.dump(_SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN))
    )


@understood()
def decode(body: bytes) -> Listener:
    """One ``inet_diag_msg``, with its attributes.

    Raises:
        ValueError: the bytes are no such message.
    """
    port, packed = _MESSAGE.unpack_from(body)
    if body[0] == socket.AF_INET:
        return Listener(IPv4Address(packed[:4]), port)
    address = IPv6Address(packed)
    only6 = dict(attributes(body[_MESSAGE.size :])).get(_INET_DIAG_SKV6ONLY, b"\0")[:1] != b"\0"
    return Listener(address.ipv4_mapped or address, port, only6)
