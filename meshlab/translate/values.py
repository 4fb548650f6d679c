"""One value of a manifest as one value of a Match.

A ztunnel takes what it is sent without a word and enforces less where a value means nothing to it, so what cannot be
said on the wire is refused or left out here, each as Istio does (address blocks: stricter, they are refused).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING

from meshlab.protocols.messages import message

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from meshlab.protocols.stubs.authorization_pb2 import Address, ServiceAccountMatch, StringMatch

Values = Callable[[tuple[str, ...]], Iterator["Message | int"]]
"""Strings of a manifest -> values of one field of a Match."""


def string_matches(patterns: tuple[str, ...]) -> Iterator[StringMatch]:
    """``*`` anything that is there, ``*x`` suffix, ``x*`` prefix, else exact; a star elsewhere is a letter."""
    for pattern in patterns:
        match = message("istio.security.StringMatch")()
        if pattern == "*":
            match.presence.SetInParent()
        elif pattern.startswith("*"):
            match.suffix = pattern[1:]
        elif pattern.endswith("*"):
            match.prefix = pattern[:-1]
        else:
            match.exact = pattern
        yield match


def addresses(blocks: tuple[str, ...]) -> Iterator[Address]:
    """CIDRs with their host bits cleared; a single address is a block of one.

    Raises:
        ValueError: one is no address block.
    """
    for block in blocks:
        network = ip_network(block, strict=False)
        yield message("istio.security.Address")(address=network.network_address.packed, length=network.prefixlen)


def ports(texts: tuple[str, ...]) -> Iterator[int]:
    """Port numbers; as in Istio, text that is none is left out."""
    for text in texts:
        if text.isascii() and text.isdigit() and int(text) <= 65535:
            yield int(text)


def service_accounts(names: tuple[str, ...], namespace: str) -> Iterator[ServiceAccountMatch]:
    """``ns/sa``, or ``sa`` in ``namespace``, which is the policy's."""
    for name in names:
        before, slash, after = name.partition("/")
        match = message("istio.security.ServiceAccountMatch")
        yield (
            match(namespace=before, serviceAccount=after) if slash else match(namespace=namespace, serviceAccount=name)
        )
