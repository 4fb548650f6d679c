"""A lab's network as data: its netns, the links between them, and the batches that build it.

    control-plane ---- mgmt ---- node:node-1 ---- eth0 proxy:node-1
         |                        |   |  `------- eth0 pod:shop/client     (node's end down until enrolled)
         |                        |   `---------- eth0 pod:shop/intruder
         |                     fabric (a netns that only routes)
         |                        |
         `------- mgmt ---- node:node-2 ---- ...

How a lab uses it::

    network = plan(topology)
    # 1. make a netns for each key in network.netns, open a NETLINK_ROUTE socket in each, write network.sysctls
    for batch in network.build:                     # 2. in order: control-plane, fabric, nodes, proxies, pods
        socket_in[batch.netns].apply(batch.changes, descriptor_of)    # descriptor_of has batch.peers()
    for netns, end in network.settle:               # 3. RouteSocket.barrier: links are usable at once
        socket_in[netns].barrier(end)
    # 4. enrol the pods that belong in the mesh (the agents write their rules)
    for batch in network.opening(keys):             # 5. one batch a node opens the pods' links
        socket_in[batch.netns].apply(batch.changes)
    for netns, end in network.settle_pods(keys):    # 6. each pod's own end, which was set up first
        socket_in[netns].barrier(end)

The control plane has one management link to each node; setting its end down (``nodes[name].management``) cuts that
node alone. Its routes to the proxies acknowledge every segment, since ztunnel leaves Nagle's algorithm on. A node
routes its own pods one by one and all other pods to the fabric, and refuses the rest of its own network (or fabric and
node would play ping-pong with a packet for a pod that is not open). Services have no route: a pod's default route is
enough for a VIP that the mesh catches, and what it does not catch is unreachable.

Pure, and equal on every machine: an index, a name, a MAC or an address depends on places in the file, and names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshlab.model import Pod, Topology
from meshlab.model.addresses import PODS4, PODS6, node_network4, node_network6
from meshlab.plan.changes import (
    DEFAULT4,
    DEFAULT6,
    LO,
    LOCAL_TABLE,
    AddressAssign,
    Batch,
    Change,
    End,
    LinkUp,
    Route,
    RouteKind,
    Silence,
    Sysctl,
    Veth,
    host_network,
)
from meshlab.plan.names import link_names, mac

CONTROL_PLANE = "control-plane"
FABRIC = "fabric"
CONTROL_PLANE4 = IPv4Address("100.64.0.1")
CONTROL_PLANE6 = IPv6Address("fd5a:7c1e:3f62::1")

_NODES4 = IPv4Network("100.77.0.0/16")
_NODES6 = IPv6Network("fd5a:7c1e:3f62:4d::/64")
_PROXIES4 = IPv4Network("100.114.0.0/16")
_PROXIES6 = IPv6Network("fd5a:7c1e:3f62:b2::/64")
_ODD16 = 0x9E37
_ODD64 = 0x9E3779B97F4A7C15
_LO = End("lo", LO)
_FIRST_NODE_INDEX = 16
_INDEXES_PER_NODE = 8
_FIRST_POD_INDEX = 4096


def node_netns(name: str) -> str:
    return f"node:{name}"


def proxy_netns(node: str) -> str:
    return f"proxy:{node}"


def pod_netns(key: str) -> str:
    return f"pod:{key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNetwork:
    """Where a node and its proxy are."""

    name: str
    netns: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    proxy_netns: str
    proxy4: IPv4Address
    """Also the proxy's INSTANCE_IP."""
    proxy6: IPv6Address
    pods4: IPv4Network
    pods6: IPv6Network
    """What the fabric routes to this node."""
    management: End
    """In the control plane's netns."""
    mgmt: End
    """The node's end of that link."""
    fabric: End
    """In the node's netns."""
    port: End
    """The fabric's end of that link."""
    proxy: End
    """In the node's netns."""
    proxy_eth0: End


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """Where a pod is."""

    key: str
    netns: str
    node_netns: str
    host_end: End
    """In the node's netns: captures of the node see the pod by this index."""
    eth0: End
    mac: str
    ipv4: IPv4Address
    ipv6: IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    netns: tuple[str, ...]
    """Every key, once."""
    sysctls: tuple[Sysctl, ...]
    """To be written before ``build``: links inherit them."""
    build: tuple[Batch, ...]
    settle: tuple[tuple[str, End], ...]
    """Netns and end of each link between nodes, control plane and proxies that was set up first."""
    nodes: Mapping[str, NodeNetwork]
    """By name."""
    pods: Mapping[str, PodNetwork]
    """By ``namespace/name``."""

    def opening(self, keys: Iterable[str]) -> tuple[Batch, ...]:
        """Set the node's ends of these pods up and add their host routes (refused while an end is down)."""
        changes: dict[str, list[Change]] = {}
        for key in keys:
            pod = self.pods[key]
            changes.setdefault(pod.node_netns, []).extend(_open_pod(pod))
        return tuple(Batch(netns, tuple(batch)) for netns, batch in changes.items())

    def settle_pods(self, keys: Iterable[str]) -> tuple[tuple[str, End], ...]:
        """As ``settle``, for these pods once they are open."""
        return tuple((self.pods[key].netns, self.pods[key].eth0) for key in keys)


