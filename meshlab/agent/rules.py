"""The in-pod rules of one pod: written through sockets that are opened inside it, and read back."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import TypeVar

from meshlab.errors import KernelRefusedError
from meshlab.kernel.namespaces import open_socket_in
from meshlab.kernel.netlink import NETLINK_ROUTE, NetlinkSocket, RouteSocket
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.kernel.nftables import NftSocket
from meshlab.plan import nft
from meshlab.plan.redirect import Redirection

_Socket = TypeVar("_Socket", bound=NetlinkSocket)


def write(netns: int, name: str, redirection: Redirection) -> None:
    """Write the rules into ``netns`` and make sure that the kernel holds them, and not something like them.

    Raises:
        KernelRefusedError: the kernel refused them.
        ValueError: what it gives back is not what was written.
    """
    with _opened(netns, name, NETLINK_ROUTE, RouteSocket) as route:
        for change in redirection.routing:
            try:
                route.apply([change])
            except KernelRefusedError as error:
                if error.errno != errno.EEXIST:  # from an enrolment before this one
                    raise
    with _opened(netns, name, NETLINK_NETFILTER, NftSocket) as rules:
        rules.apply(redirection.ruleset)
        found = rules.read(redirection.ruleset)
    if found != redirection.ruleset:
        raise ValueError(f"the kernel holds other rules than were written:\n{nft.text(found)}")


def read(netns: int, name: str, redirection: Redirection) -> nft.Ruleset:
    """The tables of ``redirection`` as they are in ``netns`` now; those that are absent are left out."""
    with _opened(netns, name, NETLINK_NETFILTER, NftSocket) as rules:
        return rules.read(redirection.ruleset)


@contextlib.contextmanager
def _opened(netns: int, name: str, protocol: int, kind: type[_Socket]) -> Iterator[_Socket]:
    with open_socket_in(netns, socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        yield kind(sock, name)
