"""Addresses from a place in the file: a rename changes none, and they are equal on every machine.

Neighbours differ in many bits, so that a mask that is off by one shows. The k-th pod's host part is ``k`` times an odd
constant (a bijection), its network part the bit-reversed number of its node.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

PODS4 = IPv4Network("10.0.0.0/8")
PODS6 = IPv6Network("fd5a:7c1e:90d3::/48")
SERVICES4 = IPv4Network("172.16.0.0/12")
SERVICES6 = IPv6Network("fd5a:7c1e:a6b8::/64")
LABS_OWN = (
    IPv4Network("100.64.0.1/32"),
    IPv4Network("100.77.0.0/16"),
    IPv4Network("100.114.0.0/16"),
    IPv6Network("fd5a:7c1e:3f62::/48"),
)
"""Control plane, nodes and their proxies: no pod may ask for an address of these."""
PLACES = 2**16 - 1
"""After so many places their addresses come round again."""
_ODD16 = 0x9E37
_ODD64 = 0x9E3779B97F4A7C15


def node_network4(node: int) -> IPv4Network:
    """The /16 of the pods on the ``node``-th node (from 0, below 255)."""
    return IPv4Network((int(PODS4.network_address) | _reversed8(node + 1) << 16, 16))


def node_network6(node: int) -> IPv6Network:
    """The /64 of the pods on the ``node``-th node (from 0, below 255)."""
    return IPv6Network((int(PODS6.network_address) | _reversed8(node + 1) << 72, 64))


def pod4(node: int, place: int) -> IPv4Address:
    """Address of the ``place``-th pod of the file (from 0, below ``PLACES``), which is on the ``node``-th node."""
    return node_network4(node)[(place + 1) * _ODD16 % 2**16]


def pod6(node: int, place: int) -> IPv6Address:
    return node_network6(node)[(place + 1) * _ODD64 % 2**64]


def service4(place: int) -> IPv4Address:
    """ClusterIP of the ``place``-th Service of the file."""
    return IPv4Address(int(SERVICES4.network_address) | 4 << 16 | (place + 1) * _ODD16 % 2**16)


def service6(place: int) -> IPv6Address:
    return SERVICES6[(place + 1) * _ODD64 % 2**64]


def _reversed8(number: int) -> int:
    if not 0 < number < 256:
        raise ValueError(f"a lab has 1 to 255 nodes, not {number}")
    return int(f"{number:08b}"[::-1], 2)
