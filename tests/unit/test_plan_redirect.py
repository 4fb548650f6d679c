"""What the in-pod rules do to a packet, and in which order, judged on the plan itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from meshlab.plan import nft
from meshlab.plan.changes import MarkRule, Route
from meshlab.plan.redirect import PROBE4, PROBE6, inpod_rules

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden-rules" / "inpod.nft"
LO4, LO6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
POD4, POD6 = IPv4Address("10.64.60.110"), IPv6Address("fd5a::7")
OTHER4, OTHER6 = IPv4Address("10.128.9.9"), IPv6Address("fd5a::9")


@dataclass
class Packet:
    """The first packet of a connection, as a hook sees it."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    port: int = 8080
    protocol: str = "tcp"
    mark: int = 0
    ct_mark: int = 0
    out: str = "eth0"


def meets(ruleset: nft.Ruleset, hook: nft.Hook, kind: str, packet: Packet) -> str:
    """Run the base chain of this hook and type; where the packet ends up, and what it has been given."""
    for table in ruleset:
        chains = {chain.name: chain for chain in table.chains}
        for chain in table.chains:
            if chain.base and (chain.base.hook, chain.base.kind) == (hook, kind):
                return _run(chains, chain.rules, packet) or "goes on"
    raise AssertionError(f"no {kind} chain at {hook}")


def _run(chains: dict[str, nft.Chain], rules: Iterable[nft.Rule], packet: Packet) -> str | None:
    for rule in rules:
        for statement in rule:
            match statement:
                case nft.Match():
                    if not _matches(statement, packet):
                        break
                case nft.Jump(chain):
                    verdict = _run(chains, chains[chain].rules, packet)
                    if verdict:
                        return verdict
                case nft.Accept():
                    return "goes on"
                case nft.Redirect(port):
                    return f"redirected to {port}"
                case nft.SetCtMark(mask, bits):
                    packet.ct_mark = packet.ct_mark & mask | bits
                case nft.RestoreMark():
                    packet.mark = packet.ct_mark
                case nft.Counter():
                    pass
    return None


def _matches(match: nft.Match, packet: Packet) -> bool:
    field = match.field
    if field in (nft.Field.SADDR4, nft.Field.DADDR4) and packet.source.version != 4:
        return False
    if field in (nft.Field.SADDR6, nft.Field.DADDR6) and packet.source.version != 6:
        return False
    if field is nft.Field.TCP_DPORT and packet.protocol != "tcp":
        return False
    value = {
        nft.Field.L4PROTO: packet.protocol,
        nft.Field.MARK: packet.mark,
        nft.Field.CT_MARK: packet.ct_mark,
        nft.Field.OIFNAME: packet.out,
        nft.Field.SADDR4: packet.source,
        nft.Field.SADDR6: packet.source,
        nft.Field.DADDR4: packet.destination,
        nft.Field.DADDR6: packet.destination,
        nft.Field.TCP_DPORT: packet.port,
    }[field]
    if match.mask is not None:
        assert isinstance(value, int)
        value &= match.mask
    return (value == match.value) is match.equal


OUTBOUND = [
    pytest.param(Packet(POD4, OTHER4), "redirected to 15001", id="what an app sends, IPv4"),
    pytest.param(Packet(POD6, OTHER6), "redirected to 15001", id="what an app sends, IPv6"),
    pytest.param(Packet(POD4, OTHER4, 15008), "redirected to 15001", id="even to a proxy's port"),
    pytest.param(Packet(POD4, OTHER4, mark=0x539), "goes on", id="what ztunnel sends, IPv4"),
    pytest.param(Packet(POD6, OTHER6, mark=0x539), "goes on", id="what ztunnel sends, IPv6"),
    pytest.param(Packet(POD4, OTHER4, mark=0x1539), "goes on", id="bits above the mask do not count"),
    pytest.param(Packet(POD4, OTHER4, mark=0x538), "redirected to 15001", id="a mark that is nearly ztunnel's"),
    pytest.param(Packet(POD4, OTHER4, mark=0x111), "goes on", id="an answer on its way back to ztunnel"),
    pytest.param(Packet(POD4, OTHER4, protocol="udp"), "goes on", id="UDP, IPv4"),
    pytest.param(Packet(POD6, OTHER6, protocol="udp"), "goes on", id="UDP, IPv6"),
    pytest.param(Packet(POD4, OTHER4, 53), "redirected to 15001", id="DNS over TCP is no exception"),
    pytest.param(Packet(LO4, LO4, out="lo"), "goes on", id="loopback, IPv4"),
    pytest.param(Packet(LO6, LO6, out="lo"), "goes on", id="loopback, IPv6"),
    pytest.param(Packet(POD4, POD4, out="lo"), "goes on", id="the pod's own address, IPv4"),
    pytest.param(Packet(POD6, POD6, out="lo"), "goes on", id="the pod's own address, IPv6"),
    pytest.param(Packet(POD4, PROBE4), "goes on", id="an answer to a probe, IPv4"),
    pytest.param(Packet(POD6, PROBE6), "goes on", id="an answer to a probe, IPv6"),
]
INBOUND = [
    pytest.param(Packet(OTHER4, POD4), "redirected to 15006", id="plaintext, IPv4"),
    pytest.param(Packet(OTHER6, POD6), "redirected to 15006", id="plaintext, IPv6"),
    pytest.param(Packet(OTHER4, POD4, 15008), "goes on", id="HBONE, IPv4"),
    pytest.param(Packet(OTHER6, POD6, 15008), "goes on", id="HBONE, IPv6"),
    pytest.param(Packet(OTHER4, POD4, 15001), "redirected to 15006", id="even to a proxy's port"),
    pytest.param(Packet(OTHER4, POD4, mark=0x539), "goes on", id="what ztunnel sends to the app, IPv4"),
    pytest.param(Packet(OTHER6, POD6, mark=0x539), "goes on", id="what ztunnel sends to the app, IPv6"),
    pytest.param(Packet(PROBE4, POD4), "goes on", id="a probe, IPv4"),
    pytest.param(Packet(PROBE6, POD6), "goes on", id="a probe, IPv6"),
    pytest.param(Packet(OTHER4, POD4, protocol="udp"), "goes on", id="UDP"),
    pytest.param(Packet(LO4, LO4), "goes on", id="loopback, IPv4"),
    pytest.param(Packet(LO6, LO6), "goes on", id="loopback, IPv6"),
]