def plan(topology: Topology) -> NetworkPlan:
    """The network of ``topology``."""
    links = link_names("n", (node.name for node in topology.nodes))
    nodes = {node.name: _node(place, node.name, links[place]) for place, node in enumerate(topology.nodes)}
    pods = _pods(topology.mesh.pods)
    on_node: dict[str, list[PodNetwork]] = {node.netns: [] for node in nodes.values()}
    for pod in pods.values():
        on_node[pod.node_netns].append(pod)
    proxies = [node.proxy_netns for node in nodes.values()]
    return NetworkPlan(
        netns=(CONTROL_PLANE, FABRIC, *on_node, *proxies, *(pod.netns for pod in pods.values())),
        sysctls=tuple(sysctl for netns in (FABRIC, *on_node) for sysctl in _forwarding(netns)),
        build=(
            Batch(CONTROL_PLANE, _control_plane(nodes.values())),
            Batch(FABRIC, _fabric(nodes.values())),
            *(Batch(node.netns, _build_node(node, on_node[node.netns])) for node in nodes.values()),
            *(Batch(node.proxy_netns, _build_proxy(node)) for node in nodes.values()),
            *(Batch(pod.netns, _build_pod(pod)) for pod in pods.values()),
        ),
        settle=tuple(link for node in nodes.values() for link in _first_ends(node)),
        nodes=nodes,
        pods=pods,
    )


def _node(place: int, name: str, link: str) -> NodeNetwork:
    index = _FIRST_NODE_INDEX + place * _INDEXES_PER_NODE
    return NodeNetwork(
        name=name,
        netns=node_netns(name),
        ipv4=_NODES4[(place + 1) * _ODD16 % 2**16],
        ipv6=_NODES6[(place + 1) * _ODD64 % 2**64],
        proxy_netns=proxy_netns(name),
        proxy4=_PROXIES4[(place + 1) * _ODD16 % 2**16],
        proxy6=_PROXIES6[(place + 1) * _ODD64 % 2**64],
        pods4=node_network4(place),
        pods6=node_network6(place),
        management=End(link, index),
        mgmt=End("mgmt", index + 1),
        fabric=End("fabric", index + 2),
        port=End(link, index + 3),
        proxy=End("proxy", index + 4),
        proxy_eth0=End("eth0", index + 5),
    )


def _pods(pods: tuple[Pod, ...]) -> dict[str, PodNetwork]:
    names = link_names("v", (pod.key for pod in pods))
    return {
        pod.key: PodNetwork(
            key=pod.key,
            netns=pod_netns(pod.key),
            node_netns=node_netns(pod.node),
            host_end=End(names[place], _FIRST_POD_INDEX + 2 * place),
            eth0=End("eth0", _FIRST_POD_INDEX + 2 * place + 1),
            mac=mac(_FIRST_POD_INDEX + 2 * place),
            ipv4=pod.ipv4,
            ipv6=pod.ipv6,
        )
        for place, pod in enumerate(pods)
    }


# --- batches ---------------------------------------------------------------------------------------------------------


def _forwarding(netns: str) -> tuple[Sysctl, ...]:
    """Route; believe source addresses (a new netns inherits the host's rp_filter); always say what is unreachable.

    With the default limits some refusal in a second is silence, and the caller's SYN waits for its own timeout.
    """
    return (
        Sysctl(netns, "net/ipv4/ip_forward", "1"),
        Sysctl(netns, "net/ipv4/conf/all/rp_filter", "0"),
        Sysctl(netns, "net/ipv4/conf/default/rp_filter", "0"),
        Sysctl(netns, "net/ipv4/icmp_ratelimit", "0"),
        Sysctl(netns, "net/ipv6/conf/all/forwarding", "1"),
        Sysctl(netns, "net/ipv6/conf/default/forwarding", "1"),
        Sysctl(netns, "net/ipv6/icmp/ratelimit", "0"),
    )


