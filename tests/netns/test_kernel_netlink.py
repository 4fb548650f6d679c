"""What our encoder builds, as the kernel shows it to others: pyroute2, nft, and traffic.

Run as it is in a lab: a child owns the namespaces and hands sockets out, and this process, which has no right of its
own, sends the plan through them. This file is also the child's program.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest
from whole_network import WholeNetwork, plan

from meshlab.agent import rules
from meshlab.errors import KernelRefusedError
from meshlab.kernel import namespaces as ns
from meshlab.kernel import nft_wire
from meshlab.kernel.channel import Channel, pair
from meshlab.kernel.netlink import NETLINK_ROUTE, RouteSocket
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.kernel.nftables import NftSocket, render
from meshlab.model import Family, Mesh, Node, Pod, Topology
from meshlab.model.addresses import pod4, pod6
from meshlab.plan import nft
from meshlab.plan.changes import (
    LO,
    AddressAssign,
    Batch,
    Change,
    End,
    LinkDelete,
    LinkDown,
    LinkUp,
    MarkRule,
    Removed,
    Route,
    RouteKind,
    Silence,
    Veth,
)
from meshlab.plan.netns import CONTROL_PLANE, NetnsKey
from meshlab.plan.network import CONTROL_PLANE4, CONTROL_PLANE6
from meshlab.plan.nft import Jump
from meshlab.plan.redirect import inpod_rules

# --- the child -------------------------------------------------------------------------------------------------------


def serve(channel: Channel) -> None:
    """Own one netns for each key, and do in them what is asked."""
    if os.geteuid():
        uid, gid = os.geteuid(), os.getegid()
        ns.unshare(ns.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        ns.restrict_capabilities(["SYS_ADMIN", "NET_ADMIN"])  # nft is executed, and would lose them
    made: dict[str, int] = {}
    while True:
        request, _ = channel.receive()
        key = request["netns"]
        if key not in made:
            ns.unshare(ns.CLONE_NEWNET)
            made[key] = ns.own_netns()
        ns.setns(made[key], ns.CLONE_NEWNET)
        if request["op"] == "open":
            channel.send({}, [made[key]])
        elif request["op"] == "socket":
            with socket.socket(*request["socket"]) as sock:
                channel.send({}, [sock.fileno()])
        elif request["op"] == "enrol":
            rules.write(made[key], key, inpod_rules())
            channel.send({"answer": nft.text(rules.read(made[key], key, inpod_rules()))})
        elif request["op"] == "ensure":
            wanted = inpod_rules(bypass_inbound=request["bypass_inbound"])
            written = rules.ensure(made[key], key, wanted)
            channel.send({"answer": [written, nft.text(rules.read(made[key], key, wanted))]})
        elif request["op"] == "release":
            with contextlib.ExitStack() as closing:
                rules.remove(made[key], key, inpod_rules(), closing)
            channel.send({"answer": nft.text(rules.read(made[key], key, inpod_rules()))})
        elif request["op"] == "write":
            with open(f"/proc/sys/{request['name']}", "w") as file:
                file.write(request["value"])
            channel.send({})
        else:
            done = subprocess.run(request["argv"], input=request["input"], capture_output=True, text=True, check=False)
            channel.send({"answer": [done.returncode, done.stdout + done.stderr]})


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        serve(Channel.from_fd(int(sys.argv[1])))
    sys.exit(0)


class World:
    """The netns of the child, seen from here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stack = contextlib.ExitStack()
        self.netns: dict[str, int] = {}

    def ask(self, op: str, netns: str, **more: Any) -> tuple[Any, list[int]]:
        self._channel.send({"op": op, "netns": netns, **more})
        message, fds = self._channel.receive(timeout_s=20)
        return message.get("answer"), fds

    def make(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            _, (self.netns[key],) = self.ask("open", key)
            self._stack.callback(os.close, self.netns[key])

    def socket(self, netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        _, (fd,) = self.ask("socket", netns, socket=[family, kind, protocol])
        return self._stack.enter_context(socket.socket(fileno=fd))

    def route(self, netns: str) -> RouteSocket:
        return RouteSocket(self.socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE), netns)

    def nft(self, netns: str) -> NftSocket:
        return NftSocket(self.socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER), netns)

    def run(self, netns: str, *argv: str, stdin: str = "") -> str:
        (status, output), _ = self.ask("run", netns, argv=argv, input=stdin)
        assert status == 0, output
        return str(output)

    def pyroute2(self, netns: str, request: str, **arguments: Any) -> list[Any]:
        """What pyroute2 dumps, through a socket that it did not open."""
        sock = self.socket(netns, socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_ROUTE)
        return asyncio.run(_dump(sock, request, arguments))

    def close(self) -> None:
        self._stack.close()
        self._channel.close()