@pytest.mark.parametrize(("packet", "expected"), OUTBOUND)
def test_outbound(packet: Packet, expected: str) -> None:
    assert meets(inpod_rules().ruleset, nft.Hook.OUTPUT, "nat", packet) == expected


@pytest.mark.parametrize(("packet", "expected"), INBOUND)
def test_inbound(packet: Packet, expected: str) -> None:
    assert meets(inpod_rules().ruleset, nft.Hook.PREROUTING, "nat", packet) == expected


BYPASSED = [
    pytest.param(Packet(OTHER4, POD4), id="plaintext, IPv4"),
    pytest.param(Packet(OTHER6, POD6), id="plaintext, IPv6"),
    pytest.param(Packet(OTHER4, POD4, 15008), id="HBONE"),
    pytest.param(Packet(PROBE4, POD4), id="a probe"),
    pytest.param(Packet(OTHER4, POD4, mark=0x539), id="what ztunnel sends to the app"),
]


@pytest.mark.parametrize("packet", BYPASSED)
def test_nothing_inbound_is_captured_where_the_pod_bypasses_that(packet: Packet) -> None:
    assert meets(inpod_rules(bypass_inbound=True).ruleset, nft.Hook.PREROUTING, "nat", packet) == "goes on"


def test_a_pod_that_bypasses_inbound_capture_has_all_other_rules() -> None:
    plain, bypassing = inpod_rules(), inpod_rules(bypass_inbound=True)
    kept = {(table.name, chain.name): chain for table in bypassing.ruleset for chain in table.chains}
    all_of_them = {(table.name, chain.name): chain for table in plain.ruleset for chain in table.chains}
    changed = {name for name, chain in all_of_them.items() if kept[name] != chain}
    assert changed == {("istio-ambient-nat", "istio-prerouting")}
    assert kept["istio-ambient-nat", "istio-prerouting"].rules == ()
    assert bypassing.routing == plain.routing


def test_a_connection_that_ztunnel_opens_gets_the_return_mark_and_its_answers_get_it_back() -> None:
    opened = Packet(OTHER4, POD4, mark=0x539, ct_mark=0xABC000)
    meets(inpod_rules().ruleset, nft.Hook.PREROUTING, "filter", opened)
    assert opened.ct_mark == 0xABC111
    answer = Packet(POD4, OTHER4, ct_mark=opened.ct_mark)
    meets(inpod_rules().ruleset, nft.Hook.OUTPUT, "route", answer)
    assert answer.mark == 0xABC111
    assert meets(inpod_rules().ruleset, nft.Hook.OUTPUT, "nat", answer) == "goes on"


def test_other_connections_get_no_mark() -> None:
    packet = Packet(OTHER4, POD4)
    meets(inpod_rules().ruleset, nft.Hook.PREROUTING, "filter", packet)
    meets(inpod_rules().ruleset, nft.Hook.OUTPUT, "route", packet)
    assert (packet.ct_mark, packet.mark) == (0, 0)


def test_the_return_mark_is_looked_up_in_a_table_that_ends_at_lo_in_both_families() -> None:
    routing = inpod_rules().routing
    rules = [str(change) for change in routing if isinstance(change, MarkRule)]
    routes = [str(change) for change in routing if isinstance(change, Route)]
    assert rules == [
        "add IPv4 rule 32764: fwmark 0x111/0xfff lookup 100",
        "add IPv6 rule 32764: fwmark 0x111/0xfff lookup 100",
    ]
    assert routes == ["add local route 0.0.0.0/0 dev lo table 100", "add local route ::/0 dev lo table 100"]


def test_the_text_is_the_golden_one() -> None:
    assert nft.text(inpod_rules().ruleset) == GOLDEN.read_text()
