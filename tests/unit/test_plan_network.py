"""The network of a lab as data: what must hold for every topology."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import combinations

import pytest
from whole_network import WholeNetwork, plan

from meshlab.model import Mesh, Node, Pod, Topology
from meshlab.model.addresses import PODS4, PODS6, SERVICES4, SERVICES6, pod4, pod6
from meshlab.plan.changes import (
    LOCAL_TABLE,
    MAIN_TABLE,
    AddressAssign,
    End,
    LinkUp,
    Route,
    RouteKind,
    Silence,
    Veth,
    host_network,
)
from meshlab.plan.names import link_names, mac
from meshlab.plan.netns import NetnsKey
from meshlab.plan.network import CONTROL_PLANE4, CONTROL_PLANE6


def topology(nodes: int, *pods: tuple[str, int]) -> Topology:
    return Topology(
        name="a",
        nodes=tuple(Node(name=f"node-{number + 1}") for number in range(nodes)),
        mesh=Mesh(
            pods=tuple(
                Pod(
                    name=name, namespace="shop", node=f"node-{node + 1}", ipv4=pod4(node, place), ipv6=pod6(node, place)
                )
                for place, (name, node) in enumerate(pods)
            )
        ),
    )


SMALL = topology(2, ("client", 0), ("server", 1), ("neighbour", 0))
LARGE = topology(255, *((f"workload-{number}", number % 255) for number in range(600)))
TOPOLOGIES = [pytest.param(plan(SMALL), id="two nodes"), pytest.param(plan(LARGE), id="255 nodes, 600 pods")]


def veths(network: WholeNetwork) -> list[tuple[NetnsKey, Veth]]:
    return [(batch.netns, change) for batch in network.build for change in batch.changes if isinstance(change, Veth)]


def ends(network: WholeNetwork) -> list[tuple[str, End]]:
    """Netns and end of both sides of every link."""
    return [pair for netns, veth in veths(network) for pair in ((netns, veth.end), (veth.peer_netns, veth.peer))]


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_every_end_has_an_index_of_its_own_and_a_name_that_is_unique_in_its_netns(network: WholeNetwork) -> None:
    assert len({end.index for _, end in ends(network)}) == len(ends(network))
    assert len({(netns, end.name) for netns, end in ends(network)}) == len(ends(network))
    assert all(len(end.name.encode()) <= 15 for _, end in ends(network))


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_no_two_links_have_the_same_mac_and_each_is_a_local_unicast_address(network: WholeNetwork) -> None:
    macs = [veth.mac for _, veth in veths(network)]
    assert len(set(macs)) == len(macs)
    assert {int(address[:2], 16) & 3 for address in macs} == {2}


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_no_two_netns_have_the_same_address_and_none_is_a_services(network: WholeNetwork) -> None:
    assigned = [
        change.address for batch in network.build for change in batch.changes if isinstance(change, AddressAssign)
    ]
    assert len(set(assigned)) == len(assigned)
    assert not any(address in SERVICES4 for address in assigned if address.version == 4)
    assert not any(address in SERVICES6 for address in assigned if address.version == 6)


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_a_batch_comes_after_those_that_make_its_links(network: WholeNetwork) -> None:
    """Whatever a batch touches was made before: by itself, or as the peer of an earlier one."""
    made = {(netns, 1) for netns in network.netns}
    for batch in network.build:
        for change in batch.changes:
            match change:
                case Veth():
                    assert change.peer_netns in network.netns
                    made |= {(batch.netns, change.end.index), (change.peer_netns, change.peer.index)}
                case LinkUp(end) | Silence(end) | AddressAssign(end, _):
                    assert (batch.netns, end.index) in made
                case Route(end=End() as end):
                    assert (batch.netns, end.index) in made
                case _:
                    assert isinstance(change, Route), "an unreachable route has no link"


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_every_netns_is_named_once_and_has_a_batch(network: WholeNetwork) -> None:
    assert max(Counter(network.netns).values()) == 1
    assert {batch.netns for batch in network.build} == set(network.netns)


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_every_link_is_silenced_before_it_is_up(network: WholeNetwork) -> None:
    for batch in network.build:
        silenced = {1}  # lo says nothing
        for change in batch.changes:
            if isinstance(change, Silence):
                silenced.add(change.end.index)
            elif isinstance(change, LinkUp):
                assert change.end.index in silenced, f"{batch.netns}: {change}"


def test_the_nodes_end_of_a_pod_stays_down_until_it_is_opened() -> None:
    network = plan(SMALL)
    up = {change.end for batch in network.build for change in batch.changes if isinstance(change, LinkUp)}
    for pod in network.pods.values():
        assert pod.eth0 in up
        assert pod.host_end not in up


def test_opening_is_one_batch_a_node_with_the_link_first_and_both_host_routes() -> None:
    network = plan(SMALL)
    opened = network.opening(["shop/client", "shop/server", "shop/neighbour"])
    assert [batch.netns for batch in opened] == ["node:node-1", "node:node-2"]
    client = network.pods["shop/client"]
    first = opened[0].changes[:3]
    assert first == (
        LinkUp(client.host_end),
        Route(destination=IPv4Network(client.ipv4), end=client.host_end),
        Route(destination=IPv6Network(client.ipv6), end=client.host_end),
    )
    assert len(opened[0].changes) == 6


def test_what_must_settle_is_the_end_that_was_set_up_first() -> None:
    network = plan(SMALL)
    client = network.pods["shop/client"]
    assert network.settle_pods(["shop/client"]) == ((client.netns, client.eth0),)
    order = [
        (batch.netns, change.end) for batch in network.build for change in batch.changes if isinstance(change, LinkUp)
    ]
    other = {end: (peer_netns, peer) for end, (peer_netns, peer) in both_ways(network).items()}
    for netns, end in network.settle:
        assert order.index((netns, end)) < order.index(other[(netns, end)])


def both_ways(network: WholeNetwork) -> dict[tuple[NetnsKey, End], tuple[NetnsKey, End]]:
    pairs = [((netns, veth.end), (veth.peer_netns, veth.peer)) for netns, veth in veths(network)]
    return dict(pairs) | {peer: end for end, peer in pairs}


def routes(network: WholeNetwork, netns: str) -> list[Route]:
    return [
        change
        for batch in network.build
        if batch.netns == netns
        for change in batch.changes
        if isinstance(change, Route)
    ]


def test_a_pod_has_a_default_route_in_both_families_and_no_other() -> None:
    network = plan(SMALL)
    for pod in network.pods.values():
        found = [route for route in routes(network, pod.netns) if route.table == MAIN_TABLE]
        assert [str(route.destination) for route in found] == ["0.0.0.0/0", "::/0"]


def test_a_node_sends_other_nodes_pods_to_the_fabric_and_refuses_what_of_its_own_is_not_open() -> None:
    network = plan(SMALL)
    node = network.nodes["node-1"]
    found = {route.destination: route for route in routes(network, node.netns)}
    assert (found[PODS4].end, found[PODS6].end) == (node.fabric, node.fabric)
    assert found[node.pods4].kind is found[node.pods6].kind is RouteKind.UNREACHABLE


def test_the_fabric_routes_each_nodes_pods_to_it_and_no_service() -> None:
    network = plan(SMALL)
    found = {route.destination: route.end for route in routes(network, "fabric")}
    for node in network.nodes.values():
        assert (found[node.pods4], found[node.pods6]) == (node.port, node.port)
    assert not any(SERVICES4.overlaps(route) for route in found if isinstance(route, IPv4Network))
    assert not any(SERVICES6.overlaps(route) for route in found if isinstance(route, IPv6Network))


def test_only_the_control_planes_routes_to_proxies_acknowledge_every_segment() -> None:
    network = plan(SMALL)
    proxies = {
        str(address) for node in network.nodes.values() for address in (node.proxies[0].ipv4, node.proxies[0].ipv6)
    }
    quick = {
        (batch.netns, str(change.destination.network_address))
        for batch in network.build
        for change in batch.changes
        if isinstance(change, Route) and change.quickack
    }
    assert quick == {("control-plane", address) for address in proxies}


def test_nodes_and_fabric_forward_both_families_and_nothing_else_does() -> None:
    network = plan(SMALL)
    forwarding = {"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
    by_netns = {netns: {entry.name for entry in network.sysctls if entry.netns == netns} for netns in network.netns}
    assert {netns for netns, names in by_netns.items() if names >= forwarding} == {
        "fabric",
        "node:node-1",
        "node:node-2",
    }


def test_nothing_depends_on_what_a_pod_is_called_but_the_name_of_its_link() -> None:
    renamed = replace(SMALL, mesh=Mesh(pods=tuple(replace(pod, name=f"x{pod.name}") for pod in SMALL.mesh.pods)))
    before, after = plan(SMALL).pods.values(), plan(renamed).pods.values()
    for one, other in zip(before, after, strict=True):
        assert (one.host_end.index, one.mac, one.ipv4, one.eth0) == (
            other.host_end.index,
            other.mac,
            other.ipv4,
            other.eth0,
        )


def test_addresses_of_nodes_and_proxies_differ_in_many_bits() -> None:
    """So that a mask that is off by some bits shows."""
    nodes = list(plan(topology(8)).nodes.values())
    for one, other in combinations(nodes, 2):
        assert (int(one.ipv4) ^ int(other.ipv4)).bit_count() >= 3
        assert (int(one.proxies[0].ipv4) ^ int(other.proxies[0].ipv4)).bit_count() >= 3


@pytest.mark.parametrize("network", TOPOLOGIES)
def test_an_ipv6_address_is_local_at_once_and_not_when_a_work_queue_has_run(network: WholeNetwork) -> None:
    for batch in network.build:
        for change in batch.changes:
            if isinstance(change, AddressAssign) and change.address.version == 6:
                assert (
                    Route(
                        destination=host_network(change.address),
                        end=change.end,
                        kind=RouteKind.LOCAL,
                        table=LOCAL_TABLE,
                    )
                    in batch.changes
                )


def test_the_control_planes_address_never_changes() -> None:
    assert (str(CONTROL_PLANE4), str(CONTROL_PLANE6)) == ("100.64.0.1", "fd5a:7c1e:3f62::1")


def test_link_names_say_the_pod_and_stay_unique_where_a_thousand_begin_alike() -> None:
    names = link_names("v", [f"shop/workload-{number}" for number in range(1000)])
    assert len(set(names)) == 1000
    assert {name[:11] for name in names} == {"v-workload-"}
    assert link_names("v", ["shop/a"]) != link_names("v", ["bank/a"])


def test_names_and_macs_are_equal_on_every_machine() -> None:
    assert link_names("v", ["shop/client"]) == ["v-client-ed14"]
    assert mac(4096) == "02:6d:77:9b:10:00"