async def _dump(sock: socket.socket, request: str, arguments: dict[str, Any]) -> list[Any]:
    from pyroute2 import AsyncIPRoute

    async with AsyncIPRoute(use_socket=sock) as ipr:
        return [message async for message in await getattr(ipr, request)("dump", **arguments)]


@pytest.fixture
def world() -> Iterator[World]:
    ours, theirs = pair()
    argv = [sys.executable, __file__, str(theirs.fileno())]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], env={"PYTHONPATH": os.pathsep.join(sys.path)}) as child:
        theirs.close()
        world = World(ours)
        try:
            yield world
        finally:
            world.close()
            child.wait(20)


NFT = shutil.which("nft", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


# --- the network of a lab --------------------------------------------------------------------------------------------


def _pod(place: int, name: str, node: int) -> Pod:
    return Pod(name=name, namespace="shop", node=f"node-{node + 1}", ipv4=pod4(node, place), ipv6=pod6(node, place))


TOPOLOGY = Topology(
    name="two-nodes",
    nodes=(Node(name="node-1"), Node(name="node-2")),
    mesh=Mesh(pods=(_pod(0, "client", 0), _pod(1, "server", 1), _pod(2, "neighbour", 0))),
)
PODS = ("shop/client", "shop/server", "shop/neighbour")


def build(world: World) -> tuple[WholeNetwork, dict[NetnsKey, RouteSocket]]:
    network = plan(TOPOLOGY)
    return network, build_from(world, network, network.build)


def build_from(world: World, network: WholeNetwork, batches: Iterable[Batch]) -> dict[NetnsKey, RouteSocket]:
    world.make(network.netns)
    for sysctl in network.sysctls:
        world.ask("write", sysctl.netns, name=sysctl.name, value=sysctl.value)
    sockets = {netns: world.route(netns) for netns in network.netns}
    for batch in batches:
        sockets[batch.netns].apply(batch.changes, world.netns)
    for netns, end in network.settle:
        sockets[netns].barrier(end)
    return sockets


def open_pods(network: WholeNetwork, sockets: dict[NetnsKey, RouteSocket]) -> None:
    for batch in network.opening(PODS):
        sockets[batch.netns].apply(batch.changes)
    for netns, end in network.settle_pods(PODS):
        sockets[netns].barrier(end)


def seen_change(world: World, change: Change, netns: str) -> bool:
    """Whether pyroute2 sees ``change`` in ``netns`` as the plan has it."""
    match change:
        case Veth(end=end, peer=peer, peer_netns=peer_netns, mac=mac):
            return _link(world, netns, end)[:2] == _link(world, peer_netns, peer)[:2] == (mac, True)
        case LinkUp(end):
            return _link(world, netns, end)[2]
        case AddressAssign(end, address):
            return address in _addresses(world, netns, end)
        case Route():
            return change in _routes(world, netns)
        case MarkRule():
            return change in _rules(world, netns)
        case Silence(end):
            return _link(world, netns, end)[3] == 1  # IN6_ADDR_GEN_MODE_NONE
        case _:
            raise AssertionError(f"{change}: it is not in a plan, or leaves nothing to be seen")


def _link(world: World, netns: str, end: End) -> tuple[str, bool, bool, int]:
    """MAC, whether it is made silent with one queue, whether it is up, and its addr_gen_mode."""
    (link,) = [found for found in world.pyroute2(netns, "link") if found["index"] == end.index]
    assert link.get("ifname") == end.name
    queues = (link.get("num_tx_queues"), link.get("num_rx_queues"))
    mode = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
    return link.get("address"), bool(link["flags"] & 0x80) and queues == (1, 1), bool(link["flags"] & 1), mode


def _addresses(world: World, netns: str, end: End) -> set[IPv4Address | IPv6Address]:
    found = set()
    for message in world.pyroute2(netns, "addr", index=end.index):
        text = message.get("local") or message.get("address")
        address = IPv4Address(text) if message["family"] == socket.AF_INET else IPv6Address(text)
        if message["prefixlen"] == address.max_prefixlen and not message.get("flags", 0) & 0x40:  # tentative
            found.add(address)
    return found


def _routes(world: World, netns: str) -> list[Route]:
    routes = []
    names = {link["index"]: link.get("ifname") for link in world.pyroute2(netns, "link")}
    for family, zero in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for message in world.pyroute2(netns, "route", family=family):
            kind, oif = message["type"], message.get("oif")
            if kind not in (1, 2, 7):
                continue
            metrics = message.get("metrics")
            routes.append(
                Route(
                    destination=ip_network(f"{message.get('dst') or zero}/{message['dst_len']}"),
                    end=None if kind == RouteKind.UNREACHABLE.value else End(names[oif], oif),
                    kind=RouteKind(kind),
                    table=message.get("table"),
                    quickack=bool(metrics and metrics.get("RTAX_QUICKACK")),
                )
            )
    return routes


def _rules(world: World, netns: str) -> list[MarkRule]:
    return [
        MarkRule(
            family=4 if family == socket.AF_INET else 6,
            preference=message.get("priority"),
            mark=message.get("fwmark"),
            mask=message.get("fwmask"),
            table=message.get("table"),
        )
        for family in (socket.AF_INET, socket.AF_INET6)
        for message in world.pyroute2(netns, "rule", family=family)
        if message.get("fwmark")
    ]


def test_pyroute2_sees_every_change_of_the_plan(world: World) -> None:
    network, sockets = build(world)
    open_pods(network, sockets)
    routing = [Batch(network.pods[key].netns, inpod_rules().routing) for key in PODS]
    for batch in routing:
        sockets[batch.netns].apply(batch.changes)
    missing = [
        f"{batch.netns}: {change}"
        for batch in (*network.build, *network.opening(PODS), *routing)
        for change in batch.changes
        if not seen_change(world, change, batch.netns)
    ]
    assert missing == []


def test_a_pod_is_built_whole_with_the_nodes_end_down(world: World) -> None:
    network, _ = build(world)
    pod = network.pods["shop/client"]
    assert _link(world, pod.netns, pod.eth0)[2]
    assert not _link(world, pod.node_netns, pod.host_end)[2]


def connect(world: World, source: str, destination: str, address: IPv4Address | IPv6Address) -> None:
    family = FAMILY[address.version]
    server = world.socket(destination, family, socket.SOCK_STREAM)
    client = world.socket(source, family, socket.SOCK_STREAM)
    server.bind((str(address), 0))
    server.listen()
    client.settimeout(0.9)  # one lost SYN is found again after a second: then a link was not ready
    client.connect(server.getsockname()[:2])
    server.settimeout(0.9)
    accepted, _ = server.accept()
    accepted.close()


def test_every_pod_reaches_every_other_at_once_in_both_families(world: World) -> None:
    network, sockets = build(world)
    open_pods(network, sockets)
    for source in PODS:
        for destination in PODS:
            pod = network.pods[destination]
            for address in (pod.ipv4, pod.ipv6):
                connect(world, network.pods[source].netns, pod.netns, address)


def test_a_closed_pod_is_unreachable_and_an_unknown_service_too(world: World) -> None:
    network, sockets = build(world)
    for batch in network.opening(["shop/client"]):
        sockets[batch.netns].apply(batch.changes)
    for netns, end in network.settle_pods(["shop/client"]):
        sockets[netns].barrier(end)
    server, neighbour = network.pods["shop/server"], network.pods["shop/neighbour"]
    for address in (server.ipv4, server.ipv6, neighbour.ipv4, neighbour.ipv6, IPv4Address("172.20.9.9")):
        client = world.socket(network.pods["shop/client"].netns, FAMILY[address.version], socket.SOCK_STREAM)
        client.settimeout(5)
        with pytest.raises(OSError, match=r"(Network is unreachable|No route to host)"):
            client.connect((str(address), 8080))


def test_proxies_and_control_plane_reach_each_other_in_both_families(world: World) -> None:
    network, _ = build(world)
    for node in network.nodes.values():
        for address in (CONTROL_PLANE4, CONTROL_PLANE6):
            connect(world, node.proxies[0].netns, CONTROL_PLANE, address)
        for back in (node.proxies[0].ipv4, node.proxies[0].ipv6):
            connect(world, CONTROL_PLANE, node.proxies[0].netns, back)


def sent_packets(world: World, network: WholeNetwork, key: str) -> int:
    (link,) = [link for link in world.pyroute2(network.pods[key].netns, "link") if link.get("ifname") == "eth0"]
    return int(link.get("stats64")["tx_packets"])


def test_an_idle_pod_sends_nothing_while_one_that_is_not_silenced_does(world: World) -> None:
    network = plan(TOPOLOGY)
    loud = network.pods["shop/neighbour"]
    batches = [
        Batch(batch.netns, tuple(change for change in batch.changes if change != Silence(loud.eth0)))
        for batch in network.build
    ]
    sockets = build_from(world, network, batches)
    open_pods(network, sockets)
    deadline = time.monotonic() + 20
    while sent_packets(world, network, loud.key) == 0:
        assert time.monotonic() < deadline, "the control sent nothing: this test would not see a loud pod"
    assert [sent_packets(world, network, key) for key in ("shop/client", "shop/server")] == [0, 0]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_refused_change_says_which_where_and_why(world: World) -> None:
    world.make(("pod:shop/client",))
    with pytest.raises(KernelRefusedError) as caught:
        world.route("pod:shop/client").apply(
            [LinkUp(End("lo", LO)), LinkUp(End("eth0", 77)), AddressAssign(End("lo", LO), IPv4Address("10.9.9.9"))]
        )
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value).startswith("set eth0 up in netns 'pod:shop/client': No such device [19]")


