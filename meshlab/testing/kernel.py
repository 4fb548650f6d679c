"""A kernel for tests that need none: it takes the changes of a plan as Linux does, and refuses what Linux refuses.

    kernel = FakeKernel()
    routes = kernel.routes("node:node-1")       what ``kernel.netlink.RouteSocket`` is to the real one
    routes.apply(batch.changes)
    kernel.netns["node:node-1"].links            what came of it

It is held to the real edge's contract (``tests/contracts/test_kernel_contract.py``), and has no more than that: links,
addresses, routes and mark rules, with the errno of each refusal. Packets do not travel here.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meshlab.errors import KernelRefusedError
from meshlab.plan.changes import (
    LO,
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
    Silence,
    Veth,
    allows,
)


@dataclass(slots=True)
class FakeLink:
    """One end of a link."""

    name: str
    peer: FakeLink | None = None
    """``None``: the loopback."""
    up: bool = False
    silent: bool = False
    group: int = 0
    addresses: list[str] = field(default_factory=list)

    @property
    def carries(self) -> bool:
        """Whether packets pass: it is up, and so is its other end."""
        return self.up and (self.peer is None or self.peer.up)


@dataclass(slots=True)
class FakeNetns:
    """What one netns holds."""

    links: dict[int, FakeLink] = field(default_factory=lambda: {LO: FakeLink("lo")})
    routes: dict[tuple[str, int], Route] = field(default_factory=dict)
    """(destination, table) -> route."""
    rules: set[MarkRule] = field(default_factory=set)

    def drop_routes(self, index: int) -> None:
        """Forget every route by the link of this index, as Linux does when it goes down."""
        kept = {key: route for key, route in self.routes.items() if route.end is None or route.end.index != index}
        self.routes = kept


class FakeKernel:
    """Any number of netns, by name; one that is named for the first time is made."""

    def __init__(self) -> None:
        self.netns: dict[str, FakeNetns] = {}

    def routes(self, netns: str) -> FakeRouteSocket:
        self.netns.setdefault(netns, FakeNetns())
        return FakeRouteSocket(self, netns)


class FakeRouteSocket:
    """``RouteSocket`` without a kernel."""

    def __init__(self, kernel: FakeKernel, netns: str) -> None:
        self.netns = netns
        self._kernel = kernel
        self._here = kernel.netns[netns]

    def apply(
        self, changes: Sequence[Change], netns: Mapping[str, int] | None = None, *, present_is_fine: bool = False
    ) -> None:
        """Make all ``changes``, in order; peers go to netns by their key, so ``netns`` is not looked at.

        Raises:
            KernelRefusedError: the first one that was refused. Those after it were tried all the same.
        """
        refused = [
            (change, number)
            for change in changes
            if (number := self._make(change))
            and not allows(change, number)
            and not (present_is_fine and number == errno.EEXIST)
        ]
        if refused:
            change, number = refused[0]
            raise KernelRefusedError(str(change), self.netns, number)

    def barrier(self, end: End, timeout_s: float = 2.0) -> None:
        """Return if ``end`` carries traffic.

        Raises:
            KernelRefusedError: there is no such link, or it or its other end is down.
        """
        link = self._here.links.get(end.index)
        if link is None:
            raise KernelRefusedError(f"read link {end.name}", self.netns, errno.ENODEV)
        if not link.carries:
            raise KernelRefusedError(
                f"wait for {end.name} to be up", self.netns, errno.ETIMEDOUT, f"after {timeout_s} s"
            )

    def close(self) -> None:
        """Nothing is held."""

    def _make(self, change: Change) -> int:
        """Make one change; the errno of its refusal, or 0."""
        match change:
            case Veth():
                return self._veth(change)
            case MarkRule():
                return self._rule(change)
            case Removed(added):
                return self._remove(added)
            case LinkGroupDelete(group):
                return self._delete([link for link in self._here.links.values() if link.group == group])
            case Silence() | LinkUp() | LinkDown() | LinkDelete() | LinkGroup() | AddressAssign() | Route():
                if change.end is None:
                    return self._route(change)
                link = self._here.links.get(change.end.index)
                return errno.ENODEV if link is None else self._on(link, change)

    def _on(
        self, link: FakeLink, change: Silence | LinkUp | LinkDown | LinkDelete | LinkGroup | AddressAssign | Route
    ) -> int:
        match change:
            case Silence():
                link.silent = True
            case LinkUp():
                link.up = True
            case LinkDown(end):
                link.up = False
                link.addresses = [address for address in link.addresses if ":" not in address]
                self._here.drop_routes(end.index)
            case LinkDelete():
                self._delete([link])
            case LinkGroup(_, group):
                link.group = group
            case AddressAssign(_, address):
                if str(address) in link.addresses:
                    return errno.EEXIST
                link.addresses.append(str(address))
            case Route():
                return self._route(change) if link.up else errno.ENETDOWN
        return 0

    def _veth(self, veth: Veth) -> int:
        there = self._kernel.netns.setdefault(veth.peer_netns, FakeNetns())
        for netns, end in ((self._here, veth.end), (there, veth.peer)):
            if end.index in netns.links or end.name in {link.name for link in netns.links.values()}:
                return errno.EBUSY if end.index in netns.links else errno.EEXIST
        here, peer = FakeLink(veth.end.name), FakeLink(veth.peer.name)
        here.peer, peer.peer = peer, here
        self._here.links[veth.end.index], there.links[veth.peer.index] = here, peer
        return 0

    def _delete(self, links: Sequence[FakeLink]) -> int:
        """Ends and their peers, wherever they are."""
        gone = [id(end) for link in links for end in (link, link.peer)]
        for netns in self._kernel.netns.values():
            for index in [index for index, link in netns.links.items() if id(link) in gone]:
                del netns.links[index]
                netns.drop_routes(index)
        return 0 if links else errno.ENODEV

    def _remove(self, added: AddressAssign | Route | MarkRule) -> int:
        match added:
            case Route():
                return 0 if self._here.routes.pop((str(added.destination), added.table), None) else errno.ESRCH
            case MarkRule():
                if added not in self._here.rules:
                    return errno.ENOENT
                self._here.rules.remove(added)
            case AddressAssign(end, address):
                link = self._here.links.get(end.index)
                if link is None:
                    return errno.ENODEV
                if str(address) not in link.addresses:
                    return errno.EADDRNOTAVAIL
                link.addresses.remove(str(address))
        return 0

    def _route(self, route: Route) -> int:
        key = (str(route.destination), route.table)
        if key in self._here.routes:
            return errno.EEXIST
        self._here.routes[key] = route
        return 0

    def _rule(self, rule: MarkRule) -> int:
        if rule in self._here.rules:
            return errno.EEXIST
        self._here.rules.add(rule)
        return 0
