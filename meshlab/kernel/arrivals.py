"""How many connections came to the programs of a pod, by client and port: the kernel counts their SYNs.

What a program of a pod's own has received nobody can ask it. But every connection to it, also the one that a node proxy
makes inside the pod from the client's address, passes the netns' INPUT hook. There one rule for each family puts
(client's address, port) into a set of nf_tables whose elements count:

    table inet meshlab-arrivals
        set arrivals4  { type ipv4_addr . inet_service; flags dynamic; counter }
        chain input    { type filter hook input priority 0
                         tcp flags & (syn | ack) == syn  add @arrivals4 { ip saddr . tcp dport counter } }

It decides nothing, and no program of the pod notices it.
Sources: include/uapi/linux/netfilter/nf_tables.h; ``nft --debug=netlink``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from meshlab.errors import KernelRefusedError
from meshlab.kernel import nft_wire as wire
from meshlab.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Message,
    NetlinkSocket,
    attributes,
    framed,
    string,
    understood,
)
from meshlab.kernel.nft_encode import compare, data, expression, load, meta, nested, u32
from meshlab.model import Address

_TABLE, _CHAIN = "meshlab-arrivals", "input"
_NEWSET, _GETSETELEM = wire.SUBSYSTEM | 9, wire.SUBSYSTEM | 13
_NFT_SET_EVAL = 0x20
_MOST_ELEMENTS = 65535
_LOCAL_IN = 1
_REGISTER32 = 8
"""NFT_REG32_00, the first of those that a key of several fields lies in."""
_TCP = 6
_FLAGS_OFFSET, _SYN, _SYN_ACK = 13, 0x02, 0x12


@dataclass(frozen=True, slots=True)
class _Family:
    """What is different between IPv4 and IPv6."""

    name: str
    protocol: int
    """NFPROTO_*."""
    source: int
    """Where the source address lies in the header."""
    size: int


_FAMILIES = (_Family("arrivals4", 2, 12, 4), _Family("arrivals6", 10, 8, 16))


class ArrivalsSocket(NetlinkSocket):
    """Counts connections in one netns; a socket of ``NETLINK_NETFILTER``."""

    def watch(self) -> None:
        """Begin to count.

        Raises:
            KernelRefusedError: the kernel refused the rules.
        """
        messages = list(_messages())
        messages[-1] = messages[-1]._replace(flags=messages[-1].flags | NLM_F_ACK)
        begin = Message(wire.BATCH_BEGIN, NLM_F_REQUEST, wire.BATCH_HEAD)
        end = Message(wire.BATCH_END, NLM_F_REQUEST, wire.BATCH_HEAD)
        answers = self.exchange(framed([begin, *messages, end]))
        self.refuse_errors(answers, lambda place: f"count connections (message {place})")
        if not answers:
            raise KernelRefusedError("count connections", self.netns, 0, "no acknowledgement")

    @understood()
    def counts(self) -> dict[tuple[Address, int], int]:
        """(client's address, port) -> SYNs to that port since ``watch``; a SYN that was sent again counts again.

        Raises:
            ValueError: the kernel's answer cannot be read.
        """
        return {
            key: count
            for family in _FAMILIES
            for body in self.dump(_GETSETELEM, wire.HEAD + string(1, _TABLE) + string(2, family.name))
            for key, count in _elements(body[len(wire.HEAD) :], family)
        }


def _messages() -> Iterator[Message]:
    create = NLM_F_REQUEST | NLM_F_CREATE
    hook = nested(4, u32(1, _LOCAL_IN) + u32(2, 0))
    chain = string(1, _TABLE) + string(3, _CHAIN) + hook + u32(5, wire.ACCEPT) + string(7, "filter")
    yield Message(wire.NEWTABLE, create, wire.HEAD + string(1, _TABLE))
    yield Message(wire.NEWCHAIN, create, wire.HEAD + chain)
    for number, family in enumerate(_FAMILIES, 1):
        yield Message(_NEWSET, create, wire.HEAD + _set(family, number))
        rule = string(1, _TABLE) + string(2, _CHAIN) + nested(4, b"".join(_count(family, number)))
        yield Message(wire.NEWRULE, create | NLM_F_APPEND, wire.HEAD + rule)


def _set(family: _Family, number: int) -> bytes:
    """NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DESC, _ID; a port takes a whole register, so four bytes."""
    size = nested(9, u32(1, _MOST_ELEMENTS))
    key = u32(4, 0) + u32(5, family.size + 4)
    return string(1, _TABLE) + string(2, family.name) + u32(3, _NFT_SET_EVAL) + key + size + u32(10, number)


def _count(family: _Family, number: int) -> Iterator[bytes]:
    yield meta(wire.META_NFPROTO) + compare(bytes([family.protocol]))
    yield meta(wire.META_L4PROTO) + compare(bytes([_TCP]))
    yield load(wire.TRANSPORT, _FLAGS_OFFSET, 1)
    mask = data(4, bytes([_SYN_ACK])) + data(5, bytes(1))
    yield expression("bitwise", u32(1, wire.REGISTER), u32(2, wire.REGISTER), u32(3, 1), mask)
    yield compare(bytes([_SYN]))
    yield load(wire.NETWORK, family.source, family.size, _REGISTER32)
    yield load(wire.TRANSPORT, 2, 2, _REGISTER32 + family.size // 4)
    # NFTA_DYNSET_SET_NAME, _SET_ID, _OP (add), _SREG_KEY, _EXPR
    counter = nested(7, string(1, "counter"))
    yield expression("dynset", string(1, family.name), u32(2, number), u32(3, 0), u32(4, _REGISTER32), counter)


def _elements(body: bytes, family: _Family) -> Iterator[tuple[tuple[Address, int], int]]:
    """NFTA_SET_ELEM_LIST_ELEMENTS: a list of elements, each with its key and its counter."""
    for _, element in attributes(dict(attributes(body)).get(3, b"")):
        parts = dict(attributes(element))
        key = dict(attributes(parts[1]))[1]  # NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
        counter = dict(attributes(dict(attributes(parts[7]))[2]))  # NFTA_SET_ELEM_EXPR, NFTA_EXPR_DATA
        port, *_ = struct.unpack("!H", key[family.size : family.size + 2])
        yield (ip_address(key[: family.size]), port), struct.unpack("!Q", counter[2])[0]  # NFTA_COUNTER_PACKETS
