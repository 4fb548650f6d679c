"""One direction of a connection as it was seen on one link, and a canary as it was found there."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from meshlab.model.ambient import HBONE_PORT
from meshlab.proofs.links import Link
from meshlab.proofs.packets import ICMP, ICMPV6, TCP, UDP

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


class Flow(NamedTuple):
    """One direction of one connection (or of datagrams) on one link."""

    link: Link
    outgoing: bool
    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    payload_bytes: int
    times: tuple[int, ...]
    """Of its packets, in ns."""
    data: tuple[tuple[int, int], ...]
    """Time and bytes of each that carried something."""
    from_birth: bool
    """Its first byte was seen; else nobody knows where its TLS records begin."""
    hole: bool
    """Bytes are missing between others that were seen."""
    not_tls: str
    """On 15008: why its bytes are not TLS records; empty where they are."""
    no_certificate: str = ""
    """On 15008: why its client cannot have shown a certificate; empty where it may have."""
    began_ns: int = 0
    """When its first packet was seen, in the window or before it."""

    @property
    def is_hbone(self) -> bool:
        return self.protocol == TCP and HBONE_PORT in {self.source_port, self.destination_port}

    def __str__(self) -> str:
        name = _PROTOCOLS.get(self.protocol, f"protocol {self.protocol}")
        source, destination = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        return f"{name} {source} -> {destination} on {self.link}"


class Finding(NamedTuple):
    """A call's canary, readable on a link."""

    number: int | None
    """The call's; ``None`` where its digits were cut off."""
    encoding: str
    """``raw``, ``hex``, ``base64+0`` to ``+2`` (bytes before it in its group), ``gzip``, ``gzip+hex`` ..."""
    link: Link
    outgoing: bool
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    time_ns: int
    reassembled: bool
    """Only the segments together show it."""

    def __str__(self) -> str:
        source, destination = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        how = f"{self.encoding}, over several segments" if self.reassembled else self.encoding
        return f"canary of call {self.number} in clear ({how}) on {self.link}: {source} -> {destination}"


def _end(address: bytes, port: int) -> str:
    if not address:
        return "not IP"
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"
