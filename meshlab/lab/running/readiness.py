"""Whether the programs that pods run listen. The kernel is asked, since a program has to serve whoever connects.

A port that a pod declares is waited for. Over one family a program may listen while it does not over the other (on
``0.0.0.0`` only), and where a Service points nobody need listen at all: that is no fault of the mesh, so it is kept in
``Site.not_listening``, and whoever judges a call looks there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence

from meshlab.errors import LabError
from meshlab.kernel.listening import NETLINK_SOCK_DIAG, Listener, listeners
from meshlab.kernel.netlink import NetlinkSocket
from meshlab.lab.calls.names import ports_of
from meshlab.lab.running.programs import Program
from meshlab.lab.site import Site
from meshlab.model import FAMILIES, Family, InstanceId, Mesh, Pod
from meshlab.plan.netns import pod_netns

_PAUSE_S = 0.01


def wait_for_programs(site: Site, pods: Sequence[Pod], mesh: Mesh, deadline: float) -> None:
    """Wait until every program of these pods listens where it should.

    Args:
        mesh: whose Services lead to ports of the pods.
        deadline: by ``time.monotonic``.

    Raises:
        LabError: nobody listens on a port that its pod declares, over no family.
    """
    for pod in pods:
        heard = _heard(site, pod, mesh, deadline)
        missing = {port.number for port in pod.ports} - {port for port, _ in heard}
        if missing:
            ports = ", ".join(map(str, sorted(missing)))
            raise LabError(f"{pod.key} does not listen on {ports}: {site.programs.why_gone(_newest(site, pod).name)}")


def note_who_listens(site: Site, mesh: Mesh) -> None:
    """Note where nobody listens now, of all pods: where one declares a port, or a Service leads to one."""
    silent: set[tuple[str, int, Family]] = set()
    for pod in mesh.pods:
        heard = _declared(pod) if pod.program is None else _heard(site, pod, mesh, deadline=0)
        silent |= {
            (pod.key, port, family)
            for port in ports_of(mesh, pod)
            for family in FAMILIES
            if (port, family) not in heard
        }
    site.not_listening = silent


def _declared(pod: Pod) -> set[tuple[int, Family]]:
    """The built-in echo listens on every port that its pod declares, and on no other."""
    return {(port.number, family) for port in pod.ports for family in FAMILIES}


def _heard(site: Site, pod: Pod, mesh: Mesh, deadline: float) -> set[tuple[int, Family]]:
    """Where the program of ``pod`` listens, once it does on every port or cannot be waited for any longer."""
    wanted = set(ports_of(mesh, pod))
    if not wanted:
        return set()
    netns = pod_netns(pod.key)
    with site.open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as sock:
        while True:
            heard = set(_served(listeners(NetlinkSocket(sock, netns)), pod, wanted))
            missing = wanted - {port for port, _ in heard}
            if not missing:
                return heard
            if time.monotonic() > deadline or _has_ended(site, pod):
                return heard


def _served(found: tuple[Listener, ...], pod: Pod, wanted: set[int]) -> Iterator[tuple[int, Family]]:
    for port in wanted:
        for family in FAMILIES:
            if any(listener.takes(pod.address(family), port) for listener in found):
                yield port, family


def _has_ended(site: Site, pod: Pod) -> bool:
    """Whether the pod's program is gone; it is given a moment to end or to get on."""
    try:
        site.sandbox.wait_exit(_newest(site, pod).pid, _PAUSE_S)
    except TimeoutError:
        return False
    return True


def _newest(site: Site, pod: Pod) -> Program:
    program = site.programs.newest(InstanceId("program", pod.key))
    assert program is not None, "it was started"
    return program
