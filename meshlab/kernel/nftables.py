"""nf_tables by netlink: a plan's ruleset as one transaction, and what the kernel holds as a ruleset again.

    plan.Ruleset --encode--> messages --one sendto, all or nothing--> kernel
         ^---------------------- decode <------------------------------ dump

The bytecode is what ``nft`` makes of the same text, so ``nft list ruleset`` prints it as it stands. A rule is a small
program over registers: load something, mask it, compare it, and go on or stop.

Sources: include/uapi/linux/netfilter/{nf_tables,nfnetlink}.h; ``nft --debug=netlink``.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from meshlab.errors import KernelRefusedError
from meshlab.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    framed,
    string,
)
from meshlab.plan import nft

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE, _DELRULE = (
    _SUBSYSTEM | n for n in (0, 1, 3, 4, 6, 7, 8)
)
_INET = 1  # NFPROTO_INET
_HEAD = struct.pack("!BBH", _INET, 0, 0)
_BATCH_HEAD = struct.pack("!BBH", 0, 0, 10)

_HOOKS = {nft.Hook.PREROUTING: 0, nft.Hook.OUTPUT: 3}
_VERDICT_REGISTER, _REGISTER = 0, 1
_ACCEPT, _JUMP = 1, -3
_EQ, _NEQ = 0, 1
_META_MARK, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 3, 6, 7, 15, 16
_CT_MARK = 3
_NETWORK, _TRANSPORT = 1, 2
_PORT_SPECIFIED = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
_PROTOCOLS = {"tcp": 6, "udp": 17}
_IFNAME_BYTES = 16

_META = {
    nft.Field.L4PROTO: _META_L4PROTO,
    nft.Field.MARK: _META_MARK,
    nft.Field.IIFNAME: _META_IIFNAME,
    nft.Field.OIFNAME: _META_OIFNAME,
}


class _Payload(NamedTuple):
    """Where a field lies in the packet, and the protocol that must be checked before."""

    base: int
    offset: int
    size: int
    meta: int
    protocol: int


_PAYLOAD = {
    nft.Field.SADDR4: _Payload(_NETWORK, 12, 4, _META_NFPROTO, 2),
    nft.Field.DADDR4: _Payload(_NETWORK, 16, 4, _META_NFPROTO, 2),
    nft.Field.SADDR6: _Payload(_NETWORK, 8, 16, _META_NFPROTO, 10),
    nft.Field.DADDR6: _Payload(_NETWORK, 24, 16, _META_NFPROTO, 10),
    nft.Field.TCP_DPORT: _Payload(_TRANSPORT, 2, 2, _META_L4PROTO, 6),
}


# --- encoding --------------------------------------------------------------------------------------------------------


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value % 2**32))


def _data(kind: int, value: bytes) -> bytes:
    return _nested(kind, attribute(1, value))  # NFTA_DATA_VALUE


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(0x8000 | kind, payload)


def _expression(name: str, *parts: bytes) -> bytes:
    return _nested(1, string(1, name) + _nested(2, b"".join(parts)))  # NFTA_LIST_ELEM{NFTA_EXPR_NAME, NFTA_EXPR_DATA}


def _meta(key: int) -> bytes:
    return _expression("meta", _u32(2, key), _u32(1, _REGISTER))  # NFTA_META_KEY, NFTA_META_DREG


def _compare(value: bytes, *, equal: bool) -> bytes:
    return _expression("cmp", _u32(1, _REGISTER), _u32(2, _EQ if equal else _NEQ), _data(3, value))


def _load_ct_mark() -> bytes:
    return _expression("ct", _u32(2, _CT_MARK), _u32(1, _REGISTER))  # NFTA_CT_KEY, NFTA_CT_DREG


def _bitwise(mask: int, xor: int) -> bytes:
    """Register = (register & mask) ^ xor; marks are in the host's byte order."""
    values = _data(4, struct.pack("=I", mask)) + _data(5, struct.pack("=I", xor))
    return _expression("bitwise", _u32(1, _REGISTER), _u32(2, _REGISTER), _u32(3, 4), values)


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _u32(1, code) + (string(2, chain) if chain else b"")  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    return _expression("immediate", _u32(1, _VERDICT_REGISTER), _nested(2, _nested(2, verdict)))


