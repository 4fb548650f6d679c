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
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

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
)
from meshlab.kernel.nft_decode import decode, table_of, text_of
from meshlab.kernel.nft_encode import compare, data, expression, load, meta, nested, u32
from meshlab.plan import nft


def _load_ct_mark() -> bytes:
    return expression("ct", u32(2, wire.CT_MARK), u32(1, wire.REGISTER))  # NFTA_CT_KEY, NFTA_CT_DREG


def _bitwise(mask: int, xor: int) -> bytes:
    """Register = (register & mask) ^ xor; marks are in the host's byte order."""
    values = data(4, struct.pack("=I", mask)) + data(5, struct.pack("=I", xor))
    return expression("bitwise", u32(1, wire.REGISTER), u32(2, wire.REGISTER), u32(3, 4), values)


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = u32(1, code) + (string(2, chain) if chain else b"")  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    return expression("immediate", u32(1, wire.VERDICT_REGISTER), nested(2, nested(2, verdict)))


def _load(field: nft.Field) -> bytes:
    if field is nft.Field.CT_MARK:
        return _load_ct_mark()
    if field in wire.META:
        return meta(wire.META[field])
    payload = wire.PAYLOAD[field]
    protocol = meta(payload.meta) + compare(bytes([payload.protocol]))
    return protocol + load(payload.base, payload.offset, payload.size)


def _value(match: nft.Match) -> bytes:
    match match.value:
        case IPv4Address() | IPv6Address() as address:
            return address.packed
        case str() as name:
            number = wire.PROTOCOLS.get(name)
            return name.encode().ljust(wire.IFNAME_BYTES, b"\0") if number is None else bytes([number])
        case port if match.field is nft.Field.TCP_DPORT:
            return struct.pack("!H", port)
        case mark:
            return struct.pack("=I", mark)


def _statement(statement: nft.Statement) -> bytes:
    match statement:
        case nft.Match(field, _, equal, mask):
            masked = b"" if mask is None else _bitwise(mask, 0)
            return _load(field) + masked + compare(_value(statement), equal=equal)
        case nft.Counter():
            return expression("counter")
        case nft.Accept():
            return _verdict(wire.ACCEPT)
        case nft.Jump(chain):
            return _verdict(wire.JUMP, chain)
        case nft.Redirect(port):
            to = expression("immediate", u32(1, wire.REGISTER), data(2, struct.pack("!H", port)))
            ports = u32(1, wire.REGISTER) + u32(2, wire.REGISTER)  # NFTA_REDIR_REG_PROTO_MIN, _MAX
            return to + expression("redir", ports, u32(3, wire.PORT_SPECIFIED))
        case nft.SetCtMark(mask, bits):
            store = expression("ct", u32(2, wire.CT_MARK), u32(4, wire.REGISTER))  # NFTA_CT_KEY, NFTA_CT_SREG
            return _load_ct_mark() + _bitwise(mask & ~bits, bits) + store
        case nft.RestoreMark():
            # NFTA_META_KEY, NFTA_META_SREG
            return _load_ct_mark() + expression("meta", u32(2, wire.META_MARK), u32(3, wire.REGISTER))


def _chain(table: str, chain: nft.Chain) -> Message:
    body = string(1, table) + string(3, chain.name)  # NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    if chain.base is not None:
        hook = u32(1, wire.HOOKS[chain.base.hook]) + u32(2, chain.base.priority)
        # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE
        body += nested(4, hook) + u32(5, wire.ACCEPT) + string(7, chain.base.kind)
    return Message(wire.NEWCHAIN, NLM_F_REQUEST | NLM_F_CREATE, wire.HEAD + body)


def _rule(table: str, chain: str, rule: nft.Rule) -> Message:
    expressions = nested(4, b"".join(map(_statement, rule)))
    body = string(1, table) + string(2, chain) + expressions  # NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS
    return Message(wire.NEWRULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, wire.HEAD + body)


def _table_messages(table: nft.Table) -> Iterator[Message]:
    """Add, empty, fill: what was in a table of this name before is gone. Chains first, since rules jump to them."""
    yield Message(wire.NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE, wire.HEAD + string(1, table.name))
    yield Message(wire.DELRULE, NLM_F_REQUEST, wire.HEAD + string(1, table.name))
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
def _removal(tables: tuple[str, ...]) -> tuple[Message, ...]:
    """Add, then delete, as Istio does: to delete what is not there would be refused."""
    return tuple(
        Message(kind, flags, wire.HEAD + string(1, table))
        for table in tables
        for kind, flags in ((wire.NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE), (wire.DELTABLE, NLM_F_REQUEST))
    )


@functools.lru_cache(maxsize=16)
def _transaction(parts: tuple[Message, ...]) -> bytes:
    messages = list(parts)
    messages[-1] = messages[-1]._replace(flags=messages[-1].flags | NLM_F_ACK)
    begin = Message(wire.BATCH_BEGIN, NLM_F_REQUEST, wire.BATCH_HEAD)
    return framed([begin, *messages, Message(wire.BATCH_END, NLM_F_REQUEST, wire.BATCH_HEAD)])


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
        self._commit(encode(ruleset))

    def delete(self, tables: Iterable[str]) -> None:
        """Delete these tables with all that is in them, in one transaction; those that are absent are no error.

        Raises:
            KernelRefusedError: it was refused as a whole; the operation names the message.
        """
        self._commit(_removal(tuple(tables)))

    def _commit(self, messages: tuple[Message, ...]) -> None:
        answers = self.exchange(_transaction(messages))
        self.refuse_errors(answers, functools.partial(_describe, messages))
        if not answers:
            raise KernelRefusedError("commit nf_tables rules", self.netns, 0, "no acknowledgement")

    def read(self, ruleset: nft.Ruleset) -> nft.Ruleset:
        """The tables of ``ruleset`` as they are now; others are not looked at.

        Those that are absent, or have no chain, are left out.

        Raises:
            ValueError: something is in them that no plan has.
        """
        asked = ((wire.GETCHAIN, wire.NEWCHAIN), (wire.GETRULE, wire.NEWRULE))
        found = tuple((kind, body) for get, kind in asked for body in self.dump(get, wire.HEAD))
        return _read(found, frozenset(table.name for table in ruleset))


@functools.lru_cache(maxsize=16)
def _read(found: tuple[tuple[int, bytes], ...], names: frozenset[str]) -> nft.Ruleset:
    return decode((kind, body) for kind, body in found if table_of(body) in names)


def _describe(messages: Sequence[Message], place: int) -> str:
    """The message at ``place`` of the transaction (0 is its begin, and stands for the whole)."""
    if not 1 <= place <= len(messages):
        return "commit nf_tables rules"
    message = messages[place - 1]
    parts = dict(attributes(message.body[len(wire.HEAD) :]))
    kinds = {
        wire.NEWTABLE: "add table",
        wire.DELRULE: "flush table",
        wire.DELTABLE: "delete table",
        wire.NEWCHAIN: "add chain",
        wire.NEWRULE: "add rule to",
    }
    names = [text_of(parts[key]) for key in (1, 2, 3) if key in parts]  # table, chain of a rule, name of a chain
    return f"{kinds[message.kind]} {' '.join(names)}"
