"""Whether the programs that pods run listen. The kernel is asked, since a program has to serve whoever connects.

A port that a pod declares is waited for. Over one family a program may listen while it does not over the other (on
``0.0.0.0`` only), and where a Service points nobody need listen at all: that is no fault of the mesh, so it is kept in
``Site.not_listening``, and whoever judges a call looks there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from meshlab.errors import LabError
from meshlab.kernel.listening import NETLINK_SOCK_DIAG, Listener, listeners
from meshlab.kernel.netlink import NetlinkSocket
from meshlab.lab.calls.names import ports_of
from meshlab.lab.site import Site
from meshlab.model import FAMILIES, Family, Pod
from meshlab.plan.network import pod_netns

_PAUSE_S = 0.01


def wait_for_programs(site: Site, timeout_s: float) -> None:
    """Wait until every program of a pod's own listens where it should, and note where nobody does.

    Raises:
        LabError: nobody listens on a port that its pod declares, over no family.
    """
    deadline = time.monotonic() + timeout_s
    for pod in site.topology.mesh.pods:
        heard = _heard(site, pod, deadline) if pod.program is not None else _declared(pod)
        wanted = {(pod.key, port, family) for port in ports_of(site.topology.mesh, pod) for family in FAMILIES}
        site.not_listening |= wanted - {(pod.key, port, family) for port, family in heard}


def _declared(pod: Pod) -> set[tuple[int, Family]]:
    """The built-in echo listens on every port that its pod declares, and on no other."""
    return {(port.number, family) for port in pod.ports for family in FAMILIES}


def _heard(site: Site, pod: Pod, deadline: float) -> set[tuple[int, Family]]:
    """Where the program of ``pod`` listens, once it does on every port or cannot be waited for any longer."""
    wanted = set(ports_of(site.topology.mesh, pod))
    if not wanted:
        return set()
    netns = pod_netns(pod.key)
    with site.open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as sock:
        while True:
            heard = set(_served(listeners(NetlinkSocket(sock, netns)), pod, wanted))
            missing = wanted - {port for port, _ in heard}
            if not missing:
                return heard
            if _has_ended(site, pod) or time.monotonic() > deadline:
                break
    if declared := sorted(missing & {port.number for port in pod.ports}):
        ports = ", ".join(map(str, declared))
        raise LabError(f"{pod.key} does not listen on {ports}: {site.programs.why_gone(pod.key)}")
    return heard


def _served(found: tuple[Listener, ...], pod: Pod, wanted: set[int]) -> Iterator[tuple[int, Family]]:
    for port in wanted:
        for family in FAMILIES:
            if any(listener.takes(pod.address(family), port) for listener in found):
                yield port, family


def _has_ended(site: Site, pod: Pod) -> bool:
    """Whether the pod's program is gone; it is given a moment to end or to get on."""
    try:
        site.sandbox.wait_exit(site.programs.by_name[pod.key].pid, _PAUSE_S)
    except TimeoutError:
        return False
    return True