def _load(field: nft.Field) -> bytes:
    if field is nft.Field.CT_MARK:
        return _load_ct_mark()
    if field in _META:
        return _meta(_META[field])
    payload = _PAYLOAD[field]
    where = _u32(1, _REGISTER) + _u32(2, payload.base) + _u32(3, payload.offset) + _u32(4, payload.size)
    return _meta(payload.meta) + _compare(bytes([payload.protocol]), equal=True) + _expression("payload", where)


def _value(match: nft.Match) -> bytes:
    match match.value:
        case IPv4Address() | IPv6Address() as address:
            return address.packed
        case str() as name:
            return bytes([_PROTOCOLS[name]]) if name in _PROTOCOLS else name.encode().ljust(_IFNAME_BYTES, b"\0")
        case port if match.field is nft.Field.TCP_DPORT:
            return struct.pack("!H", port)
        case mark:
            return struct.pack("=I", mark)


def _statement(statement: nft.Statement) -> bytes:
    match statement:
        case nft.Match(field, _, equal, mask):
            masked = b"" if mask is None else _bitwise(mask, 0)
            return _load(field) + masked + _compare(_value(statement), equal=equal)
        case nft.Counter():
            return _expression("counter")
        case nft.Accept():
            return _verdict(_ACCEPT)
        case nft.Jump(chain):
            return _verdict(_JUMP, chain)
        case nft.Redirect(port):
            to = _expression("immediate", _u32(1, _REGISTER), _data(2, struct.pack("!H", port)))
            return to + _expression("redir", _u32(1, _REGISTER), _u32(2, _REGISTER), _u32(3, _PORT_SPECIFIED))
        case nft.SetCtMark(mask, bits):
            store = _expression("ct", _u32(2, _CT_MARK), _u32(4, _REGISTER))  # NFTA_CT_KEY, NFTA_CT_SREG
            return _load_ct_mark() + _bitwise(mask & ~bits, bits) + store
        case nft.RestoreMark():
            store = _expression("meta", _u32(2, _META_MARK), _u32(3, _REGISTER))  # NFTA_META_KEY, NFTA_META_SREG
            return _load_ct_mark() + store


def _chain(table: str, chain: nft.Chain) -> Message:
    body = string(1, table) + string(3, chain.name)  # NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    if chain.base is not None:
        hook = _u32(1, _HOOKS[chain.base.hook]) + _u32(2, chain.base.priority)
        # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE
        body += _nested(4, hook) + _u32(5, _ACCEPT) + string(7, chain.base.kind)
    return Message(_NEWCHAIN, NLM_F_REQUEST | NLM_F_CREATE, _HEAD + body)


def _rule(table: str, chain: str, rule: nft.Rule) -> Message:
    expressions = _nested(4, b"".join(map(_statement, rule)))
    body = string(1, table) + string(2, chain) + expressions  # NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS
    return Message(_NEWRULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, _HEAD + body)


def _table_messages(table: nft.Table) -> Iterator[Message]:
    """Add, empty, fill: what was in a table of this name before is gone. Chains first, since rules jump to them."""
    yield Message(_NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE, _HEAD + string(1, table.name))
    yield Message(_DELRULE, NLM_F_REQUEST, _HEAD + string(1, table.name))
    for chain in table.chains:
        yield _chain(table.name, chain)
    for chain in table.chains:
        for rule in chain.rules:
            yield _rule(table.name, chain.name, rule)


@functools.lru_cache(maxsize=16)
def encode(ruleset: nft.Ruleset) -> tuple[Message, ...]:
    """The messages of one transaction; every pod's rules are the same, so they are made once."""
    return tuple(message for table in ruleset for message in _table_messages(table))


@functools.lru_cache(maxsize=16)
def _transaction(ruleset: nft.Ruleset) -> bytes:
    messages = list(encode(ruleset))
    messages[-1] = messages[-1]._replace(flags=messages[-1].flags | NLM_F_ACK)
    begin = Message(_BATCH_BEGIN, NLM_F_REQUEST, _BATCH_HEAD)
    return framed([begin, *messages, Message(_BATCH_END, NLM_F_REQUEST, _BATCH_HEAD)])


# --- decoding --------------------------------------------------------------------------------------------------------


