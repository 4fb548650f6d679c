"""rtnetlink: encode the changes of a plan and send them, many to a packet.

    plan.Change --encode--> one message --\\
    plan.Change --encode--> one message ---+--> one sendto; the kernel answers errors, and the last message's ack
    plan.Change --encode--> one message --/

A netlink socket stays in the netns it was opened in, whoever sends. The kernel works in the sender's context, so when
``sendto`` returns everything was done and every answer is waiting. The sequence number of a message is its place.

Sources: man 7 netlink, man 7 rtnetlink, include/uapi/linux/{netlink,rtnetlink,if_link,fib_rules}.h
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meshlab.errors import KernelRefusedError
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
    allows,
)

NETLINK_ROUTE = 0
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLMSG_DONE = 3

_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_NLA = struct.Struct("=HH")
_RECEIVE_BYTES = 65536
_DUMP_S = 5.0
_DUMP_TRIES = 10
_MESSAGES_PER_SEND = 64
"""More errors than this at once would not fit the default receive buffer."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWRULE = 20, 24, 32
_RTM_DEL = 1
"""From the number of each RTM_NEW to that of its RTM_DEL."""
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFLA_OPERSTATE = 16
_IFLA_GROUP = 27
_IF_OPER_UP = 6
_RTPROT_STATIC = 4
_SCOPE = {RouteKind.UNICAST: 253, RouteKind.LOCAL: 254, RouteKind.UNREACHABLE: 0}


class Message(NamedTuple):
    """One netlink message without its header."""

    kind: int
    flags: int
    body: bytes


# --- the encoding that every netlink family shares -------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    size = _NLA.size + len(payload)
    return _NLA.pack(size, kind) + payload + bytes(-size % 4)


def string(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in ``data``, in order, without the flags in their types."""
    offset = 0
    while offset + _NLA.size <= len(data):
        size, kind = _NLA.unpack_from(data, offset)
        if size < _NLA.size:
            raise ValueError(f"a netlink attribute of {size} bytes")
        yield kind & _NLA_TYPE_MASK, data[offset + _NLA.size : offset + size]
        offset += (size + 3) & ~3


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Decorate a function that reads an answer of the kernel: whatever it stumbles over becomes a ``ValueError``."""
    try:
        yield
    except (LookupError, struct.error) as error:
        raise ValueError(f"an answer that cannot be read: {type(error).__name__}: {error}") from error


def framed(messages: Sequence[Message], first: int = 0) -> bytes:
    """The messages as one packet; each one's sequence number is its place, counted from ``first``."""
    return b"".join(
        _HEADER.pack(_HEADER.size + len(body), kind, flags, place, 0) + body + bytes(-len(body) % 4)
        for place, (kind, flags, body) in enumerate(messages, first)
    )


# --- rtnetlink -------------------------------------------------------------------------------------------------------


def encode(change: Change, netns: Mapping[str, int]) -> Message:
    """One change as one message; ``netns`` has the descriptor of each netns that a peer goes to."""
    match change:
        case Veth():
            return _veth(change, netns[change.peer_netns])
        case Silence(end):
            # Refused inside the message that creates the link (EAFNOSUPPORT), so it is one of its own.
            inet6 = attribute(socket.AF_INET6, attribute(8, b"\1"))  # IFLA_INET6_ADDR_GEN_MODE: none
            return Message(_RTM_SETLINK, NLM_F_REQUEST, _ifinfo(end.index) + attribute(26, inet6))  # IFLA_AF_SPEC
        case LinkUp(end):
            return Message(_RTM_SETLINK, NLM_F_REQUEST, _ifinfo(end.index, _IFF_UP))
        case LinkDown(end):
            return Message(_RTM_SETLINK, NLM_F_REQUEST, _ifinfo(end.index, 0, _IFF_UP))
        case LinkDelete(end):
            return Message(_RTM_DELLINK, NLM_F_REQUEST, _ifinfo(end.index))
        case LinkGroup(end, group):
            return Message(_RTM_SETLINK, NLM_F_REQUEST, _ifinfo(end.index) + u32(_IFLA_GROUP, group))
        case LinkGroupDelete(group):
            return Message(_RTM_DELLINK, NLM_F_REQUEST, _ifinfo(0) + u32(_IFLA_GROUP, group))
        case AddressAssign():
            return _address(change)
        case Route():
            return _route(change)
        case MarkRule():
            return _rule(change)
        case Removed(added):
            kind, _, body = encode(added, netns)
            return Message(kind + _RTM_DEL, NLM_F_REQUEST, body)


def _ifinfo(index: int, flags: int = 0, mask: int | None = None) -> bytes:
    """``mask``: which flags are set to what ``flags`` says; those in it, if not given."""
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, flags if mask is None else mask)


