"""One contract for Linux and for the public fake: what a plan's changes do, and what is refused with which errno."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Protocol

import pytest
from whole_network import plan

from meshlab.errors import KernelRefusedError
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import Sandbox
from meshlab.lab.sources import read
from meshlab.plan.changes import (
    AddressAssign,
    Change,
    End,
    LinkDelete,
    LinkDown,
    LinkGroup,
    LinkGroupDelete,
    LinkUp,
    MarkRule,
    Removed,
    Route,
    RouteKind,
    Silence,
    Veth,
)
from meshlab.plan.netns import netns_key
from meshlab.testing.kernel import FakeKernel

A, B = End("a", 101), End("b", 102)
LINK = Veth(end=A, peer=B, peer_netns=netns_key("right"), mac="02:6d:00:00:00:01")
HOST = Route(destination=IPv4Network("10.1.2.3/32"), end=A)
BACK = Route(destination=IPv4Network("10.1.2.4/32"), end=B)
RULE = MarkRule(family=4, preference=5, mark=1, mask=1, table=7)
RULE6 = MarkRule(family=6, preference=5, mark=1, mask=1, table=7)
ADDRESS4 = AddressAssign(A, ip_address("10.0.0.1"))
ADDRESS6 = AddressAssign(A, ip_address("fd00::1"))
UNREACHABLE = Route(destination=IPv6Network("fd01::/64"), end=None, kind=RouteKind.UNREACHABLE)


class Routes(Protocol):
    """What builds a network in one netns."""

    def apply(
        self, changes: Sequence[Change], netns: Mapping[str, int] | None = None, *, present_is_fine: bool = False
    ) -> None: ...

    def barrier(self, end: End, timeout_s: float = 2.0) -> None: ...


Edge = Callable[[Sequence[str]], dict[str, tuple[Routes, Mapping[str, int]]]]
"""Names of netns -> for each, what builds in it and the descriptors of all."""


@pytest.fixture(params=["linux", "fake"])
def edge(request: pytest.FixtureRequest) -> Iterator[Edge]:
    if request.param == "fake":
        kernel = FakeKernel()
        yield lambda names: {name: (kernel.routes(name), {}) for name in names}
        return
    sandbox = Sandbox.start()
    opened: list[RouteSocket] = []

    def linux(names: Sequence[str]) -> dict[str, tuple[Routes, Mapping[str, int]]]:
        netns = sandbox.netns(list(names))
        sockets = sandbox.sockets([(one, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for one in netns])
        opened.extend(RouteSocket(sock, name) for sock, name in zip(sockets, names, strict=True))
        by_name = {one.name: one.fd for one in netns}
        return {name: (routes, by_name) for name, routes in zip(names, opened, strict=True)}

    yield linux
    for routes in opened:
        routes.close()
    sandbox.close()


@pytest.fixture
def pair(edge: Edge) -> tuple[Callable[..., None], Callable[..., None], Routes]:
    """Apply in netns ``left``, apply in ``right``, and what waits in ``left``."""
    made = edge(["left", "right"])

    def apply_in(name: str) -> Callable[..., None]:
        routes, fds = made[name]
        return lambda *changes: routes.apply(changes, fds)

    return apply_in("left"), apply_in("right"), made["left"][0]


def refusal(act: Callable[..., None], *changes: Change) -> KernelRefusedError:
    with pytest.raises(KernelRefusedError) as caught:
        act(*changes)
    return caught.value


def test_the_network_of_a_shipped_topology_is_taken_whole(edge: Edge) -> None:
    network = plan(read("quickstart").topology)
    made = edge(network.netns)
    for batch in network.build:
        routes, fds = made[batch.netns]
        routes.apply(batch.changes, fds)
    for netns, end in network.settle:
        made[netns][0].barrier(end)
    for batch in network.opening(network.pods):
        made[batch.netns][0].apply(batch.changes, {})
    for netns, end in network.settle_pods(network.pods):
        made[netns][0].barrier(end)


def test_a_host_route_is_refused_while_its_link_is_down(pair: tuple[Callable[..., None], ...]) -> None:
    left, *_ = pair
    left(LINK)
    assert refusal(left, HOST).errno == errno.ENETDOWN
    left(LinkUp(A), HOST)


def test_a_refusal_names_operation_netns_and_errno(pair: tuple[Callable[..., None], ...]) -> None:
    left, *_ = pair
    left(LINK)
    error = refusal(left, HOST)
    assert (error.operation, error.netns) == (str(HOST), "left")
    assert "add unicast route 10.1.2.3/32 dev a table 254 in netns 'left': Network is down [100]" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        Silence(End("x", 77)),
        LinkUp(End("x", 77)),
        LinkDown(End("x", 77)),
        LinkDelete(End("x", 77)),
        LinkGroup(End("x", 77), 5),
        AddressAssign(End("x", 77), ip_address("10.0.0.1")),
    ],
    ids=lambda change: type(change).__name__,
)
def test_a_link_that_is_not_there_is_refused(pair: tuple[Callable[..., None], ...], change: Change) -> None:
    left, *_ = pair
    assert refusal(left, change).errno == errno.ENODEV


def test_nothing_is_made_twice(pair: tuple[Callable[..., None], ...]) -> None:
    left, *_ = pair
    left(LINK, LinkUp(A), ADDRESS4, HOST, RULE)
    assert refusal(left, ADDRESS4).errno == errno.EEXIST
    assert refusal(left, HOST).errno == errno.EEXIST
    assert refusal(left, RULE).errno == errno.EEXIST
    assert refusal(left, LINK).errno in {errno.EEXIST, errno.EBUSY}


def test_what_is_there_already_is_fine_where_that_is_said(edge: Edge) -> None:
    routes, fds = edge(["left", "right"])["left"]
    routes.apply([LINK, LinkUp(A), HOST, RULE], fds)
    routes.apply([HOST, RULE, ADDRESS4], fds, present_is_fine=True)
    with pytest.raises(KernelRefusedError, match=r"assign .* to a in netns"):
        routes.apply([ADDRESS4], fds)


def test_a_deleted_link_takes_its_peer_and_their_routes_along_and_can_be_made_again(
    pair: tuple[Callable[..., None], ...],
) -> None:
    left, right, _ = pair
    for apply, end in ((left, LinkDelete(A)), (right, LinkDelete(B))):
        left(LINK, LinkUp(A), HOST)
        right(LinkUp(B), BACK)
        apply(end)
        assert refusal(left, LinkUp(A)).errno == errno.ENODEV
        assert refusal(right, LinkUp(B)).errno == errno.ENODEV
    left(LINK, LinkUp(A), HOST)
    right(LinkUp(B), BACK)


def test_a_deleted_group_of_links_takes_all_of_them_and_no_other(pair: tuple[Callable[..., None], ...]) -> None:
    left, right, _ = pair
    ends = [End(f"a{number}", 200 + number) for number in range(3)]
    peers = [End(f"b{number}", 300 + number) for number in range(3)]
    left(*(replace(LINK, end=end, peer=peer) for end, peer in zip(ends, peers, strict=True)))
    left(*(LinkGroup(end, 5) for end in ends[:2]), LinkGroupDelete(5))
    assert [refusal(left, LinkUp(end)).errno for end in ends[:2]] == [errno.ENODEV] * 2
    assert [refusal(right, LinkUp(peer)).errno for peer in peers[:2]] == [errno.ENODEV] * 2
    left(LinkUp(ends[2]))
    right(LinkUp(peers[2]))


def test_a_link_that_is_taken_down_carries_nothing_and_loses_its_routes_and_ipv6_addresses(
    pair: tuple[Callable[..., None], Callable[..., None], Routes],
) -> None:
    left, right, waits = pair
    left(LINK, LinkUp(A), ADDRESS4, ADDRESS6, HOST)
    right(LinkUp(B))
    waits.barrier(A)
    left(LinkDown(A))
    with pytest.raises(KernelRefusedError, match="wait for a to be up"):
        waits.barrier(A, timeout_s=0.05)
    assert refusal(left, HOST).errno == errno.ENETDOWN
    left(LinkUp(A), HOST, ADDRESS6)
    waits.barrier(A)
    assert refusal(left, ADDRESS4).errno == errno.EEXIST


@pytest.mark.parametrize("added", [HOST, UNREACHABLE, RULE, RULE6, ADDRESS4, ADDRESS6], ids=str)
def test_what_is_taken_away_is_gone_and_can_be_added_again(
    pair: tuple[Callable[..., None], ...], added: Route | MarkRule | AddressAssign
) -> None:
    left, *_ = pair
    left(LINK, LinkUp(A), added)
    left(Removed(added))
    left(added)
    assert refusal(left, added).errno == errno.EEXIST


ABSENT = [
    (Removed(HOST), errno.ESRCH),
    (Removed(UNREACHABLE), errno.ESRCH),
    (Removed(RULE), errno.ENOENT),
    (Removed(RULE6), errno.ENOENT),
    (Removed(ADDRESS4), errno.EADDRNOTAVAIL),
    (Removed(ADDRESS6), errno.EADDRNOTAVAIL),
    (LinkDelete(End("x", 77)), errno.ENODEV),
    (LinkGroupDelete(5), errno.ENODEV),
]


@pytest.mark.parametrize(("change", "number"), ABSENT, ids=str)
def test_to_take_away_what_is_not_there_is_refused_unless_that_is_fine(
    pair: tuple[Callable[..., None], ...], change: Removed | LinkDelete | LinkGroupDelete, number: int
) -> None:
    left, *_ = pair
    left(LINK, LinkUp(A))
    assert refusal(left, change).errno == number
    left(replace(change, absent_is_fine=True))


def test_what_follows_a_refused_change_is_made_all_the_same(pair: tuple[Callable[..., None], ...]) -> None:
    left, *_ = pair
    refusal(left, LINK, LinkUp(End("x", 77)), LinkUp(A), HOST)
    assert refusal(left, HOST).errno == errno.EEXIST, "the route was made"


def test_a_link_carries_traffic_when_both_ends_are_up(
    pair: tuple[Callable[..., None], Callable[..., None], Routes],
) -> None:
    left, right, waits = pair
    left(LINK, LinkUp(A))
    with pytest.raises(KernelRefusedError, match="wait for a to be up"):
        waits.barrier(A, timeout_s=0.05)
    right(LinkUp(B))
    waits.barrier(A)
