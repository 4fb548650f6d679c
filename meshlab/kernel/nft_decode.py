"""nf_tables messages as a plan's ruleset again: from our own bytes, or from what a kernel dumps.

A rule is a small program over registers. What our encoder never writes is refused, not guessed at, so that rules which
are *nearly* the plan's can never compare equal to it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from meshlab.kernel import nft_wire as wire
from meshlab.kernel.netlink import attributes, understood
from meshlab.plan import nft


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
            names = [name for name, number in wire.PROTOCOLS.items() if bytes([number]) == value]
            if key != wire.META_L4PROTO or not names:
                raise ValueError(f"a match of meta key {key} with {value.hex()} is in no plan")
            self._statements.append(nft.Match(nft.Field.L4PROTO, names[0]))

    def _meta(self, parts: dict[int, bytes]) -> None:
        key = _number(parts[2])
        if 3 in parts:
            if (key, self._loaded) != (wire.META_MARK, nft.Field.CT_MARK):
                raise ValueError(f"setting meta key {key} from {self._loaded} is in no plan")
            return self._done(nft.RestoreMark())
        self._flush()
        fields = [field for field, number in wire.META.items() if number == key and field is not nft.Field.L4PROTO]
        self._loaded = fields[0] if fields else key
        return None

    def _ct(self, parts: dict[int, bytes]) -> None:
        if _number(parts[2]) != wire.CT_MARK:
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
        for field, at in wire.PAYLOAD.items():
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
        equal, value = _number(parts[2]) == wire.EQ, _inner(parts[3])
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
        if _number(parts[1]) != wire.VERDICT_REGISTER:
            self._flush()
            self._port = struct.unpack("!H", _inner(parts[2]))[0]
            return
        verdict = dict(attributes(dict(attributes(parts[2]))[2]))
        code = struct.unpack("!i", verdict[1])[0]
        if code not in (wire.ACCEPT, wire.JUMP):
            raise ValueError(f"the verdict {code} is in no plan")
        self._done(nft.Accept() if code == wire.ACCEPT else nft.Jump(text_of(verdict[2])))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _inner(data: bytes) -> bytes:
    return dict(attributes(data))[1]


def text_of(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _read_value(field: nft.Field, value: bytes) -> int | str | IPv4Address | IPv6Address:
    match field:
        case nft.Field.MARK | nft.Field.CT_MARK:
            return int(struct.unpack("=I", value)[0])
        case nft.Field.IIFNAME | nft.Field.OIFNAME:
            return text_of(value)
        case nft.Field.SADDR4 | nft.Field.DADDR4:
            return IPv4Address(value)
        case nft.Field.SADDR6 | nft.Field.DADDR6:
            return IPv6Address(value)
        case _:
            return _number(value)


@functools.lru_cache(maxsize=64)
def _rule(expressions: bytes) -> nft.Rule:
    """Every pod has the same rules, and before traffic the same bytes: they are read once."""
    return _Machine().run(_expressions(expressions))


def _expressions(data: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    for _, element in attributes(data):
        parts = dict(attributes(element))
        yield text_of(parts[1]), dict(attributes(parts.get(2, b"")))


def _base_chain(parts: dict[int, bytes]) -> nft.BaseChain | None:
    if 4 not in parts:
        return None
    hook = dict(attributes(parts[4]))
    if _number(parts[5]) != wire.ACCEPT:
        raise ValueError(f"a chain with policy {_number(parts[5])} is in no plan")
    hooks = {number: name for name, number in wire.HOOKS.items()}
    priority = struct.unpack("!i", hook[2])[0]
    return nft.BaseChain(nft.ChainType(text_of(parts[7])), hooks[_number(hook[1])], priority)


@understood()
def decode(messages: Iterable[tuple[int, bytes]]) -> nft.Ruleset:
    """The ruleset in (type, body) of messages that create or describe tables, chains and rules.

    Raises:
        ValueError: something is in them that no plan has.
    """
    tables: dict[str, dict[str, nft.BaseChain | None]] = {}
    rules: dict[tuple[str, str], list[nft.Rule]] = {}
    for kind, body in messages:
        parts = dict(attributes(body[len(wire.HEAD) :]))
        table = text_of(parts[1])
        if kind == wire.NEWTABLE:
            tables[table] = {}
        elif kind == wire.NEWCHAIN:
            tables.setdefault(table, {})[text_of(parts[3])] = _base_chain(parts)
        elif kind == wire.NEWRULE:
            rules.setdefault((table, text_of(parts[2])), []).append(_rule(parts[4]))
    return tuple(
        nft.Table(
            table,
            tuple(nft.Chain(chain, base, tuple(rules.get((table, chain), ()))) for chain, base in chains.items()),
        )
        for table, chains in tables.items()
    )


def table_of(body: bytes) -> str:
    """The name of the table that a message's body is about."""
    return text_of(dict(attributes(body[len(wire.HEAD) :]))[1])