def _veth(veth: Veth, peer_netns: int) -> Message:
    mac = bytes.fromhex(veth.mac.replace(":", ""))
    common = attribute(1, mac) + u32(31, 1) + u32(32, 1)  # IFLA_ADDRESS, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES
    # IFF_UP in the peer's part is refused (ENOTCONN); IFF_NOARP is taken.
    peer = _ifinfo(veth.peer.index, _IFF_NOARP) + string(3, veth.peer.name) + common + u32(28, peer_netns)
    info = string(1, "veth") + attribute(2, attribute(1, peer))  # IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER
    body = _ifinfo(veth.end.index, _IFF_NOARP) + string(3, veth.end.name) + common + attribute(18, info)
    return Message(_RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, body)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _address(change: AddressAssign) -> Message:
    address = change.address
    flags = 0 if address.version == 4 else 0x02  # IFA_F_NODAD
    head = _IFADDR.pack(_family(address.version), address.max_prefixlen, flags, 0, change.end.index)
    body = head + attribute(2, address.packed) + attribute(1, address.packed)  # IFA_LOCAL, IFA_ADDRESS
    return Message(_RTM_NEWADDR, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, body)


def _route(route: Route) -> Message:
    network = route.destination
    scope = _SCOPE[route.kind] if network.version == 4 else 0
    head = _RTMSG.pack(
        _family(network.version), network.prefixlen, 0, 0, route.table, _RTPROT_STATIC, scope, route.kind.value, 0
    )
    body = head + u32(15, route.table)  # RTA_TABLE
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)  # RTA_DST
    if route.end is not None:
        body += u32(4, route.end.index)  # RTA_OIF
    if route.quickack:
        body += attribute(8, u32(15, 1))  # RTA_METRICS, RTAX_QUICKACK
    return Message(_RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, body)


def _rule(rule: MarkRule) -> Message:
    to_table = 1  # FR_ACT_TO_TBL
    head = _RTMSG.pack(_family(rule.family), 0, 0, 0, rule.table, 0, 0, to_table, 0)
    # FRA_PRIORITY, FRA_FWMARK, FRA_FWMASK, FRA_TABLE
    body = head + u32(6, rule.preference) + u32(10, rule.mark) + u32(16, rule.mask) + u32(15, rule.table)
    return Message(_RTM_NEWRULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, body)


# --- sockets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One message that came back."""

    kind: int
    place: int
    """Which message it answers."""
    errno: int
    detail: str
    body: bytes
    interrupted: bool = False
    """The table changed while it was dumped: some of it may be old, or missing."""


