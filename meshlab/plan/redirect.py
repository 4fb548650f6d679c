"""The rules that istio-cni writes into a pod, so that its TCP meets the node proxy's listeners there.

    out:  app -> OUTPUT nat -> :15001          in:  PREROUTING nat -> :15006 (plaintext), :15008 as it stands (HBONE)
    what carries ztunnel's mark 0x539 is left alone, or the proxy would capture itself

    Source addresses are kept: ztunnel connects to the app *from the client's address*. That SYN leaves by ``lo`` and
    enters PREROUTING with mark 0x539, which gives its connection the mark 0x111; the app's answer, to an address that
    is not here, gets 0x111 back in OUTPUT, and rule 32764 routes it to ``lo`` by table 100, to ztunnel's socket.

One table per iptables table, in Istio's own names and order. DNS is not captured.
Source: https://github.com/istio/istio/blob/master/cni/pkg/nftables/nftables.go
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshlab.model import FAMILIES, Address
from meshlab.model.ambient import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT, PROXY_MARK
from meshlab.plan.changes import DEFAULT4, DEFAULT6, LO, End, MarkRule, Route, RouteKind
from meshlab.plan.nft import (
    Accept,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Field,
    Hook,
    Jump,
    Match,
    Redirect,
    RestoreMark,
    Rule,
    Ruleset,
    SetCtMark,
    Table,
)

RETURN_MARK = 0x111
MARK_MASK = 0xFFF
PROBE4 = IPv4Address("169.254.7.127")
PROBE6 = IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
"""From these the node's own probes come: never captured."""
RETURN_TABLE = 100
RETURN_PREFERENCE = 32764

_LOOPBACK4 = IPv4Address("127.0.0.1")
_LOOPBACK6 = IPv6Address("::1")
_SADDR = {4: Field.SADDR4, 6: Field.SADDR6}
_DADDR = {4: Field.DADDR4, 6: Field.DADDR6}
_PROBES: tuple[Address, ...] = (PROBE4, PROBE6)
_LOOPBACKS: tuple[Address, ...] = (_LOOPBACK4, _LOOPBACK6)

_TCP = Match(Field.L4PROTO, "tcp")
_NOT_PROXY = Match(Field.MARK, PROXY_MARK, equal=False, mask=MARK_MASK)


@dataclass(frozen=True, slots=True)
class Redirection:
    """Everything that is written into an enrolled pod."""

    ruleset: Ruleset
    routing: tuple[MarkRule | Route, ...]


@functools.cache
def inpod_rules(*, bypass_inbound: bool = False) -> Redirection:
    """What is written into an enrolled pod; the same for all of them.

    Args:
        bypass_inbound: the pod has the annotation ``ambient.istio.io/bypass-inbound-capture``: what comes in as
            plaintext goes straight to the app, and HBONE still meets the node proxy.
    """
    return Redirection((_nat(() if bypass_inbound else _nat_prerouting()), _mangle()), _routing())


def _nat(prerouting: tuple[Rule, ...]) -> Table:
    return Table(
        "istio-ambient-nat",
        (
            _base("prerouting", ChainType.NAT, -100),
            _base("output", ChainType.NAT, -100),
            Chain("istio-prerouting", None, prerouting),
            Chain("istio-output", None, _nat_output()),
        ),
    )


def _mangle() -> Table:
    from_proxy = Match(Field.MARK, PROXY_MARK, mask=MARK_MASK)
    returning = Match(Field.CT_MARK, RETURN_MARK, mask=MARK_MASK)
    return Table(
        "istio-ambient-mangle",
        (
            _base("prerouting", ChainType.FILTER, -150),
            _base("output", ChainType.ROUTE, -150),
            Chain("istio-prerouting", None, ((from_proxy, Counter(), SetCtMark(~MARK_MASK % 2**32, RETURN_MARK)),)),
            Chain("istio-output", None, ((returning, Counter(), RestoreMark()),)),
        ),
    )


def _base(hook: str, kind: ChainType, priority: int) -> Chain:
    return Chain(hook, BaseChain(kind, Hook(hook), priority), ((Jump(f"istio-{hook}"),),))


def _nat_prerouting() -> tuple[Rule, ...]:
    probes = tuple((_TCP, Match(_SADDR[probe.version], probe), Counter(), Accept()) for probe in _PROBES)
    plaintext = tuple(
        (
            Match(_DADDR[loopback.version], loopback, equal=False),
            Match(Field.TCP_DPORT, HBONE_PORT, equal=False),
            _NOT_PROXY,
            Counter(),
            Redirect(PLAINTEXT_PORT),
        )
        for loopback in _LOOPBACKS
    )
    return probes + plaintext


def _nat_output() -> tuple[Rule, ...]:
    probes = tuple((_TCP, Match(_DADDR[probe.version], probe), Counter(), Accept()) for probe in _PROBES)
    returning = (_TCP, Match(Field.MARK, RETURN_MARK, mask=MARK_MASK), Counter(), Accept())
    foreign = tuple(Match(_DADDR[loopback.version], loopback, equal=False) for loopback in _LOOPBACKS)
    to_itself = tuple((Match(Field.OIFNAME, "lo"), match, Counter(), Accept()) for match in foreign)
    captured = tuple((_TCP, match, _NOT_PROXY, Counter(), Redirect(OUTBOUND_PORT)) for match in foreign)
    return (*probes, returning, *to_itself, *captured)


def _routing() -> tuple[MarkRule | Route, ...]:
    rules = tuple(
        MarkRule(family=family, preference=RETURN_PREFERENCE, mark=RETURN_MARK, mask=MARK_MASK, table=RETURN_TABLE)
        for family in FAMILIES
    )
    routes = tuple(
        Route(destination=everything, end=End("lo", LO), kind=RouteKind.LOCAL, table=RETURN_TABLE)
        for everything in (DEFAULT4, DEFAULT6)
    )
    return rules + routes
