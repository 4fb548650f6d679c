"""The network of a lab with all its pods as one plan: what tests build at once, or look at as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshlab.model import Topology
from meshlab.plan.changes import Batch, End, Sysctl
from meshlab.plan.netns import NetnsKey
from meshlab.plan.network import NodeNetwork
from meshlab.plan.network import plan as plan_nodes
from meshlab.plan.pods import PodNetwork, linking, opening, pod_network, settling


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNetwork:
    netns: tuple[NetnsKey, ...]
    """Every key, once."""
    sysctls: tuple[Sysctl, ...]
    build: tuple[Batch, ...]
    settle: tuple[tuple[NetnsKey, End], ...]
    nodes: Mapping[str, NodeNetwork]
    pods: Mapping[str, PodNetwork]

    def opening(self, keys: Iterable[str]) -> tuple[Batch, ...]:
        return opening([self.pods[key] for key in keys], self.nodes)

    def settle_pods(self, keys: Iterable[str]) -> tuple[tuple[NetnsKey, End], ...]:
        return settling(self.pods[key] for key in keys)


def plan(topology: Topology) -> WholeNetwork:
    """The nodes of a topology, and then its pods in their order."""
    nodes = plan_nodes(topology.nodes)
    pods: dict[str, PodNetwork] = {}
    for place, pod in enumerate(topology.mesh.pods):
        taken = {other.host_end.name for other in pods.values()}
        pods[pod.key] = pod_network(pod, place, nodes.nodes[pod.node], taken)
    return WholeNetwork(
        netns=(*nodes.netns, *(pod.netns for pod in pods.values())),
        sysctls=nodes.sysctls,
        build=(*nodes.build, *linking(pods.values()), *(pod.build for pod in pods.values())),
        settle=nodes.settle,
        nodes=nodes.nodes,
        pods=pods,
    )
