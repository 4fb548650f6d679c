"""Where packets can be seen, and which pod is behind which link. The lab fills these; proofs only read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshlab.model import Pod

FABRIC = "fabric"
"""A node's link into the fabric. Links of pods are named ``namespace/name``."""
MGMT = "mgmt"
PROXY = "proxy"

LinkId = tuple[int, int]
"""Index of the ring, ifindex: what a recorded packet carries."""


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """One interface of a node's netns."""

    node: str
    ifindex: int
    name: str
    """``namespace/name`` of the pod behind it, or ``fabric``, ``mgmt``, ``proxy``."""

    def __str__(self) -> str:
        return f"{self.node}:{self.name}"


@dataclass(frozen=True, slots=True)
class Site:
    """A pod as packets know it."""

    pod: str
    link: Link
    """The node's end of its veth."""
    addresses: frozenset[bytes]
    """Packed, of both families."""
    enrolled: bool
    """Whether it is in the mesh, or a waypoint's: all that passes between two of these is HBONE."""
    since_ns: int = 0
    """Since when it is enrolled, or not: connections that are older may be as they were."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which link is whose, for one lab."""

    links: Mapping[LinkId, Link]
    sites: Mapping[str, Site]
    """By the pod's key."""

    def link(self, node: int, ifindex: int) -> Link:
        """The link, also where nobody named it (a node's ``lo``)."""
        return self.links.get((node, ifindex)) or Link(f"ring-{node}", ifindex, f"if{ifindex}")

    def fabric(self, node: str) -> Link:
        """The node's link into the fabric."""
        return next(link for link in self.links.values() if link.name == FABRIC and link.node == node)

    def members_since(self) -> Mapping[bytes, int]:
        """Address of each enrolled pod -> since when it is enrolled."""
        return {address: site.since_ns for site in self.sites.values() if site.enrolled for address in site.addresses}


def site(pod: Pod, link: Link, *, enrolled: bool, since_ns: int = 0) -> Site:
    return Site(pod.key, link, frozenset({pod.ipv4.packed, pod.ipv6.packed}), enrolled, since_ns)