def test_a_refusal_carries_the_kernels_own_words(world: World) -> None:
    world.make(("node:node-1",))
    route = Route(destination=plan(TOPOLOGY).nodes["node-1"].pods4, end=End("eth7", 4711))
    with pytest.raises(KernelRefusedError, match=r"add unicast route .* dev eth7") as caught:
        world.route("node:node-1").apply([route])
    assert caught.value.errno == errno.ENODEV


def test_an_error_in_a_long_batch_is_found_whatever_part_it_is_in(world: World) -> None:
    world.make(("node:node-1",))
    lo = End("lo", LO)
    changes: list[Change] = [AddressAssign(lo, IPv4Address("10.0.0.1") + number) for number in range(200)]
    for place in (0, 63, 64, 199):
        broken = list(changes)
        broken[place] = LinkUp(End("nowhere", 99))
        fresh = f"node:{place}"
        world.make((fresh,))
        with pytest.raises(KernelRefusedError, match="set nowhere up"):
            world.route(fresh).apply(broken)


def test_a_link_that_never_comes_up_ends_the_barrier_at_its_deadline(world: World) -> None:
    network, sockets = build(world)
    pod = network.pods["shop/client"]
    with pytest.raises(KernelRefusedError, match="wait for eth0 to be up") as caught:
        sockets[pod.netns].barrier(pod.eth0, timeout_s=0.05)
    assert caught.value.errno == errno.ETIMEDOUT


