"""Sockets in pods: listeners, connections, and the original destination of what was redirected.

Every socket carries the mark by which the rules in a pod know ztunnel's own traffic and let it pass. All are made with
IPPROTO_TCP, or asyncio would leave Nagle's algorithm on (40 ms an exchange).

Source: man 7 ip, man 7 ipv6, man 7 socket; the rules: https://istio.io/latest/docs/ambient/architecture/traffic-redirection/
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import functools
import random
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from meshlab.kernel.namespaces import open_socket_in
from meshlab.model.ambient import PROXY_MARK
from meshlab.protocols.hbone import Target

CONNECT_TIMEOUT_S = 10.0
BACKLOG = 1024
_NO_APPS_PORTS = range(16384, 32768)
"""Below those of Linux' ip_local_port_range, which is 32768 to 60999 in a new network namespace."""
_PORT_IS_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
_PORT_TRIES = 20
_SO_ORIGINAL_DST = 80
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68
_RETURN_CONSTANT = 0x06  # BPF_RET | BPF_K
_SOCK_FILTER = struct.Struct("=HBBI")
_SOCK_FPROG = struct.Struct("@HP")
_IP_TRANSPARENT = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_TRANSPARENT = 75
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def listen_in(netns: int, port: int) -> socket.socket:
    """A bound dual-stack socket; an older ztunnel may have the port at the same time (SO_REUSEPORT, upgrades)."""
    with _closed_on_error(open_socket_in(netns, socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROXY_MARK)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # ENOENT: nobody has been steered away from this port
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
    return sock


def steer_away(sock: socket.socket) -> None:
    """Have new connections to this port go to the second socket that listens there, which is a newer ztunnel's.

    The sockets of a port are numbered in the order in which they were bound, and those that follow one that is closed
    move up. A classic BPF program of one instruction chooses number 1 for every SYN. Where there is no such socket, the
    kernel takes no notice of the program. The newer ztunnel stays with it until another one listens.

    Source: man 7 socket (SO_ATTACH_REUSEPORT_CBPF)
    """
    program = array.array("B", _SOCK_FILTER.pack(_RETURN_CONSTANT, 0, 0, 1))
    address, _ = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, _SOCK_FPROG.pack(1, address))


async def connect_from(
    netns: int, target: Target, source: IPv4Address | IPv6Address | None = None, source_port: int = 0
) -> socket.socket:
    """Connect from a pod, as ``source`` where given: the rules in the pod bring the replies back to us.

    Raises:
        OSError: the kernel refused, or nobody answered in time.
    """
    family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
    with _closed_on_error(open_socket_in(netns, family, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROXY_MARK)
        if source is not None and source != target.address:
            _bind_foreign(sock, source, source_port)
        elif source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source_port))
        sock.connect_ex((str(target.address), target.port))  # within a machine done at once, so that nothing waits
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (str(target.address), target.port))
    return sock


async def connect_beside_apps(netns: int, target: Target, rng: random.Random) -> socket.socket:
    """Connect from a pod in plaintext, from a port that the kernel gives to none of the pod's apps.

    A connection to an address where nobody is leaves its entry in the pod's conntrack table, for two minutes. When an
    app then connects to the same address from the same port, its SYN belongs to that entry: rules for new connections
    do not see it, it is not redirected, and the app talks in plaintext to the pod that has come to the address.

    Source: man 7 ip (ip_local_port_range); Linux: net/netfilter/nf_conntrack_proto_tcp.c (120 s in SYN_SENT)

    Raises:
        OSError: the kernel refused, nobody answered in time, or no such port is free.
    """
    for tries_left in reversed(range(_PORT_TRIES)):
        try:
            return await connect_from(netns, target, source_port=rng.choice(_NO_APPS_PORTS))
        except OSError as error:
            if error.errno not in _PORT_IS_TAKEN or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _bind_foreign(sock: socket.socket, source: IPv4Address | IPv6Address, port: int) -> None:
    """Take an address that is not the pod's; port 0 is chosen at connect, for the whole four-tuple."""
    if source.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((str(source), port))


def original_destination(sock: Any) -> Target:
    """What a redirected connection was dialled to, also on a dual-stack socket (Linux: netfilter_ipv4.h).

    Raises:
        OSError: conntrack does not know the connection.
    """
    if target_of(sock.getpeername()).address.version == 4:
        raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        port, packed = _SOCKADDR_IN.unpack(raw)
    else:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        port, packed = _SOCKADDR_IN6.unpack(raw)
    return Target(ip_address(packed), port)


def target_of(sockaddr: Any) -> Target:
    """A Python socket address; IPv4 in IPv6's clothes is IPv4."""
    return Target(_address(sockaddr[0]), sockaddr[1])


@functools.lru_cache(maxsize=1024)
def _address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise
