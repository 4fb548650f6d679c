"""Asks every server of a lab what it counted: the echoes, and, for programs of pods' own, the kernel."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

from meshlab.apps.echo_requests import ReadReceived
from meshlab.kernel.arrivals import ArrivalsSocket
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.lab.calls.names import due_of, ports_of
from meshlab.lab.site import Site
from meshlab.lab.view import ViewForProofs
from meshlab.model import Address, Call, Mesh, Pod, PodPort
from meshlab.plan.netns import pod_netns
from meshlab.proofs.arrivals import Arrival, Arrivals, Kernel, surplus, unexplained
from meshlab.proofs.links import Wiring

_PATIENCE_S = 10.0


def arrived(
    lab: ViewForProofs, denied: Sequence[Call], made: Sequence[Call], busy: Collection[str] = ()
) -> dict[int, str]:
    """Number of each call of which more reached a server than should have -> what, as half a sentence.

    Args:
        denied: the calls of which nothing should have.
        made: all calls of that time, each of which should have made one connection at most.
        busy: the pods that call meanwhile, beside these calls: whose a connection of theirs is nobody can say, so that
            of what was denied to them only canaries count, and of what passes a waypoint as well.
    """
    if not made:
        return {}
    counted = lab.arrivals(denied, min(call.started_ns for call in made))
    wiring = lab.captures.wiring()
    found = beyond(lab.mesh, wiring, counted, made, busy)
    copied = {call.number: copies(lab.mesh, call) for call in made}
    for call in denied:
        ways = [way for way in due_of(lab.mesh, call).ways if not way.too_late]
        paths = [path for way in ways for path in way.kept_from or (way.path,)]
        shared = call.source in busy or (bool(busy) and any(len(path.legs) > 1 for path in paths))
        if not shared and (some := unexplained(counted, wiring, call, paths, made, copied)):
            found[call.number] = str(some[0])
        elif ways and call.number in counted.canaries:
            found[call.number] = "its canary reached a server"
    return found


def copies(mesh: Mesh, call: Call) -> list[PodPort]:
    """Where copies of a call may have gone."""
    if not any(rule.mirrors for route in mesh.routes for rule in route.rules):
        return []
    made = (copy for share in due_of(mesh, call).shares for copy in share.copies)
    return [way.path.server for copy in made for way in copy.ways]


def beyond(
    mesh: Mesh, wiring: Wiring, counted: Arrivals, made: Sequence[Call], busy: Collection[str] = ()
) -> dict[int, str]:
    """Number of a call -> a connection beyond those that the calls made, as half a sentence."""
    clients = [pod.key for pod in mesh.pods if pod.program is None and pod.key not in busy]
    more = surplus(counted, wiring, made, clients)
    return {
        number: f"the servers counted one connection more than calls were made: {one}" for number, one in more.items()
    }


def count(
    site: Site,
    meshes: Sequence[Mesh],
    calls: Sequence[Call],
    since_ns: int,
    before: Mapping[tuple[PodPort, Address], int],
) -> Arrivals:
    """What was counted from ``since_ns`` on.

    Args:
        meshes: those that were in effect since then, the one that is last.
        calls: those whose canaries are looked for.
        before: what the kernel had counted at that moment (``by_kernel``).
    """
    canaries = {call.canary.decode(): call.number for call in calls}
    echoes = list(site.peers("echo").values())
    asked = [echo.post(ReadReceived(list(canaries), since_ns)) for echo in echoes]
    answers = [echo.answer(number, _PATIENCE_S)[0] for echo, number in zip(echoes, asked, strict=True)]
    now = by_kernel(site, meshes[-1])
    pods = [(mesh, pod) for mesh in meshes for pod in mesh.pods]
    received: dict[int, dict[str, int]] = {}
    for answer in answers:
        for text, pods_of in answer["received"].items():
            received.setdefault(canaries[text], {}).update(pods_of)
    return Arrivals(
        since_ns=since_ns,
        connections=tuple(_arrival(*row) for answer in answers for row in answer["connections"]),
        canaries=frozenset(received),
        received=received,
        forgotten_until_ns=max((answer["forgotten_until_ns"] for answer in answers), default=0),
        echoes=frozenset(
            PodPort(pod.key, port) for mesh, pod in pods if pod.program is None for port in ports_of(mesh, pod)
        ),
        programs=frozenset(pod.key for _, pod in pods if pod.program is not None),
        kernel={key: number - before.get(key, 0) for key, number in now.items()},
    )


def _arrival(pod: str, port: int, client: str, client_port: int, opened_ns: int, last_ns: int, size: int) -> Arrival:
    return Arrival(pod, port, ip_address(client), client_port, opened_ns, last_ns, size)


# --- programs of pods' own -------------------------------------------------------------------------------------------


def watch(site: Site, pods: Sequence[Pod]) -> None:
    """Begin to count in those that run a program of their own; before their links open, so that none is missed."""
    for pod in pods:
        if pod.program is not None:
            with _opened(site, pod) as arrivals:
                arrivals.watch()


def by_kernel(site: Site, mesh: Mesh) -> Kernel:
    """(pod and port, client's address) -> connections to programs of pods' own since the lab was built."""
    return {
        (PodPort(pod.key, port), client): number
        for pod in mesh.pods
        if pod.program is not None
        for (client, port), number in connections_to(site, pod).items()
    }


def connections_to(site: Site, pod: Pod) -> dict[tuple[Address, int], int]:
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
