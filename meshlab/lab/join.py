"""How pods come and go in the kernel: the only code that makes one, and the only that ends one. One or a thousand.

make     netns, links, addresses; counters of what arrives; listeners of the built-in echo
open     the node's ends of their links: from now on they are reached
start    what they run
leave    what they run ends, then their links and namespaces go
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Mapping, Sequence

from meshlab.apps.echo_requests import Leave, Listen, Listening, PortAsked
from meshlab.errors import KernelRefusedError, LabError, StillRunsError
from meshlab.kernel.channel import MAX_FDS
from meshlab.kernel.conversation import Number
from meshlab.kernel.sandbox import Mntns
from meshlab.lab.pod import capabilities_of
from meshlab.lab.proving import arrivals
from meshlab.lab.running.programs import Peer, Program, describe_exit
from meshlab.lab.site import Site, nodes_of
from meshlab.model import ContainerPort, InstanceId, Pod
from meshlab.model import Program as Runs
from meshlab.plan.netns import pod_netns
from meshlab.plan.pods import leaving, linking, opening, pod_network, settling
from meshlab.plan.restarts import restart_after_s

_BACKLOG = 512
_ECHO_S = 10.0
"""So long, at most, an echo takes to listen."""
_GRACE_S = 2.0
"""How long what a pod runs may take to end after SIGTERM."""
_KILLED_S = 5.0


def make(site: Site, pods: Sequence[Pod]) -> None:
    """Make everything of these pods but their way out: the node's ends of their links stay down."""
    names = {network.host_end.name for network in site.pods.values()}
    networks = []
    for pod in pods:
        network = pod_network(pod, site.places, site.network.nodes[pod.node], names)
        names.add(network.host_end.name)
        site.places += 1
        networks.append(network)
    site.make_netns([network.netns for network in networks])
    site.pods.update({network.key: network for network in networks})
    for batch in linking(networks):
        site.apply(batch)
    for place, network in enumerate(networks):
        if place == len(networks) // 2:
            site.settings.step("mid-batch")
        site.apply(network.build)
    arrivals.watch(site, pods)
    listen(site, [(pod, port) for pod in pods if pod.program is None for port in pod.ports])


def listen(site: Site, served: Sequence[tuple[Pod, ContainerPort]]) -> None:
    """Have the echoes listen on these ports. It may be early: nobody reaches a pod before its link opens."""
    for at in range(0, len(served), MAX_FDS):
        part = served[at : at + MAX_FDS]
        listeners = _listeners(site, part)
        try:
            posted = [_post_listeners(site, node, some) for node, some in _by_node(part, listeners).items()]
            for echo, number in posted:
                echo.answer(number, _ECHO_S)
        finally:
            for listener in listeners:
                listener.close()


_Listening = tuple[Pod, ContainerPort, socket.socket]


def _by_node(
    served: Sequence[tuple[Pod, ContainerPort]], listeners: Sequence[socket.socket]
) -> Mapping[str, list[_Listening]]:
    by_node: dict[str, list[_Listening]] = {}
    for (pod, port), listener in zip(served, listeners, strict=True):
        by_node.setdefault(pod.node, []).append((pod, port, listener))
    return by_node


def _post_listeners(site: Site, node: str, listening: Sequence[_Listening]) -> tuple[Peer, Number[Listening]]:
    """Hand these to the echo of ``node``; it is asked at once, and answers with the number that is returned."""
    echo = site.peer("echo", node)
    assert echo is not None, "each node has an echo from its start"
    places = [
        PortAsked(
            pod=pod.key,
            port=port.number,
            mode="server-first" if port.server_first else "echo",
            listener=place,
        )
        for place, (pod, port, _) in enumerate(listening)
    ]
    return echo, echo.post(Listen(places), [listener.fileno() for _, _, listener in listening])


def _listeners(site: Site, served: Sequence[tuple[Pod, ContainerPort]]) -> list[socket.socket]:
    listeners = site.open_sockets(
        [(pod_netns(pod.key), socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP) for pod, _ in served]
    )
    for (_, port), listener in zip(served, listeners, strict=True):
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", port.number))
        listener.listen(_BACKLOG)
    return listeners


def open_links(site: Site, pods: Sequence[Pod]) -> None:
    networks = [site.pods[pod.key] for pod in pods]
    for batch in opening(networks, site.network.nodes):
        site.apply(batch)
    for netns, end in settling(networks):
        site.settle(netns, end)
    site.reached |= {pod.key for pod in pods}


