"""What a pod costs, rules included, and whether that grows with their number.

Counted: its netns, a netlink socket in it, its veth, addresses and routes, the redirect rules that the node's agent
writes and reads back, the opening of its link, and the wait until that carries traffic: all that stands between a
manifest and a pod whose traffic is captured. Not counted: the node, its agent and its first pods, which are there
before; and the node proxy: none runs, so no ZDS. Nor what Linux still has to clear away of the pods of the round
before: that is waited for.

The verdict is by CPU time: where other programs run too, each hand-over between us, netd and agent costs milliseconds,
and there are as many for ten pods as for five hundred. The elapsed time is printed beside it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.measure import Report, cpu_s, median, processes, spread
from meshlab.agent.requests import Enrol, PodAsked
from meshlab.kernel.forkserver import ForkServer
from meshlab.kernel.netlink import NETLINK_ROUTE, RouteSocket
from meshlab.kernel.sandbox import Netns, Sandbox
from meshlab.lab.running.mounts import Mounts, binds
from meshlab.lab.running.programs import WARM, Peer, Programs
from meshlab.model import InstanceId, Pod, Topology
from meshlab.plan.changes import Batch, End, LinkUp, Veth
from meshlab.plan.netns import NetnsKey, node_netns, pod_netns
from meshlab.plan.network import NetworkPlan, plan
from meshlab.plan.pods import PodNetwork, linking, opening, pod_network, settling
from meshlab.topology import load

SIZES = (10, 100, 500)
FLAT = 0.25
_NODE = "node-1"
_FIRST = 10
"""Pods that are there before: the first ones also pay for pages and caches of processes that have just begun."""
_LEAST = 100
"""So many pods are built in each round, ten by ten where the size is ten."""
_TIMEOUT_S = 60.0
_ETH_P_ALL = 3
_LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: pods}}
spec:
  nodes: [node-1]
  pods: {{{pods}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}
"""


class Took(NamedTuple):
    """Seconds."""

    elapsed: float
    cpu: float
    """Of ourselves, netd and the agent, which work one after the other."""