class _Machine:
    """Reads a rule's program back into statements. What our encoder never writes is a ``ValueError``."""

    def __init__(self) -> None:
        self._statements: list[nft.Statement] = []
        self._checked: tuple[int, bytes] | None = None
        """A protocol that was just compared: (meta key, value)."""
        self._loaded: nft.Field | int | None = None
        """What is in the register: a field, or the meta key of a protocol."""
        self._bits: tuple[int, int] | None = None
        """Mask and xor that were applied to it."""
        self._port = 0

    def run(self, expressions: Iterable[tuple[str, dict[int, bytes]]]) -> nft.Rule:
        steps: dict[str, Callable[[dict[int, bytes]], None]] = {
            "meta": self._meta,
            "ct": self._ct,
            "payload": self._payload,
            "bitwise": self._bitwise,
            "cmp": self._compare,
            "immediate": self._immediate,
            "redir": lambda _: self._done(nft.Redirect(self._port)),
            "counter": lambda _: self._done(nft.Counter()),
        }
        for name, parts in expressions:
            if name not in steps:
                raise ValueError(f"the expression '{name}' is in no plan")
            steps[name](parts)
        self._flush()
        return tuple(self._statements)

    def _done(self, statement: nft.Statement) -> None:
        self._flush()
        self._statements.append(statement)
        self._loaded = self._bits = None

    def _flush(self) -> None:
        """A protocol check that no field of that protocol followed was a match of its own."""
        if self._checked is not None:
            key, value = self._checked
            self._checked = None
            names = [name for name, number in _PROTOCOLS.items() if bytes([number]) == value]
            if key != _META_L4PROTO or not names:
                raise ValueError(f"a match of meta key {key} with {value.hex()} is in no plan")
            self._statements.append(nft.Match(nft.Field.L4PROTO, names[0]))

    def _meta(self, parts: dict[int, bytes]) -> None:
        key = _number(parts[2])
        if 3 in parts:
            if (key, self._loaded) != (_META_MARK, nft.Field.CT_MARK):
                raise ValueError(f"setting meta key {key} from {self._loaded} is in no plan")
            return self._done(nft.RestoreMark())
        self._flush()
        fields = [field for field, number in _META.items() if number == key and field is not nft.Field.L4PROTO]
        self._loaded = fields[0] if fields else key
        return None

    def _ct(self, parts: dict[int, bytes]) -> None:
        if _number(parts[2]) != _CT_MARK:
            raise ValueError(f"ct key {_number(parts[2])} is in no plan")
        if 4 not in parts:
            self._flush()
            self._loaded = nft.Field.CT_MARK
        elif self._loaded is nft.Field.CT_MARK and self._bits is not None:
            mask, bits = self._bits
            self._done(nft.SetCtMark(mask, bits))
        else:
            raise ValueError(f"setting the ct mark from {self._loaded} is in no plan")

    def _payload(self, parts: dict[int, bytes]) -> None:
        base, offset, size = (_number(parts[key]) for key in (2, 3, 4))
        for field, at in _PAYLOAD.items():
            if (at.base, at.offset, at.size) == (base, offset, size) and self._checked == (
                at.meta,
                bytes([at.protocol]),
            ):
                self._checked = None
                self._loaded = field
                return
        raise ValueError(f"a load of {size} bytes at {base}+{offset} is in no plan")

    def _bitwise(self, parts: dict[int, bytes]) -> None:
        mask, xor = (struct.unpack("=I", _inner(parts[key]))[0] for key in (4, 5))
        self._bits = (mask, xor)

    def _compare(self, parts: dict[int, bytes]) -> None:
        equal, value = _number(parts[2]) == _EQ, _inner(parts[3])
        if isinstance(self._loaded, int):
            if not equal:
                raise ValueError("a protocol other than the one named is in no plan")
            self._checked = (self._loaded, value)
        elif self._loaded is not None:
            mask = None if self._bits is None else self._bits[0]
            self._done(nft.Match(self._loaded, _read_value(self._loaded, value), equal, mask))
        else:
            raise ValueError("a comparison with nothing is in no plan")

    def _immediate(self, parts: dict[int, bytes]) -> None:
        if _number(parts[1]) != _VERDICT_REGISTER:
            self._flush()
            self._port = struct.unpack("!H", _inner(parts[2]))[0]
            return
        verdict = dict(attributes(dict(attributes(parts[2]))[2]))
        code = struct.unpack("!i", verdict[1])[0]
        if code not in (_ACCEPT, _JUMP):
            raise ValueError(f"the verdict {code} is in no plan")
        self._done(nft.Accept() if code == _ACCEPT else nft.Jump(_text(verdict[2])))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _inner(data: bytes) -> bytes:
    return dict(attributes(data))[1]


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _read_value(field: nft.Field, value: bytes) -> int | str | IPv4Address | IPv6Address:
    match field:
        case nft.Field.MARK | nft.Field.CT_MARK:
            return int(struct.unpack("=I", value)[0])
        case nft.Field.IIFNAME | nft.Field.OIFNAME:
            return _text(value)
        case nft.Field.SADDR4 | nft.Field.DADDR4:
            return IPv4Address(value)
        case nft.Field.SADDR6 | nft.Field.DADDR6:
            return IPv6Address(value)
        case _:
            return _number(value)


