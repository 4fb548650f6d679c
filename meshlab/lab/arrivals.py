"""How many connections came to pods that run programs of their own. The built-in echo counts its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from meshlab.kernel.arrivals import ArrivalsSocket
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.lab.site import Site
from meshlab.model import Address, Pod
from meshlab.plan.network import pod_netns


def watch(site: Site) -> None:
    """Begin to count in every pod that runs a program of its own; before its link opens, so that none is missed."""
    for pod in site.topology.mesh.pods:
        if pod.program is not None:
            with _opened(site, pod) as arrivals:
                arrivals.watch()


def arrived(site: Site, pod: Pod) -> dict[tuple[Address, int], int]:
    """(client's address, port) -> connections since the lab was built; nothing for a pod of the built-in echo.

    A connection is counted by its SYN, when that is about to reach the pod's TCP: from another pod, from the pod itself
    (also the node proxy's, which it makes from the client's address), to an open port and to a closed one.
    """
    if pod.program is None:
        return {}
    with _opened(site, pod) as arrivals:
        return arrivals.counts()


@contextmanager
def _opened(site: Site, pod: Pod) -> Iterator[ArrivalsSocket]:
    netns = pod_netns(pod.key)
    with site.open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        yield ArrivalsSocket(sock, netns)
