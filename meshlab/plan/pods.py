"""The network of pods as data, apart from that of the nodes they are on: how they come, are opened, and go.

    network = {pod.key: pod_network(pod, place, nodes[pod.node], names) ...}      each with a place of its own
    # make a netns for each pod, open a NETLINK_ROUTE socket in it
    for batch in linking(pods): ...             # one batch a node makes its pods' links; the node's ends stay down
    for pod in pods: apply(pod.build)           # the pod's own end is up, with its addresses
    # the agents write the rules of those that are enrolled
    for batch in opening(pods, nodes): ...      # the node's ends are set up, and routes lead there
    for netns, end in settling(pods): ...       # each pod's own end, which was set up first
    for batch in leaving(pods, nodes): ...      # the links go, and with them their routes

A place is a number that no other pod of the lab has or ever had: interface indexes follow from it, so that a packet of
a capture belongs to one pod for ever. Whether a pod's address lies in its node's network is the file's business: where
it does not, the fabric and every other node get a route for it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshlab.model import Address, Pod
from meshlab.plan.changes import (
    Batch,
    Change,
    End,
    LinkGroup,
    LinkGroupDelete,
    LinkUp,
    Removed,
    Route,
    Silence,
    Veth,
    host_network,
)
from meshlab.plan.names import link_names, mac
from meshlab.plan.netns import CONTROL_PLANE, FABRIC, NetnsKey, pod_netns
from meshlab.plan.network import LOOPBACK, NodeNetwork, assign, default_routes, host_routes, set_up

_FIRST_INDEX = 4096
_LEAVING = 1
"""The group of links that are about to go; every other link is in Linux' own, 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """Where a pod is."""

    key: str
    netns: NetnsKey
    node: str
    node_netns: NetnsKey
    host_end: End
    """In the node's netns: captures of the node see the pod by this index."""
    eth0: End
    mac: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    elsewhere: tuple[Address, ...]
    """Its addresses that do not lie in its node's network."""
    managed: bool = False
    """Whether it has a way to the control plane, as a waypoint's has."""

    @property
    def build(self) -> Batch:
        """The pod's own end, which is up, with its addresses and routes."""
        changes = (LinkUp(LOOPBACK), *set_up(self.eth0), *assign(self.eth0, self.ipv4, self.ipv6))
        return Batch(self.netns, (*changes, *default_routes(self.eth0)))


def pod_network(pod: Pod, place: int, node: NodeNetwork, names: Collection[str] = ()) -> PodNetwork:
    """The network of ``pod`` at ``place``, whose link has none of ``names``."""
    index = _FIRST_INDEX + 2 * place
    return PodNetwork(
        key=pod.key,
        netns=pod_netns(pod.key),
        node=node.name,
        node_netns=node.netns,
        host_end=End(link_names("v", [pod.key], names)[0], index),
        eth0=End("eth0", index + 1),
        mac=mac(index),
        ipv4=pod.ipv4,
        ipv6=pod.ipv6,
        managed=bool(pod.gateway),
        elsewhere=(
            *((pod.ipv4,) if pod.ipv4 not in node.pods4 else ()),
            *((pod.ipv6,) if pod.ipv6 not in node.pods6 else ()),
        ),
    )


def linking(pods: Iterable[PodNetwork]) -> tuple[Batch, ...]:
    """Make the links of these pods, in one batch a node; both ends of each are down."""
    changes: dict[NetnsKey, list[Change]] = {}
    for pod in pods:
        veth = Veth(end=pod.host_end, peer=pod.eth0, peer_netns=pod.netns, mac=pod.mac)
        changes.setdefault(pod.node_netns, []).extend((veth, Silence(pod.host_end)))
    return _batches(changes)


def opening(pods: Iterable[PodNetwork], nodes: Mapping[str, NodeNetwork]) -> tuple[Batch, ...]:
    """Set the node's ends of these pods up and add their host routes (Linux refuses these while an end is down)."""
    changes: dict[NetnsKey, list[Change]] = {}
    for pod in pods:
        own = (LinkUp(pod.host_end), *host_routes(pod.host_end, pod.ipv4, pod.ipv6))
        changes.setdefault(pod.node_netns, []).extend(own)
        for netns, route in _routes_elsewhere(pod, nodes):
            changes.setdefault(netns, []).append(route)
    return _batches(changes)


def settling(pods: Iterable[PodNetwork]) -> tuple[tuple[NetnsKey, End], ...]:
    """Netns and end of each of these links that was set up first: once it is settled the link is usable."""
    return tuple((pod.netns, pod.eth0) for pod in pods)


def leaving(pods: Collection[PodNetwork], nodes: Mapping[str, NodeNetwork]) -> tuple[Batch, ...]:
    """Take the links of these pods away, also of those that were never opened; their routes go with them."""
    changes: dict[NetnsKey, list[Change]] = {}
    for pod in pods:
        changes.setdefault(pod.node_netns, []).append(LinkGroup(pod.host_end, _LEAVING))
        for netns, route in _routes_elsewhere(pod, nodes):
            changes.setdefault(netns, []).append(Removed(route, absent_is_fine=True))
    for netns in {pod.node_netns for pod in pods}:
        changes[netns].append(LinkGroupDelete(_LEAVING))  # 18 ms for all of them, and for one
    return _batches(changes)


def _routes_elsewhere(pod: PodNetwork, nodes: Mapping[str, NodeNetwork]) -> Iterable[tuple[NetnsKey, Route]]:
    """By netns: routes to addresses that no node's network has, and the control plane's to a pod that it manages."""
    if pod.managed:
        for address in (pod.ipv4, pod.ipv6):
            end = nodes[pod.node].management
            yield CONTROL_PLANE, Route(destination=host_network(address), end=end, quickack=True)
    for address in pod.elsewhere:
        yield FABRIC, Route(destination=host_network(address), end=nodes[pod.node].port)
        for node in nodes.values():
            if node.name != pod.node:
                yield node.netns, Route(destination=host_network(address), end=node.fabric)


def _batches(changes: Mapping[NetnsKey, Iterable[Change]]) -> tuple[Batch, ...]:
    return tuple(Batch(netns, tuple(batch)) for netns, batch in changes.items())
