"""How attributes and expressions of nf_tables are written. A rule is a small program of expressions over registers.

Source: include/uapi/linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import struct

from meshlab.kernel import nft_wire as wire
from meshlab.kernel.netlink import attribute, string


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value % 2**32))


def nested(kind: int, payload: bytes) -> bytes:
    return attribute(0x8000 | kind, payload)


def data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))  # NFTA_DATA_VALUE


def expression(name: str, *parts: bytes) -> bytes:
    return nested(1, string(1, name) + nested(2, b"".join(parts)))  # NFTA_LIST_ELEM{NFTA_EXPR_NAME, NFTA_EXPR_DATA}


def meta(key: int) -> bytes:
    return expression("meta", u32(2, key), u32(1, wire.REGISTER))  # NFTA_META_KEY, NFTA_META_DREG


def compare(value: bytes, *, equal: bool = True) -> bytes:
    return expression("cmp", u32(1, wire.REGISTER), u32(2, wire.EQ if equal else wire.NEQ), data(3, value))


def load(base: int, offset: int, size: int, register: int = wire.REGISTER) -> bytes:
    """A piece of the packet: NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN."""
    return expression("payload", u32(1, register), u32(2, base), u32(3, offset), u32(4, size))