def _up(end: End) -> tuple[Change, ...]:
    return Silence(end), LinkUp(end)


def _addresses(end: End, ipv4: IPv4Address, ipv6: IPv6Address) -> tuple[Change, ...]:
    """Both addresses, usable when the batch is done.

    Linux adds the local route of an IPv6 address from a work queue (even without duplicate address detection); until
    then what is sent to it leaves by the default route, and its SYN comes again after a second. So the plan adds one.
    """
    local = Route(destination=host_network(ipv6), end=end, kind=RouteKind.LOCAL, table=LOCAL_TABLE)
    return AddressAssign(end, ipv4), AddressAssign(end, ipv6), local


def _host_routes(end: End, ipv4: IPv4Address, ipv6: IPv6Address, *, quickack: bool = False) -> tuple[Change, ...]:
    return tuple(Route(destination=host_network(address), end=end, quickack=quickack) for address in (ipv4, ipv6))


def _default_routes(end: End) -> tuple[Change, ...]:
    return Route(destination=DEFAULT4, end=end), Route(destination=DEFAULT6, end=end)


def _control_plane(nodes: Iterable[NodeNetwork]) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(_LO), *_addresses(_LO, CONTROL_PLANE4, CONTROL_PLANE6)]
    for node in nodes:
        end = node.management
        changes.append(Veth(end=end, peer=node.mgmt, peer_netns=node.netns, mac=mac(end.index)))
        changes += _up(end)
        changes += _host_routes(end, node.proxy4, node.proxy6, quickack=True)
        changes += _host_routes(end, node.ipv4, node.ipv6)
    return tuple(changes)


def _fabric(nodes: Iterable[NodeNetwork]) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(_LO)]
    for node in nodes:
        changes.append(Veth(end=node.port, peer=node.fabric, peer_netns=node.netns, mac=mac(node.port.index)))
        changes += _up(node.port)
        changes += [Route(destination=pods, end=node.port) for pods in (node.pods4, node.pods6)]
        changes += _host_routes(node.port, node.ipv4, node.ipv6)
    return tuple(changes)


def _build_node(node: NodeNetwork, pods: Iterable[PodNetwork]) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(_LO), *_addresses(_LO, node.ipv4, node.ipv6), *_up(node.fabric)]
    changes += [Route(destination=network, end=node.fabric) for network in (PODS4, PODS6)]
    changes += [Route(destination=own, end=None, kind=RouteKind.UNREACHABLE) for own in (node.pods4, node.pods6)]
    changes += [*_up(node.mgmt), *_host_routes(node.mgmt, CONTROL_PLANE4, CONTROL_PLANE6)]
    changes.append(Veth(end=node.proxy, peer=node.proxy_eth0, peer_netns=node.proxy_netns, mac=mac(node.proxy.index)))
    changes += [*_up(node.proxy), *_host_routes(node.proxy, node.proxy4, node.proxy6)]
    for pod in pods:
        changes.append(Veth(end=pod.host_end, peer=pod.eth0, peer_netns=pod.netns, mac=pod.mac))
        changes.append(Silence(pod.host_end))
    return tuple(changes)


def _build_proxy(node: NodeNetwork) -> tuple[Change, ...]:
    end = node.proxy_eth0
    return (LinkUp(_LO), *_up(end), *_addresses(end, node.proxy4, node.proxy6), *_default_routes(end))


def _build_pod(pod: PodNetwork) -> tuple[Change, ...]:
    return (LinkUp(_LO), *_up(pod.eth0), *_addresses(pod.eth0, pod.ipv4, pod.ipv6), *_default_routes(pod.eth0))


def _open_pod(pod: PodNetwork) -> tuple[Change, ...]:
    return (LinkUp(pod.host_end), *_host_routes(pod.host_end, pod.ipv4, pod.ipv6))


def _first_ends(node: NodeNetwork) -> tuple[tuple[str, End], ...]:
    return (CONTROL_PLANE, node.management), (FABRIC, node.port), (node.netns, node.proxy)