def _expressions(data: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    for _, element in attributes(data):
        parts = dict(attributes(element))
        yield _text(parts[1]), dict(attributes(parts.get(2, b"")))


def _base_chain(parts: dict[int, bytes]) -> nft.BaseChain | None:
    if 4 not in parts:
        return None
    hook = dict(attributes(parts[4]))
    if _number(parts[5]) != _ACCEPT:
        raise ValueError(f"a chain with policy {_number(parts[5])} is in no plan")
    hooks = {number: name for name, number in _HOOKS.items()}
    priority = struct.unpack("!i", hook[2])[0]
    return nft.BaseChain(nft.ChainType(_text(parts[7])), hooks[_number(hook[1])], priority)


def decode(messages: Iterable[tuple[int, bytes]]) -> nft.Ruleset:
    """The ruleset in (type, body) of messages that create or describe tables, chains and rules.

    Raises:
        ValueError: something is in them that no plan has.
    """
    tables: dict[str, dict[str, nft.BaseChain | None]] = {}
    rules: dict[tuple[str, str], list[nft.Rule]] = {}
    for kind, body in messages:
        parts = dict(attributes(body[len(_HEAD) :]))
        table = _text(parts[1])
        if kind == _NEWTABLE:
            tables[table] = {}
        elif kind == _NEWCHAIN:
            tables[table][_text(parts[3])] = _base_chain(parts)
        elif kind == _NEWRULE:
            rules.setdefault((table, _text(parts[2])), []).append(_Machine().run(_expressions(parts[4])))
    return tuple(
        nft.Table(
            table,
            tuple(nft.Chain(chain, base, tuple(rules.get((table, chain), ()))) for chain, base in chains.items()),
        )
        for table, chains in tables.items()
    )


def render(ruleset: nft.Ruleset) -> str:
    """nft's text of what would be *sent* for ``ruleset``: it is encoded, and read back from the bytes."""
    return nft.text(decode((message.kind, message.body) for message in encode(ruleset)))


class NftSocket(NetlinkSocket):
    """Writes and reads the nf_tables rulesets of one netns."""

    def apply(self, ruleset: nft.Ruleset) -> None:
        """Replace the tables of ``ruleset`` in one transaction.

        Raises:
            KernelRefusedError: it was refused as a whole; the operation names the message.
        """
        answers = self.exchange(_transaction(ruleset))
        self.refuse_errors(answers, functools.partial(_describe, encode(ruleset)))
        if not answers:
            raise KernelRefusedError("commit nf_tables rules", self.netns, 0, "no acknowledgement")

    def read(self, ruleset: nft.Ruleset) -> nft.Ruleset:
        """The tables of ``ruleset`` as they are now; those that are absent are left out, and others are not looked at.

        Raises:
            ValueError: something is in them that no plan has.
        """
        names = {table.name for table in ruleset}
        asked = ((_GETTABLE, _NEWTABLE), (_GETCHAIN, _NEWCHAIN), (_GETRULE, _NEWRULE))
        found = ((kind, body) for get, kind in asked for body in self.dump(get, _HEAD))
        return decode((kind, body) for kind, body in found if _table_of(body) in names)


def _table_of(body: bytes) -> str:
    return _text(dict(attributes(body[len(_HEAD) :]))[1])


def _describe(messages: Sequence[Message], place: int) -> str:
    """The message at ``place`` of the transaction (0 is its begin, and stands for the whole)."""
    if not 1 <= place <= len(messages):
        return "commit nf_tables rules"
    message = messages[place - 1]
    parts = dict(attributes(message.body[len(_HEAD) :]))
    kinds = {_NEWTABLE: "add table", _DELRULE: "flush table", _NEWCHAIN: "add chain", _NEWRULE: "add rule to"}
    names = [_text(parts[1])] + [_text(parts[key]) for key in (2, 3) if key in parts and message.kind != _NEWTABLE]
    return f"{kinds[message.kind]} {' '.join(names)}"
