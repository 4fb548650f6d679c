"""The numbers of nf_tables' wire format that an encoder and a decoder share.

Sources: include/uapi/linux/netfilter/{nf_tables,nfnetlink}.h, include/uapi/linux/netfilter.h
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from meshlab.plan import nft

NETLINK_NETFILTER = 12
SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, GETRULE, DELRULE = (SUBSYSTEM | n for n in (0, 2, 3, 4, 6, 7, 8))
INET = 1  # NFPROTO_INET
HEAD = struct.pack("!BBH", INET, 0, 0)
BATCH_HEAD = struct.pack("!BBH", 0, 0, 10)

HOOKS = {nft.Hook.PREROUTING: 0, nft.Hook.OUTPUT: 3}
VERDICT_REGISTER, REGISTER = 0, 1
ACCEPT, JUMP = 1, -3
EQ, NEQ = 0, 1
META_MARK, META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 3, 6, 7, 15, 16
CT_MARK = 3
NETWORK, TRANSPORT = 1, 2
PORT_SPECIFIED = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
PROTOCOLS = {"tcp": 6, "udp": 17}
IFNAME_BYTES = 16

META = {
    nft.Field.L4PROTO: META_L4PROTO,
    nft.Field.MARK: META_MARK,
    nft.Field.IIFNAME: META_IIFNAME,
    nft.Field.OIFNAME: META_OIFNAME,
}


class Payload(NamedTuple):
    """Where a field lies in the packet, and the protocol that must be checked before."""

    base: int
    offset: int
    size: int
    meta: int
    protocol: int


PAYLOAD = {
    nft.Field.SADDR4: Payload(NETWORK, 12, 4, META_NFPROTO, 2),
    nft.Field.DADDR4: Payload(NETWORK, 16, 4, META_NFPROTO, 2),
    nft.Field.SADDR6: Payload(NETWORK, 8, 16, META_NFPROTO, 10),
    nft.Field.DADDR6: Payload(NETWORK, 24, 16, META_NFPROTO, 10),
    nft.Field.TCP_DPORT: Payload(TRANSPORT, 2, 2, META_L4PROTO, 6),
}
