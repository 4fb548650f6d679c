"""nf_tables messages, without a kernel: what is encoded is what nft means, and nothing else is read as ours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from meshlab.kernel.netlink import Message, attribute, attributes, framed, string
from meshlab.kernel.nft_decode import decode
from meshlab.kernel.nftables import encode, render
from meshlab.plan import nft
from meshlab.plan.redirect import inpod_rules

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden-rules" / "inpod.nft"


def one_rule(*statements: nft.Statement) -> nft.Ruleset:
    return (nft.Table("t", (nft.Chain("c", None, (statements,)),)),)


def program(rule: bytes) -> list[str]:
    """The expressions of one encoded rule in pyroute2's words, which it decodes by itself."""
    from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg

    message = nft_rule_msg(rule)
    message.decode()
    return [_line(expression) for expression in message.get_attr("NFTA_RULE_EXPRESSIONS")]


def _line(expression: Any) -> str:
    name, data = expression.get_attr("NFTA_EXPR_NAME"), expression.get_attr("NFTA_EXPR_DATA")
    values = [f"{key.rpartition('_')[2].lower()}={_plain(value)}" for key, value, *_ in (data["attrs"] if data else ())]
    return " ".join([name, *values])


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return ",".join(_plain(inner) for _, inner, *_ in value["attrs"])
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    return str(value).removeprefix("NFT_")


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param(
            [nft.Match(nft.Field.L4PROTO, "tcp")],
            ["meta key=META_L4PROTO dreg=REG_1", "cmp sreg=REG_1 op=CMP_EQ data=06"],
            id="protocol",
        ),
        pytest.param(
            [nft.Match(nft.Field.DADDR4, IPv4Address("127.0.0.1"), equal=False)],
            [
                "meta key=META_NFPROTO dreg=REG_1",
                "cmp sreg=REG_1 op=CMP_EQ data=02",
                "payload dreg=REG_1 base=PAYLOAD_NETWORK_HEADER offset=16 len=4",
                "cmp sreg=REG_1 op=CMP_NEQ data=7f000001",
            ],
            id="IPv4 destination",
        ),
        pytest.param(
            [nft.Match(nft.Field.SADDR6, IPv6Address("fd16::1"))],
            [
                "meta key=META_NFPROTO dreg=REG_1",
                "cmp sreg=REG_1 op=CMP_EQ data=0a",
                "payload dreg=REG_1 base=PAYLOAD_NETWORK_HEADER offset=8 len=16",
                "cmp sreg=REG_1 op=CMP_EQ data=fd160000000000000000000000000001",
            ],
            id="IPv6 source",
        ),
        pytest.param(
            [nft.Match(nft.Field.TCP_DPORT, 15008, equal=False)],
            [
                "meta key=META_L4PROTO dreg=REG_1",
                "cmp sreg=REG_1 op=CMP_EQ data=06",
                "payload dreg=REG_1 base=PAYLOAD_TRANSPORT_HEADER offset=2 len=2",
                "cmp sreg=REG_1 op=CMP_NEQ data=3aa0",
            ],
            id="port",
        ),
        pytest.param(
            [nft.Match(nft.Field.OIFNAME, "lo")],
            ["meta key=META_OIFNAME dreg=REG_1", f"cmp sreg=REG_1 op=CMP_EQ data={b'lo'.ljust(16, bytes(1)).hex()}"],
            id="interface",
        ),
        pytest.param(
            [nft.Redirect(15001)],
            ["immediate dreg=REG_1 data=3a99", "redir min=REG_1 max=REG_1 flags=NF_NAT_RANGE_PROTO_SPECIFIED"],
            id="redirect",
        ),
        pytest.param(
            [nft.Counter(), nft.Accept()], ["counter", "immediate dreg=REG_VERDICT data=NF_ACCEPT"], id="accept"
        ),
    ],
)
def test_pyroute2_reads_in_our_bytes_what_the_plan_says(statements: list[nft.Statement], expected: list[str]) -> None:
    rule = encode(one_rule(*statements))[-1]
    assert program(framed([rule])) == expected


@pytest.mark.parametrize(
    "statement",
    [
        nft.Match(nft.Field.L4PROTO, "tcp"),
        nft.Match(nft.Field.L4PROTO, "udp"),
        nft.Match(nft.Field.IIFNAME, "eth0", equal=False),
        nft.Match(nft.Field.OIFNAME, "lo"),
        nft.Match(nft.Field.MARK, 0x539, equal=False, mask=0xFFF),
        nft.Match(nft.Field.MARK, 0x539),
        nft.Match(nft.Field.CT_MARK, 0x111, mask=0xFFF),
        nft.Match(nft.Field.SADDR4, IPv4Address("10.0.0.1")),
        nft.Match(nft.Field.DADDR4, IPv4Address("10.0.0.1"), equal=False),
        nft.Match(nft.Field.SADDR6, IPv6Address("fd00::1")),
        nft.Match(nft.Field.DADDR6, IPv6Address("fd00::1"), equal=False),
        nft.Match(nft.Field.TCP_DPORT, 65535),
        nft.Counter(),
        nft.Accept(),
        nft.Jump("istio-output"),
        nft.Redirect(1),
        nft.SetCtMark(0xFFFFF000, 0x111),
        nft.RestoreMark(),
    ],
    ids=str,
)
def test_every_statement_reads_back_as_itself_alone_and_between_others(statement: nft.Statement) -> None:
    for statements in ((statement,), (nft.Match(nft.Field.L4PROTO, "tcp"), statement, nft.Counter()), (statement,) * 2):
        ruleset = one_rule(*statements)
        assert decode((message.kind, message.body) for message in encode(ruleset)) == ruleset