def start(site: Site, pod: Pod, runs: Runs, first: InstanceId | None = None) -> Program:
    """Start a program of the pod's own: what its container or, as ``first``, an init container runs."""
    netns = site.netns[pod_netns(pod.key)]
    return site.programs.command(
        site.programs.next_of("program", first.place if first else pod.key),
        runs.argv,
        runs.env,
        netns=netns,
        mntns=site.mounts.of_pod(pod, netns),
        capabilities=capabilities_of(pod),
        cwd=runs.working_dir or "/",
    )


def start_again(site: Site, pod: Pod) -> Program:
    """Start the pod's program, which has ended, again; what it has left running ends first.

    Raises:
        KernelRefusedError, LabError: it could not be started.
    """
    assert pod.program is not None, "it has ended"
    if (mntns := site.mounts.known(pod.key)) is not None:
        _end_in(site, [mntns], grace_s=0)
    return start(site, pod, pod.program)


def run_init(site: Site, pod: Pod, deadline: float) -> None:
    """Run what the pod's init containers run, one after the other: each has to end with status 0.

    Args:
        deadline: by ``time.monotonic``.

    Raises:
        LabError: one had not by the deadline, or failed in a pod that restarts nothing.

    Source: https://kubernetes.io/docs/concepts/workloads/pods/init-containers/
    """
    for place, runs in enumerate(pod.init):
        pause: float | None = None
        while True:
            program = start(site, pod, runs, InstanceId.init(pod.key, place))
            program.ended_by_us = True
            try:
                status = site.sandbox.wait_exit(program.pid, max(0.001, deadline - time.monotonic()))
            except StillRunsError:
                raise LabError(
                    f"init container {place} of {pod.key} has not ended:{_last_lines(site, program)}"
                ) from None
            if status == 0:
                break
            pause = restart_after_s(pod.restart_policy, status, time.monotonic() - program.started_s, pause)
            if pause is None or time.monotonic() + pause > deadline:
                how = f"ended: {describe_exit(status)}"
                raise LabError(f"init container {place} of {pod.key} {how}{_last_lines(site, program)}")
            site.wait_for_change(site.changes, pause)


def _last_lines(site: Site, program: Program) -> str:
    return "".join(f"\n    {line}" for line in site.programs.logs(program.name).splitlines()[-6:])


def end_programs(site: Site, pods: Sequence[Pod], grace_s: float = _GRACE_S) -> None:
    """End whatever runs in these pods, and their connections at the built-in echo."""
    site.reached -= {pod.key for pod in pods}
    for pod in pods:
        for program in site.programs.running(InstanceId("waypoint" if pod.gateway else "program", pod.key)):
            program.ended_by_us = True
        site.waypoints.pop(pod.key, None)
    _end_in(site, [mntns for pod in pods if (mntns := site.mounts.known(pod.key)) is not None], grace_s)
    for node, some in nodes_of(pod for pod in pods if pod.program is None and pod.ports).items():
        if (echo := site.peer("echo", node)) is not None:
            echo.ask(Leave([pod.key for pod in some]))


def _end_in(site: Site, within: Sequence[Mntns], grace_s: float) -> None:
    """End every process that has one of these mount namespaces."""
    for mntns in within:
        site.sandbox.end_in(mntns, signal.SIGTERM if grace_s else signal.SIGKILL)
    for mntns in within:
        try:
            site.sandbox.wait_ended_in(mntns, grace_s or _KILLED_S)
        except StillRunsError:
            site.sandbox.end_in(mntns, signal.SIGKILL)
            site.sandbox.wait_ended_in(mntns, _KILLED_S)


def leave(site: Site, pods: Sequence[Pod], *, whole: bool = True) -> None:
    """Take these pods out of the kernel.

    Args:
        whole: whether they had come whole; else Linux may lack some of it, and ends the rest with their namespaces.

    Raises:
        KernelRefusedError: Linux does not have what they had come with.
    """
    networks = [network for pod in pods if (network := site.pods.pop(pod.key, None)) is not None]
    for batch in leaving(networks, site.network.nodes):
        try:
            site.apply(batch)
        except KernelRefusedError:
            if whole:
                raise
    for pod in pods:
        site.mounts.forget(pod.key)
        site.pending.pop(pod.key, None)
    site.not_listening = {place for place in site.not_listening if place[0] not in {pod.key for pod in pods}}
    site.forget_netns(network.netns for network in networks)