class NetlinkSocket:
    """An AF_NETLINK socket that belongs to ``netns`` (its name: errors say it)."""

    def __init__(self, sock: socket.socket, netns: str) -> None:
        self.sock = sock
        self.netns = netns
        self._dumps = itertools.count(1 << 16)  # no place of a message in a packet
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)

    def close(self) -> None:
        self.sock.close()

    def exchange(self, packet: bytes) -> list[Answer]:
        """Send, and take every answer that is waiting when the kernel has returned."""
        self.sock.sendto(packet, (0, 0))
        answers: list[Answer] = []
        while True:
            try:
                answers += _answers(self.sock.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return answers

    def dump(self, kind: int, body: bytes, timeout_s: float = _DUMP_S) -> list[bytes]:
        """The bodies of all messages that a dump request brings, of one moment: a dump that a change cut is repeated.

        Raises:
            KernelRefusedError: it was refused, did not end within ``timeout_s``, or was cut each time.
        """
        deadline = time.monotonic() + timeout_s
        for _ in range(_DUMP_TRIES):
            answers = self._dump_once(kind, body, deadline)
            if not any(answer.interrupted for answer in answers):
                return [answer.body for answer in answers if answer.kind != NLMSG_DONE]
        text = f"the table changed during each of {_DUMP_TRIES} dumps"
        raise KernelRefusedError(f"dump {kind}", self.netns, errno.EINTR, text)

    def _dump_once(self, kind: int, body: bytes, deadline: float) -> list[Answer]:
        number = next(self._dumps)
        self.sock.sendto(framed([Message(kind, NLM_F_REQUEST | NLM_F_DUMP, body)], number), (0, 0))
        answers: list[Answer] = []
        while not answers or answers[-1].kind != NLMSG_DONE:
            for answer in _answers_of_a_dump(self._receive(kind, deadline)):
                if answer.place != number:
                    continue  # the rest of a dump that somebody gave up
                if answer.errno:
                    raise KernelRefusedError(f"dump {kind}", self.netns, answer.errno, answer.detail)
                answers.append(answer)
        return answers

    def _receive(self, kind: int, deadline: float) -> bytes:
        """The next packet; Linux may put off the rest of a dump, so it is waited for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise KernelRefusedError(f"dump {kind}", self.netns, errno.ETIMEDOUT, "it did not end")
        return self.sock.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)

    def refuse_errors(self, answers: Iterable[Answer], describe: Callable[[int], str]) -> None:
        """Raise the first error among ``answers``; ``describe`` says what the message at a place was for."""
        for answer in answers:
            if answer.errno:
                raise KernelRefusedError(describe(answer.place), self.netns, answer.errno, answer.detail)


class RouteSocket(NetlinkSocket):
    """Sends changes of links, addresses, routes and rules to one netns."""

    def apply(
        self, changes: Sequence[Change], netns: Mapping[str, int] | None = None, *, present_is_fine: bool = False
    ) -> None:
        """Make all ``changes``, in order.

        Args:
            netns: as for ``encode``.
            present_is_fine: whether what is there already may stay as it is.

        Raises:
            KernelRefusedError: the first one that was refused. Those after it were tried all the same.
        """
        messages = [encode(change, netns or {}) for change in changes]
        for start in range(0, len(messages), _MESSAGES_PER_SEND):
            part = messages[start : start + _MESSAGES_PER_SEND]
            last = part[-1]
            part[-1] = last._replace(flags=last.flags | NLM_F_ACK)
            answers = self.exchange(framed(part))
            asked = changes[start : start + _MESSAGES_PER_SEND]
            refused = [answer for answer in answers if not _is_fine(asked[answer.place], answer.errno, present_is_fine)]
            self.refuse_errors(refused, lambda place, asked=asked: str(asked[place]))  # type: ignore[misc]
            if not answers:
                raise KernelRefusedError(str(asked[-1]), self.netns, 0, "no acknowledgement")

    def barrier(self, end: End, timeout_s: float = 2.0) -> None:
        """Return when ``end`` carries traffic: read it once, which makes the kernel finish what it had put off.

        To be called on the end that was set up first, when both are up: it keeps a queue that drops everything until
        linkwatch has run, up to a second later, and a read runs it. Older kernels only say when it has.

        Raises:
            KernelRefusedError: there is no such link, or it is still down after ``timeout_s``.
        """
        request = framed([Message(_RTM_GETLINK, NLM_F_REQUEST, _ifinfo(end.index))])
        deadline = time.monotonic() + timeout_s
        while True:
            answers = self.exchange(request)
            self.refuse_errors(answers, lambda _: f"read link {end.name}")
            if any(_is_up(answer.body) for answer in answers):
                return
            if time.monotonic() > deadline:
                raise KernelRefusedError(
                    f"wait for {end.name} to be up", self.netns, errno.ETIMEDOUT, f"after {timeout_s} s"
                )


def _is_fine(change: Change, number: int, present_is_fine: bool) -> bool:
    return allows(change, number) or (present_is_fine and number == errno.EEXIST)


def _is_up(body: bytes) -> bool:
    return dict(attributes(body[_IFINFO.size :])).get(_IFLA_OPERSTATE) == bytes([_IF_OPER_UP])


def _answers(packet: bytes) -> Iterator[Answer]:
    offset = 0
    while offset + _HEADER.size <= len(packet):
        size, kind, flags, place, _ = _HEADER.unpack_from(packet, offset)
        if size < _HEADER.size:
            raise ValueError(f"a netlink message of {size} bytes")
        body = packet[offset + _HEADER.size : offset + size]
        with understood():
            errno, detail = _error(kind, flags, body)
        yield Answer(kind, place, errno, detail, body, bool(flags & _NLM_F_DUMP_INTR))
        offset += (size + 3) & ~3


@functools.lru_cache(maxsize=32)
def _answers_of_a_dump(packet: bytes) -> tuple[Answer, ...]:
    """Every pod has the same rules, and before traffic the same bytes: they are read once."""
    return tuple(_answers(packet))


def _error(kind: int, flags: int, body: bytes) -> tuple[int, str]:
    if kind not in (NLMSG_ERROR, NLMSG_DONE) or len(body) < 4:
        return 0, ""
    errno = -struct.unpack_from("=i", body)[0]
    if kind == NLMSG_DONE or not flags & _NLM_F_ACK_TLVS:
        return max(errno, 0), ""
    echoed = _HEADER.size if flags & _NLM_F_CAPPED else struct.unpack_from("=I", body, 4)[0]
    texts = [value for name, value in attributes(body[4 + echoed :]) if name == _NLMSGERR_ATTR_MSG]
    return errno, texts[0].rstrip(b"\0").decode(errors="replace") if texts else ""
