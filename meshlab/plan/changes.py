"""Changes of a netns as data: what ``kernel.netlink`` encodes and sends, and a test can compare.

Each is one rtnetlink message. They name interfaces by index (a plan gives every end its own, so that nothing has to be
asked), and other netns by their key in the plan. ``str(change)`` is what an error says was refused.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from meshlab.model import Address, Family
from meshlab.plan.netns import NetnsKey

Network = IPv4Network | IPv6Network

LO = 1
"""The index of ``lo`` in every netns."""
MAIN_TABLE = 254
LOCAL_TABLE = 255


@dataclass(frozen=True, slots=True)
class End:
    """One end of a veth."""

    name: str
    """At most 15 bytes."""
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """Create a pair, its peer directly in another netns. Both ends stay down.

    Silent by make: no ARP, and the same MAC at both ends, which is where the kernel sends what it cannot resolve. One
    queue per end, since each costs a sysfs folder and an RCU grace period.
    """

    end: End
    peer: End
    peer_netns: NetnsKey
    """Key of the netns that gets ``peer``."""
    mac: str

    def __str__(self) -> str:
        return f"create veth {self.end.name} with peer {self.peer.name} in '{self.peer_netns}'"


@dataclass(frozen=True, slots=True)
class Silence:
    """No link-local address (addr_gen_mode none): without it the link sends MLD, NS and RS by itself."""

    end: End

    def __str__(self) -> str:
        return f"set addr_gen_mode none on {self.end.name}"


@dataclass(frozen=True, slots=True)
class LinkUp:
    end: End

    def __str__(self) -> str:
        return f"set {self.end.name} up"


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Take the end down. Linux drops the routes by it and its IPv6 addresses; IPv4 addresses stay."""

    end: End

    def __str__(self) -> str:
        return f"set {self.end.name} down"


@dataclass(frozen=True, slots=True)
class LinkDelete:
    """Delete the end, and with it its peer, wherever that is, and every address and route of both.

    It takes Linux 17 ms, in which no link of the machine can be changed. A ``LinkGroupDelete`` takes that once for all.
    """

    end: End
    absent_is_fine: bool = False

    def __str__(self) -> str:
        return f"delete {self.end.name}"


@dataclass(frozen=True, slots=True)
class LinkGroup:
    """Put the end into a group of its netns; all begin in group 0."""

    end: End
    group: int

    def __str__(self) -> str:
        return f"put {self.end.name} into link group {self.group}"


@dataclass(frozen=True, slots=True)
class LinkGroupDelete:
    """Delete every end of a group, as ``LinkDelete`` does with one."""

    group: int
    absent_is_fine: bool = False

    def __str__(self) -> str:
        return f"delete link group {self.group}"


@dataclass(frozen=True, slots=True)
class AddressAssign:
    """Assign the address alone (/32 or /128), without duplicate address detection."""

    end: End
    address: Address

    def __str__(self) -> str:
        return f"assign {self.address} to {self.end.name}"


class RouteKind(Enum):
    """Linux' route types, with its numbers (man 7 rtnetlink)."""

    UNICAST = 1
    LOCAL = 2
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route without gateway: the link behind ``end`` is point to point."""

    destination: Network
    end: End | None
    """``None`` where the route is unreachable."""
    kind: RouteKind = RouteKind.UNICAST
    table: int = MAIN_TABLE
    quickack: bool = False
    """Acknowledge every segment at once (RTAX_QUICKACK), for peers that leave Nagle's algorithm on."""

    def __str__(self) -> str:
        where = f" dev {self.end.name}" if self.end else ""
        return f"add {self.kind.name.lower()} route {self.destination}{where} table {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRule:
    """``ip rule``: packets with this mark are looked up in ``table``."""

    family: Family
    preference: int
    mark: int
    mask: int
    table: int

    def __str__(self) -> str:
        return f"add IPv{self.family} rule {self.preference}: fwmark {self.mark:#x}/{self.mask:#x} lookup {self.table}"


@dataclass(frozen=True, slots=True)
class Removed:
    """Take away what ``change`` had added."""

    change: AddressAssign | Route | MarkRule
    absent_is_fine: bool = False

    def __str__(self) -> str:
        return f"take away what this added: {self.change}"


LinkChange = Veth | Silence | LinkUp | LinkDown | LinkDelete | LinkGroup | LinkGroupDelete
Change = LinkChange | AddressAssign | Route | MarkRule | Removed

_ABSENT = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL})
"""How Linux says that a link, a route, a rule or an address is not there."""


def allows(change: Change, number: int) -> bool:
    """Whether the refusal of ``change`` with this errno is one that it allows: what it takes away was not there."""
    return isinstance(change, LinkDelete | LinkGroupDelete | Removed) and change.absent_is_fine and number in _ABSENT


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes to be sent, in order, through one socket that was opened in ``netns``."""

    netns: NetnsKey
    changes: tuple[Change, ...]

    def peers(self) -> frozenset[NetnsKey]:
        """Keys of the netns whose descriptors the changes need."""
        return frozenset(change.peer_netns for change in self.changes if isinstance(change, Veth))


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A file under /proc/sys that must be written *in* the netns: netlink has no message for these."""

    netns: NetnsKey
    name: str
    """The path below /proc/sys."""
    value: str


def host_network(address: Address) -> Network:
    """The network of one address, /32 or /128."""
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network(address)


DEFAULT4 = IPv4Network("0.0.0.0/0")
DEFAULT6 = IPv6Network("::/0")
