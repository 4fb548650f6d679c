"""nf_tables rules as data, in nft's own words; ``str`` of each is text that ``nft -f`` takes.

Only what the in-pod rules need. ``kernel.nftables`` turns these into one transaction and reads them back as the same
objects, so that plan and kernel are compared with ``==``. Counters are named, their values are not part of a plan.

Source: https://wiki.nftables.org/wiki-nftables/index.php/Quick_reference-nftables_in_10_minutes
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshlab.model import Address


class Field(StrEnum):
    """What a match looks at."""

    L4PROTO = "meta l4proto"
    MARK = "meta mark"
    CT_MARK = "ct mark"
    IIFNAME = "iifname"
    OIFNAME = "oifname"
    SADDR4 = "ip saddr"
    DADDR4 = "ip daddr"
    SADDR6 = "ip6 saddr"
    DADDR6 = "ip6 daddr"
    TCP_DPORT = "tcp dport"


@dataclass(frozen=True, slots=True)
class Match:
    field: Field
    value: int | str | Address
    """A port or mark, ``tcp`` or an interface's name, an address: as ``field`` needs it."""
    equal: bool = True
    mask: int | None = None
    """For marks: the bits that are compared."""

    def __str__(self) -> str:
        mask = "" if self.mask is None else f" & {self.mask:#010x}"
        operator = "!= " if not self.equal else "" if self.mask is None else "== "
        return f"{self.field}{mask} {operator}{self._value_text()}"

    def _value_text(self) -> str:
        if self.field in (Field.MARK, Field.CT_MARK):
            return f"{self.value:#010x}"
        return f'"{self.value}"' if self.field in (Field.IIFNAME, Field.OIFNAME) else str(self.value)


@dataclass(frozen=True, slots=True)
class Counter:
    def __str__(self) -> str:
        return "counter"


@dataclass(frozen=True, slots=True)
class Accept:
    def __str__(self) -> str:
        return "accept"


@dataclass(frozen=True, slots=True)
class Jump:
    chain: str

    def __str__(self) -> str:
        return f"jump {self.chain}"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the connection to this port of this host."""

    port: int

    def __str__(self) -> str:
        return f"redirect to :{self.port}"


@dataclass(frozen=True, slots=True)
class SetCtMark:
    """Put ``bits`` into the connection's mark, and keep what ``mask`` covers."""

    mask: int
    bits: int

    def __str__(self) -> str:
        return f"ct mark set ct mark & {self.mask:#010x} | {self.bits:#010x}"


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """Give the packet its connection's mark."""

    def __str__(self) -> str:
        return "meta mark set ct mark"


Statement = Match | Counter | Accept | Jump | Redirect | SetCtMark | RestoreMark
Rule = tuple[Statement, ...]


class Hook(StrEnum):
    PREROUTING = "prerouting"
    OUTPUT = "output"


class ChainType(StrEnum):
    NAT = "nat"
    FILTER = "filter"
    ROUTE = "route"
    """Looks the route up again where the mark has changed; ``filter`` would not."""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where packets come into a chain."""

    kind: ChainType
    hook: Hook
    priority: int

    def __str__(self) -> str:
        return f"type {self.kind} hook {self.hook} priority {self.priority}; policy accept;"


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    base: BaseChain | None
    """``None``: reached by a jump only."""
    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        lines = [str(self.base)] if self.base else []
        lines += [" ".join(map(str, rule)) for rule in self.rules]
        return "\n".join([f"\tchain {self.name} {{", *(f"\t\t{line}" for line in lines), "\t}"])


@dataclass(frozen=True, slots=True)
class Table:
    """A table of family ``inet``."""

    name: str
    chains: tuple[Chain, ...]

    def __str__(self) -> str:
        chains = "\n\n".join(map(str, self.chains))
        return f"table inet {self.name} {{\n{chains}\n}}"


Ruleset = tuple[Table, ...]


def text(ruleset: Ruleset) -> str:
    """The ruleset as ``nft -f`` takes it."""
    return "".join(f"{table}\n" for table in ruleset)