def run(rounds: int = 5, sizes: Sequence[int] = SIZES) -> Report:
    """Every size once a round, so that a machine that slows down slows all of them."""
    took: dict[int, list[Mapping[str, Took]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            took[size] += build(size)
    cpu_ms = {size: median(sum(phase.cpu for phase in one.values()) for one in took[size]) * 1000 for size in sizes}
    ms = {size: median(sum(phase.elapsed for phase in one.values()) for one in took[size]) * 1000 for size in sizes}
    apart = spread(cpu_ms[size] / size for size in sizes)
    return Report(
        name="pods",
        promise=f"what a pod with rules costs is flat within {FLAT:.0%} at {', '.join(map(str, sizes))} pods",
        held=apart <= FLAT,
        figures={
            **{f"{size}_pods_cpu_ms_each": cpu_ms[size] / size for size in sizes},
            **{f"{size}_pods_ms_each": ms[size] / size for size in sizes},
            "spread_of_cpu": apart,
            "spread_of_elapsed": spread(ms[size] / size for size in sizes),
        },
        lines=(
            *(
                f"{size:4} pods: {cpu_ms[size] / size:.2f} ms of CPU each ({_phases(size, took[size])}),"
                f" {ms[size] / size:.2f} ms elapsed"
                for size in sizes
            ),
            f"spread {apart:.0%} (medians of {rounds} interleaved rounds)",
        ),
    )


def build(count: int) -> list[Mapping[str, Took]]:
    """Build a node with some pods, and then ``count`` more, again and again; what each phase of those took."""
    sizes = [_FIRST + count * turn for turn in range(1, max(1, _LEAST // count) + 1)]
    with closing(Sandbox.start(binds([]))) as witness:
        with closing(Sandbox.start(binds([]))) as sandbox:
            node = _Node(sandbox)
            node.build(topology(_FIRST))
            node.pids = [os.getpid(), *processes(sandbox, {}).values()]
            took = [node.build(topology(size)) for size in sizes]
            gone = _link_into(witness, node)
            node.close()
        with closing(gone), suppress(OSError):  # ENETDOWN: the link's other end went with its pod
            while True:
                gone.recv(2048)
    return took


def topology(count: int) -> Topology:
    """One node with ``count`` pods of the mesh."""
    return load(_LAB.format(pods=", ".join(f"shop/pod-{number}: {{node: {_NODE}}}" for number in range(count))), "pods")


@dataclass(slots=True)
class _Node:
    """As much of a lab as its pods need; ``build`` adds what a topology has more than the one before."""

    sandbox: Sandbox
    netns: dict[NetnsKey, Netns] = field(default_factory=dict)
    pids: Sequence[int] = ()
    """Whose CPU time counts."""
    _took: dict[str, Took] = field(default_factory=dict)
    _routes: dict[NetnsKey, RouteSocket] = field(default_factory=dict)
    _pods: dict[str, PodNetwork] = field(default_factory=dict)
    """Those that were built."""
    _agent: Peer | None = None

    def build(self, of: Topology) -> Mapping[str, Took]:
        self._took = {}
        network, pods = plan(of.nodes), of.mesh.pods[len(self._pods) :]
        new = [pod_network(pod, place, network.nodes[pod.node]) for place, pod in enumerate(pods, len(self._pods))]
        with self._timed("netns"):
            nodes = [] if self.netns else network.netns
            self._make_netns([*nodes, *(pod.netns for pod in new)])
        with self._timed("links"):
            self._build_links(network, new)
        self._agent = self._agent or self._start_agent()
        with self._timed("rules"):
            self._write_rules(pods, self._agent)
        with self._timed("opening"):
            self._open_links(network, new)
        self._pods |= {pod.key: pod for pod in new}
        return self._took

    def close(self) -> None:
        assert self._agent is not None
        self._agent.close()
        for route in self._routes.values():
            route.close()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        ran_s, started = sum(map(cpu_s, self.pids)), time.perf_counter()
        yield
        self._took[phase] = Took(time.perf_counter() - started, sum(map(cpu_s, self.pids)) - ran_s)

    def _make_netns(self, keys: Sequence[NetnsKey]) -> None:
        made = self.sandbox.netns(keys)
        self.netns.update(zip(keys, made, strict=True))
        sockets = self.sandbox.sockets([(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) for netns in made])
        self._routes |= {key: RouteSocket(sock, key) for key, sock in zip(keys, sockets, strict=True)}

    def _build_links(self, network: NetworkPlan, pods: Sequence[PodNetwork]) -> None:
        if not self._pods:
            values = [(self.netns[entry.netns], entry.name, entry.value) for entry in network.sysctls]
            self.sandbox.sysctl(values)
            for batch in network.build:
                self._apply(batch)
        for batch in (*linking(pods), *(pod.build for pod in pods)):
            self._apply(batch)

    def _start_agent(self) -> Peer:
        program = Programs(self.sandbox, ForkServer.shared(WARM)).python(
            InstanceId("agent", _NODE),
            "meshlab.agent.main:main",
            {"node": _NODE, "uds": "/var/run/ztunnel/ztunnel.sock", "record": False},
            {},
            netns=self.netns[node_netns(_NODE)],
            mntns=Mounts(self.sandbox, binds([])).of_node(_NODE),
            capabilities=("NET_ADMIN", "SYS_ADMIN"),
        )
        assert program.peer is not None
        return program.peer

    def _write_rules(self, pods: Sequence[Pod], agent: Peer) -> None:
        fds = [self.netns[pod_netns(pod.key)].fd for pod in pods]
        asked = [_as_agents_know(pod) for pod in pods]
        answer, _ = agent.ask(Enrol(asked, _TIMEOUT_S, no_proxy=True), fds, within_s=_TIMEOUT_S)
        refused = [why for why in answer["pending"].values() if why.startswith("rules:")]
        if refused or len(answer["pending"]) != len(pods):
            raise RuntimeError(f"the agent did not write the rules: {refused or answer}")

    def _open_links(self, network: NetworkPlan, pods: Sequence[PodNetwork]) -> None:
        for batch in opening(pods, network.nodes):
            self._apply(batch)
        for netns, end in settling(pods):
            self._routes[netns].barrier(end)

    def _apply(self, batch: Batch) -> None:
        self._routes[batch.netns].apply(batch.changes, {key: self.netns[key].fd for key in batch.peers()})


def _as_agents_know(pod: Pod) -> PodAsked:
    return PodAsked(uid=pod.uid, name=pod.name, namespace=pod.namespace, service_account=pod.service_account)


def _link_into(witness: Sandbox, node: _Node) -> socket.socket:
    """A socket on a link whose other end is in the last pod: it fails when that pod's netns is no more."""
    last = list(node.netns)[-1]
    (outside,) = witness.netns(["witness"])
    route, packets = witness.sockets(
        [
            (outside, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE),
            (outside, socket.AF_PACKET, socket.SOCK_RAW, 0),
        ]
    )
    end = End("gone", 10)
    link = Veth(end=end, peer=End("gone", 1 << 20), peer_netns=last, mac="02:00:00:00:00:01")
    with route:
        RouteSocket(route, outside.name).apply([link, LinkUp(end)], {last: node.netns[last].fd})
    packets.bind((end.name, _ETH_P_ALL))
    packets.settimeout(_TIMEOUT_S)
    return packets


def _phases(size: int, took: Sequence[Mapping[str, Took]]) -> str:
    each = {phase: median(one[phase].cpu for one in took) * 1000 / size for phase in took[0]}
    return ", ".join(f"{phase} {ms:.2f}" for phase, ms in each.items())