# --- nf_tables -------------------------------------------------------------------------------------------------------


def test_the_kernel_gives_the_rules_back_as_the_plan_has_them(world: World) -> None:
    world.make(("pod:shop/client",))
    socket_in_pod = world.nft("pod:shop/client")
    socket_in_pod.apply(inpod_rules().ruleset)
    assert socket_in_pod.read(inpod_rules().ruleset) == inpod_rules().ruleset


def test_rules_written_twice_are_there_once(world: World) -> None:
    world.make(("pod:shop/client",))
    socket_in_pod = world.nft("pod:shop/client")
    socket_in_pod.apply(inpod_rules().ruleset)
    socket_in_pod.apply(inpod_rules().ruleset)
    assert socket_in_pod.read(inpod_rules().ruleset) == inpod_rules().ruleset


def test_a_refused_transaction_leaves_nothing_and_names_the_rule(world: World) -> None:
    world.make(("pod:shop/client",))
    socket_in_pod = world.nft("pod:shop/client")
    nat, _ = inpod_rules().ruleset
    broken = replace(nat, chains=(*nat.chains[:3], replace(nat.chains[3], rules=((Jump("nowhere"),),))))
    with pytest.raises(KernelRefusedError, match="add rule to istio-ambient-nat istio-output in netns") as caught:
        socket_in_pod.apply((broken,))
    assert caught.value.errno == errno.ENOENT
    assert socket_in_pod.read(inpod_rules().ruleset) == ()