def test_what_is_sent_for_a_pod_renders_as_the_golden_text() -> None:
    assert render(inpod_rules().ruleset) == GOLDEN.read_text()


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, string(1, name) + attribute(2, b"".join(parts)))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i", value))


def _bytes(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(1, value))


_LOAD_MARK = _expression("meta", _u32(2, 3), _u32(1, 1))
_LOAD_PROTOCOL = _expression("meta", _u32(2, 16), _u32(1, 1))


@pytest.mark.parametrize(
    ("expressions", "words"),
    [
        pytest.param(_expression("fib"), "the expression 'fib'", id="an expression"),
        pytest.param(_expression("cmp", _u32(2, 0), _bytes(3, b"x")), "comparison with nothing", id="cmp"),
        pytest.param(_expression("ct", _u32(2, 0), _u32(1, 1)), "ct key 0", id="ct key"),
        pytest.param(_LOAD_MARK + _expression("meta", _u32(2, 3), _u32(3, 1)), "setting meta key 3", id="meta set"),
        pytest.param(_LOAD_MARK + _expression("ct", _u32(2, 3), _u32(4, 1)), "setting the ct mark", id="ct set"),
        pytest.param(_expression("payload", _u32(2, 1), _u32(3, 9), _u32(4, 1)), "load of 1 bytes", id="payload"),
        pytest.param(
            _LOAD_PROTOCOL + _expression("cmp", _u32(2, 1), _bytes(3, b"\6")), "other than the one named", id="neq"
        ),
        pytest.param(_LOAD_PROTOCOL + _expression("cmp", _u32(2, 0), _bytes(3, b"\x2f")), "with 2f", id="protocol"),
        pytest.param(
            _expression("immediate", _u32(1, 0), attribute(2, attribute(2, _u32(1, 0)))), "verdict 0", id="drop"
        ),
    ],
)
def test_a_rule_that_no_plan_has_is_refused_not_guessed_at(expressions: bytes, words: str) -> None:
    *before, rule = encode(one_rule(nft.Accept()))
    body = rule.body[:4] + string(1, "t") + string(2, "c") + attribute(4, expressions)
    with pytest.raises(ValueError, match=words):
        decode((message.kind, message.body) for message in [*before, rule._replace(body=body)])


def _nat(change: Callable[[nft.Table], nft.Table]) -> nft.Ruleset:
    nat, mangle = inpod_rules().ruleset
    return change(nat), mangle


def _reordered(table: nft.Table) -> nft.Table:
    *chains, output = table.chains
    return replace(table, chains=(*chains, replace(output, rules=output.rules[::-1])))


def _reprioritised(table: nft.Table) -> nft.Table:
    first, *chains = table.chains
    assert first.base is not None
    return replace(table, chains=(replace(first, base=replace(first.base, priority=-99)), *chains))


@pytest.mark.parametrize("change", [_reordered, _reprioritised])
def test_rules_that_are_nearly_the_plans_do_not_compare_equal(change: Callable[[nft.Table], nft.Table]) -> None:
    changed = _nat(change)
    read = decode((message.kind, message.body) for message in encode(changed))
    assert read == changed
    assert read != inpod_rules().ruleset


def test_a_chain_that_drops_by_default_is_refused() -> None:
    messages = list(encode(_nat(lambda table: table)))
    place = next(place for place, message in enumerate(messages) if b"prerouting\0" in message.body)
    accept, drop = attribute(5, struct.pack("!I", 1)), attribute(5, struct.pack("!I", 0))
    messages[place] = messages[place]._replace(body=messages[place].body.replace(accept, drop))
    with pytest.raises(ValueError, match="policy 0"):
        decode((message.kind, message.body) for message in messages)


def test_frames_are_aligned_and_numbered_by_their_place() -> None:
    packet = framed([Message(7, 1, b"abc"), Message(8, 2, b"")])
    assert struct.unpack_from("=IHHII", packet, 0) == (19, 7, 1, 0, 0)
    assert struct.unpack_from("=IHHII", packet, 20) == (16, 8, 2, 1, 0)
    assert len(packet) == 36


def test_an_attribute_that_claims_less_than_its_header_ends_the_parsing() -> None:
    assert list(attributes(attribute(3, b"x") + attribute(0x8004, b"yz"))) == [(3, b"x"), (4, b"yz")]
    with pytest.raises(ValueError, match="3 bytes"):
        list(attributes(struct.pack("=HH", 3, 1)))
