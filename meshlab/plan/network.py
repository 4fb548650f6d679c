"""A lab's network as data: its netns, the links between them, and the batches that build it.

    control-plane ---- mgmt ---- node:node-1 ---- eth0 proxy:node-1
         |                        |   |  `------- eth0 pod:shop/client     (node's end down until enrolled)
         |                        |   `---------- eth0 pod:shop/intruder
         |                     fabric (a netns that only routes)
         |                        |
         `------- mgmt ---- node:node-2 ---- ...

How a lab uses it::

    network = plan(topology.nodes)
    # 1. make a netns for each key in network.netns, open a NETLINK_ROUTE socket in each, write network.sysctls
    for batch in network.build:                     # 2. in order: control-plane, fabric, nodes, proxies
        socket_in[batch.netns].apply(batch.changes, descriptor_of)    # descriptor_of has batch.peers()
    for netns, end in network.settle:               # 3. RouteSocket.barrier: links are usable at once
        socket_in[netns].barrier(end)
    # 4. pods come and go (``plan.pods``)

The control plane has one management link to each node; setting its end down (``nodes[name].management``) cuts that
node alone. Its routes to the proxies acknowledge every segment, since ztunnel leaves Nagle's algorithm on. A node
routes its own pods one by one and all other pods to the fabric, and refuses the rest of its own network (or fabric and
node would play ping-pong with a packet for a pod that is not open). Services have no route: a pod's default route is
enough for a VIP that the mesh catches, and what it does not catch is unreachable.

Pure, and equal on every machine: an index, a name, a MAC or an address depends on places in the file, and names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshlab.model import Node
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
from meshlab.plan.netns import CONTROL_PLANE, FABRIC, NetnsKey, node_netns, proxy_netns

CONTROL_PLANE4 = IPv4Address("100.64.0.1")
CONTROL_PLANE6 = IPv6Address("fd5a:7c1e:3f62::1")

_NODES4 = IPv4Network("100.77.0.0/16")
_NODES6 = IPv6Network("fd5a:7c1e:3f62:4d::/64")
_PROXIES4 = IPv4Network("100.114.0.0/16")
_PROXIES6 = IPv6Network("fd5a:7c1e:3f62:b2::/64")
_ODD16 = 0x9E37
_ODD64 = 0x9E3779B97F4A7C15
LOOPBACK = End("lo", LO)
_FIRST_NODE_INDEX = 16
_INDEXES_PER_NODE = 8
_PROXIES_OF_A_NODE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyNetwork:
    """The place of a node proxy. Each has a netns of its own, as in a cluster: a ztunnel's own ports are fixed."""

    netns: NetnsKey
    ipv4: IPv4Address
    """Also the proxy's INSTANCE_IP."""
    ipv6: IPv6Address
    end: End
    """In the node's netns."""
    eth0: End


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNetwork:
    """Where a node and its proxy are."""

    name: str
    netns: NetnsKey
    ipv4: IPv4Address
    ipv6: IPv6Address
    proxies: tuple[ProxyNetwork, ...]
    """The places of its node proxy: the second is made when two overlap, at an upgrade, and they take turns."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """Everything but the pods: what an empty cluster is made of."""

    netns: tuple[NetnsKey, ...]
    """Every key, once."""
    sysctls: tuple[Sysctl, ...]
    """To be written before ``build``: links inherit them."""
    build: tuple[Batch, ...]
    settle: tuple[tuple[NetnsKey, End], ...]
    """Netns and end of each link between nodes, control plane and proxies that was set up first."""
    nodes: Mapping[str, NodeNetwork]
    """By name."""


def plan(nodes: Sequence[Node]) -> NetworkPlan:
    """The network of the nodes of a lab, without pods."""
    links = link_names("n", (node.name for node in nodes))
    planned = {node.name: _node(place, node.name, links[place]) for place, node in enumerate(nodes)}
    of_nodes = [node.netns for node in planned.values()]
    proxies = [node.proxies[0] for node in planned.values()]
    return NetworkPlan(
        netns=(CONTROL_PLANE, FABRIC, *of_nodes, *(proxy.netns for proxy in proxies)),
        sysctls=tuple(sysctl for netns in (FABRIC, *of_nodes) for sysctl in _forwarding(netns)),
        build=(
            Batch(CONTROL_PLANE, _control_plane(planned.values())),
            Batch(FABRIC, _fabric(planned.values())),
            *(Batch(node.netns, _build_node(node)) for node in planned.values()),
            *(Batch(proxy.netns, _build_proxy(proxy)) for proxy in proxies),
        ),
        settle=tuple(link for node in planned.values() for link in _first_ends(node)),
        nodes=planned,
    )


def second_proxy(node: NodeNetwork) -> tuple[Batch, ...]:
    """What makes the place of a node's second proxy, whose netns is new and empty: for an upgrade, when two overlap.

    The last change sets up the node's end, whose peer was up before: ``settle`` on ``node.proxies[1].end``.
    """
    proxy = node.proxies[1]
    control_plane = host_routes(node.management, proxy.ipv4, proxy.ipv6, quickack=True)
    return (
        Batch(CONTROL_PLANE, control_plane),
        Batch(node.netns, _proxy_link(proxy)),
        Batch(proxy.netns, _build_proxy(proxy)),
    )


def _node(place: int, name: str, link: str) -> NodeNetwork:
    index = _FIRST_NODE_INDEX + place * _INDEXES_PER_NODE
    return NodeNetwork(
        name=name,
        netns=node_netns(name),
        ipv4=_NODES4[(place + 1) * _ODD16 % 2**16],
        ipv6=_NODES6[(place + 1) * _ODD64 % 2**64],
        proxies=tuple(_proxy(place, number, name) for number in range(_PROXIES_OF_A_NODE)),
        pods4=node_network4(place),
        pods6=node_network6(place),
        management=End(link, index),
        mgmt=End("mgmt", index + 1),
        fabric=End("fabric", index + 2),
        port=End(link, index + 3),
    )


def _proxy(place: int, number: int, node: str) -> ProxyNetwork:
    index = _FIRST_NODE_INDEX + place * _INDEXES_PER_NODE + 4 + 2 * number
    far = place + 1 + 256 * number  # there are at most 255 nodes
    return ProxyNetwork(
        netns=proxy_netns(node, number),
        ipv4=_PROXIES4[far * _ODD16 % 2**16],
        ipv6=_PROXIES6[far * _ODD64 % 2**64],
        end=End(f"proxy{number or ''}", index),
        eth0=End("eth0", index + 1),
    )


# --- batches ---------------------------------------------------------------------------------------------------------


def _forwarding(netns: NetnsKey) -> tuple[Sysctl, ...]:
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


def set_up(end: End) -> tuple[Change, ...]:
    return Silence(end), LinkUp(end)


def assign(end: End, ipv4: IPv4Address, ipv6: IPv6Address) -> tuple[Change, ...]:
    """Both addresses, usable when the batch is done.

    Linux adds the local route of an IPv6 address from a work queue (even without duplicate address detection); until
    then what is sent to it leaves by the default route, and its SYN comes again after a second. So the plan adds one.
    """
    local = Route(destination=host_network(ipv6), end=end, kind=RouteKind.LOCAL, table=LOCAL_TABLE)
    return AddressAssign(end, ipv4), AddressAssign(end, ipv6), local


def host_routes(end: End, ipv4: IPv4Address, ipv6: IPv6Address, *, quickack: bool = False) -> tuple[Change, ...]:
    return tuple(Route(destination=host_network(address), end=end, quickack=quickack) for address in (ipv4, ipv6))


def default_routes(end: End) -> tuple[Change, ...]:
    return Route(destination=DEFAULT4, end=end), Route(destination=DEFAULT6, end=end)


def _control_plane(nodes: Iterable[NodeNetwork]) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(LOOPBACK), *assign(LOOPBACK, CONTROL_PLANE4, CONTROL_PLANE6)]
    for node in nodes:
        end = node.management
        changes.append(Veth(end=end, peer=node.mgmt, peer_netns=node.netns, mac=mac(end.index)))
        changes += set_up(end)
        changes += host_routes(end, node.proxies[0].ipv4, node.proxies[0].ipv6, quickack=True)
        changes += host_routes(end, node.ipv4, node.ipv6)
    return tuple(changes)


def _fabric(nodes: Iterable[NodeNetwork]) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(LOOPBACK)]
    for node in nodes:
        changes.append(Veth(end=node.port, peer=node.fabric, peer_netns=node.netns, mac=mac(node.port.index)))
        changes += set_up(node.port)
        changes += [Route(destination=pods, end=node.port) for pods in (node.pods4, node.pods6)]
        changes += host_routes(node.port, node.ipv4, node.ipv6)
    return tuple(changes)


def _build_node(node: NodeNetwork) -> tuple[Change, ...]:
    changes: list[Change] = [LinkUp(LOOPBACK), *assign(LOOPBACK, node.ipv4, node.ipv6), *set_up(node.fabric)]
    changes += [Route(destination=network, end=node.fabric) for network in (PODS4, PODS6)]
    changes += [Route(destination=own, end=None, kind=RouteKind.UNREACHABLE) for own in (node.pods4, node.pods6)]
    changes += [*set_up(node.mgmt), *host_routes(node.mgmt, CONTROL_PLANE4, CONTROL_PLANE6)]
    return (*changes, *_proxy_link(node.proxies[0]))


def _proxy_link(proxy: ProxyNetwork) -> tuple[Change, ...]:
    veth = Veth(end=proxy.end, peer=proxy.eth0, peer_netns=proxy.netns, mac=mac(proxy.end.index))
    return (veth, *set_up(proxy.end), *host_routes(proxy.end, proxy.ipv4, proxy.ipv6))


def _build_proxy(proxy: ProxyNetwork) -> tuple[Change, ...]:
    end = proxy.eth0
    return (LinkUp(LOOPBACK), *set_up(end), *assign(end, proxy.ipv4, proxy.ipv6), *default_routes(end))


def _first_ends(node: NodeNetwork) -> tuple[tuple[NetnsKey, End], ...]:
    return (CONTROL_PLANE, node.management), (FABRIC, node.port), (node.netns, node.proxies[0].end)