@pytest.mark.parametrize("times", [1, 2])
def test_the_agent_writes_rules_and_routing_once_however_often_it_is_asked(world: World, times: int) -> None:
    world.make(("pod:shop/client",))
    world.route("pod:shop/client").apply([LinkUp(End("lo", LO))])
    for _ in range(times):
        text, _ = world.ask("enrol", "pod:shop/client")
    assert text == render(inpod_rules().ruleset)
    found = [*_rules(world, "pod:shop/client"), *_routes(world, "pod:shop/client")]
    assert [found.count(change) for change in inpod_rules().routing] == [1, 1, 1, 1]


def enrolled(world: World) -> str:
    """A pod with the rules in it, and a rule and a route of its own."""
    pod = "pod:shop/client"
    world.make((pod,))
    world.route(pod).apply([LinkUp(End("lo", LO)), *OWN])
    world.ask("enrol", pod)
    return pod


OWN: tuple[Route | MarkRule, ...] = (
    MarkRule(family=4, preference=100, mark=0x7, mask=0xF, table=7),
    Route(destination=ip_network("10.0.0.0/8"), end=End("lo", LO), kind=RouteKind.LOCAL, table=100),
)


def test_rules_that_are_right_are_not_written_again_and_counters_stay(world: World) -> None:
    pod = enrolled(world)
    before = world.nft(pod).dump(nft_wire.GETRULE, nft_wire.HEAD)
    (written, text), _ = world.ask("ensure", pod, bypass_inbound=False)
    assert (written, text) == (False, render(inpod_rules().ruleset))
    assert world.nft(pod).dump(nft_wire.GETRULE, nft_wire.HEAD) == before, "also their handles are the old ones"


def test_rules_that_differ_are_written_again(world: World) -> None:
    pod = enrolled(world)
    (written, text), _ = world.ask("ensure", pod, bypass_inbound=True)
    assert (written, text) == (True, render(inpod_rules(bypass_inbound=True).ruleset))
    assert world.ask("ensure", pod, bypass_inbound=True)[0][0] is False
    world.nft(pod).delete(["istio-ambient-mangle"])
    world.route(pod).apply([Removed(inpod_rules().routing[0])])
    (written, text), _ = world.ask("ensure", pod, bypass_inbound=False)
    assert (written, text) == (True, render(inpod_rules().ruleset))
    assert set(inpod_rules().routing) <= {*_rules(world, pod), *_routes(world, pod)}


@pytest.mark.parametrize("times", [1, 2])
def test_a_released_pod_has_none_of_our_rules_and_all_of_its_own(world: World, times: int) -> None:
    pod = enrolled(world)
    own = nft.Table("of-the-pod", (nft.Chain("a", None, ((nft.Counter(), nft.Accept()),)),))
    world.nft(pod).apply((own,))
    for _ in range(times):
        assert world.ask("release", pod)[0] == ""
    found = [*_rules(world, pod), *_routes(world, pod)]
    assert not set(inpod_rules().routing) & set(found)
    assert set(OWN) <= set(found)
    assert world.nft(pod).read((own,)) == (own,)


def test_tables_that_are_not_there_are_no_error_to_delete(world: World) -> None:
    world.make(("pod:shop/client",))
    world.nft("pod:shop/client").delete(["istio-ambient-nat", "nowhere"])


def test_pyroute2_sees_what_was_taken_away_no_more(world: World) -> None:
    network, sockets = build(world)
    open_pods(network, sockets)
    pod = network.pods["shop/client"]
    sockets[pod.netns].apply(inpod_rules().routing)
    sockets[pod.netns].apply([Removed(change) for change in inpod_rules().routing])
    assert not any(seen_change(world, change, pod.netns) for change in inpod_rules().routing)
    sockets[pod.netns].apply([LinkDown(pod.eth0)])
    assert not _link(world, pod.netns, pod.eth0)[2]
    sockets[pod.node_netns].apply([LinkDelete(pod.host_end)])
    for netns, end in ((pod.netns, pod.eth0), (pod.node_netns, pod.host_end)):
        assert end.index not in [link["index"] for link in world.pyroute2(netns, "link")]


@pytest.mark.skipif(NFT is None, reason="nft is not installed here (package nftables)")
def test_nft_lists_our_rules_as_it_lists_our_text(world: World) -> None:
    """Loaded by nft from the rendered text, and sent by us: the same ruleset, in nft's own words."""
    world.make(("ours", "nfts"))
    world.nft("ours").apply(inpod_rules().ruleset)
    world.run("nfts", str(NFT), "-f", "-", stdin=render(inpod_rules().ruleset))
    listed = world.run("ours", str(NFT), "--stateless", "list", "ruleset")
    assert listed == world.run("nfts", str(NFT), "--stateless", "list", "ruleset")
    assert listed.count("counter") == 13


def original_destination(sock: socket.socket) -> str:
    """SO_ORIGINAL_DST, which is 80 in both families."""
    if sock.family == socket.AF_INET:
        raw = sock.getsockopt(socket.SOL_IP, 80, 16)
        return f"{IPv4Address(raw[4:8])} {struct.unpack('!H', raw[2:4])[0]}"
    raw = sock.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return f"{IPv6Address(raw[8:24])} {struct.unpack('!H', raw[2:4])[0]}"


@pytest.fixture
def captured(world: World) -> WholeNetwork:
    """A network in which client and server have the in-pod rules."""
    network, sockets = build(world)
    for key in ("shop/client", "shop/server"):
        netns = network.pods[key].netns
        sockets[netns].apply(inpod_rules().routing)
        world.nft(netns).apply(inpod_rules().ruleset)
    open_pods(network, sockets)
    return network


def listen(world: World, netns: str, family: int, port: int) -> socket.socket:
    server = world.socket(netns, family, socket.SOCK_STREAM)
    server.settimeout(5)
    server.bind(("", port))
    server.listen()
    return server


def dial(world: World, netns: str, address: IPv4Address | IPv6Address, port: int, mark: int = 0) -> socket.socket:
    client = world.socket(netns, FAMILY[address.version], socket.SOCK_STREAM)
    client.settimeout(5)
    if mark:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    client.connect((str(address), port))
    return client


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_sends_meets_the_outbound_port_and_keeps_its_destination(
    world: World, captured: WholeNetwork, version: Family
) -> None:
    client, server = captured.pods["shop/client"], captured.pods["shop/server"]
    address = server.ipv4 if version == 4 else server.ipv6
    with listen(world, client.netns, FAMILY[version], 15001) as outbound:
        dial(world, client.netns, address, 8080)
        accepted, _ = outbound.accept()
        with accepted:
            assert original_destination(accepted) == f"{address} 8080"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("source", "mark", "port", "arrives"),
    [
        pytest.param("shop/neighbour", 0, 8080, 15006, id="plaintext meets the inbound port"),
        pytest.param("shop/neighbour", 0, 15008, 15008, id="HBONE goes where it was sent"),
        pytest.param("shop/client", 0x539, 15008, 15008, id="what ztunnel sends is not captured"),
        pytest.param("shop/server", 0, 8080, 8080, id="a pod's call to itself is not captured"),
        pytest.param("shop/server", 0x539, 8080, 8080, id="what ztunnel sends inside the pod is not captured"),
    ],
)
def test_what_arrives_at_a_pod_meets(
    world: World, captured: WholeNetwork, source: str, mark: int, port: int, arrives: int, version: Family
) -> None:
    server = captured.pods["shop/server"]
    address = server.ipv4 if version == 4 else server.ipv6
    with listen(world, server.netns, FAMILY[version], arrives) as listener:
        dial(world, captured.pods[source].netns, address, port, mark)
        accepted, _ = listener.accept()
        accepted.close()


@pytest.mark.parametrize("version", [4, 6])
def test_ztunnel_can_call_the_app_from_the_clients_own_address(
    world: World, captured: WholeNetwork, version: Family
) -> None:
    """The answer finds its way back to lo by the connection's mark, table 100 and the rule of preference 32764."""
    client, server = captured.pods["shop/client"], captured.pods["shop/server"]
    source, address = (client.ipv4, server.ipv4) if version == 4 else (client.ipv6, server.ipv6)
    with listen(world, server.netns, FAMILY[version], 8080) as app:
        upstream = world.socket(server.netns, FAMILY[version], socket.SOCK_STREAM)
        upstream.settimeout(5)
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
        level, transparent = (socket.SOL_IP, 19) if version == 4 else (socket.IPPROTO_IPV6, 75)
        upstream.setsockopt(level, transparent, 1)
        upstream.bind((str(source), 0))
        upstream.connect((str(address), 8080))
        accepted, seen = app.accept()
        with accepted:
            accepted.sendall(b"answer")
            assert (seen[0], upstream.recv(6)) == (str(source), b"answer")
