"""Blocks of a ring become packets, frames become headers; the parser agrees with scapy."""

from __future__ import annotations

import struct
import tempfile
from ipaddress import ip_address
from typing import Any

import pytest
import ring_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw

from meshlab.errors import LabError
from meshlab.lab.proving.captures import Captures
from meshlab.proofs.canary import secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.packets import NOT_IP, Header, lost_bytes, outgoing_only, parse, recorded

FRAMES = [(2, False, 1_000_000_001, b"a" * 60), (3, True, 2_000_000_002, b"b" * 1514), (2, True, 3, b"c" * 42)]


def test_every_packet_of_every_block_comes_out_with_its_node_link_direction_and_time() -> None:
    buffer = ring_blocks.record(0, ring_blocks.block(FRAMES)) + ring_blocks.record(7, ring_blocks.block(FRAMES[:1]))
    seen = [(p.node, p.ifindex, p.outgoing, p.time_ns, buffer[p.start : p.end], p.whole) for p in recorded(buffer)]
    assert seen == [(node, *frame, True) for node, frame in [*((0, frame) for frame in FRAMES), (7, FRAMES[0])]]


def test_what_the_recorder_could_not_keep_is_counted() -> None:
    buffer = ring_blocks.gap(0, 5) + ring_blocks.record(0, ring_blocks.block(FRAMES)) + ring_blocks.gap(1, 7)
    assert lost_bytes(buffer) == 12
    assert len(list(recorded(buffer))) == 3


def test_a_block_without_what_arrived_keeps_exactly_what_left() -> None:
    buffer = ring_blocks.record(0, outgoing_only(ring_blocks.block([*FRAMES, FRAMES[0]])))
    assert [buffer[p.start : p.end] for p in recorded(buffer)] == [FRAMES[1][3], FRAMES[2][3]]


def _ether() -> ScapyPacket:
    """With both addresses, or scapy would ask the network for them."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def _headers(packet: ScapyPacket) -> Header:
    frame = bytes(packet)
    return parse(b"before" + frame + b"behind" * 20, 6, 6 + len(frame))


ports = st.integers(0, 65535)
payloads = st.binary(max_size=80)
sequence = st.integers(0, 2**32 - 1)


@st.composite
def ip_headers(draw: st.DrawFn) -> ScapyPacket:
    if draw(st.booleans()):
        address = st.ip_addresses(v=4).map(str)
        return _ether() / IP(
            src=draw(address), dst=draw(address), options=draw(st.sampled_from([b"", b"\x01\x01\x01\x00"]))
        )
    address = st.ip_addresses(v=6).map(str)
    packet = _ether() / IPv6(src=draw(address), dst=draw(address))
    for extension in draw(st.lists(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]), max_size=2)):
        packet = packet / extension()
    return packet


@st.composite
def packets(draw: st.DrawFn) -> ScapyPacket:
    packet = draw(ip_headers())
    kind = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    if kind == "tcp":
        flags = draw(st.sampled_from(["S", "SA", "A", "PA", "FA", "R"]))
        option = draw(st.sampled_from([[], [("MSS", 1460)], [("NOP", None), ("Timestamp", (1, 2))]]))
        packet = packet / TCP(sport=draw(ports), dport=draw(ports), seq=draw(sequence), flags=flags, options=option)
    elif kind == "udp":
        packet = packet / UDP(sport=draw(ports), dport=draw(ports))
    else:
        packet = packet / (ICMP() if packet.haslayer(IP) else ICMPv6EchoRequest())
    return packet / Raw(draw(payloads)) if kind != "icmp" else packet


@settings(deadline=None)
@given(packets())
def test_addresses_ports_sequence_flags_and_payload_are_those_that_scapy_wrote(packet: ScapyPacket) -> None:
    network = packet[IP] if packet.haslayer(IP) else packet[IPv6]
    head = _headers(packet)
    assert (ip_address(head.source), ip_address(head.destination)) == (ip_address(network.src), ip_address(network.dst))
    if packet.haslayer(ICMP):
        assert (head.protocol, head.source_port) == (1, 8)
    elif packet.haslayer(ICMPv6EchoRequest):
        assert (head.protocol, head.source_port) == (58, 128)
    else:
        transport = packet[TCP] if packet.haslayer(TCP) else packet[UDP]
        assert (head.source_port, head.destination_port) == (transport.sport, transport.dport)
        assert head.end - head.payload == len(packet[Raw].load)
    if packet.haslayer(TCP):
        assert (head.protocol, head.seq, head.flags) == (6, packet[TCP].seq, int(packet[TCP].flags))


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_no_frame_whatever_its_bytes_breaks_the_parser(frame: bytes) -> None:
    head = parse(frame, 0, len(frame))
    assert head.payload <= head.end <= len(frame)


def test_a_later_fragment_has_addresses_and_no_ports() -> None:
    head = _headers(_ether() / IP(src="10.0.0.1", dst="10.0.0.2", frag=10, proto=6) / Raw(b"x" * 30))
    assert (head.protocol, head.source_port, head.destination_port) == (6, 0, 0)
    six = _ether() / IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(offset=10, nh=6) / Raw(b"x" * 30)
    head = _headers(six)
    assert (head.protocol, head.source_port, head.end - head.payload) == (6, 0, 30)


def test_what_is_not_ip_is_said_so() -> None:
    assert _headers(_ether() / ARP() / Raw(bytes(18))).protocol == NOT_IP


def test_padding_behind_the_ip_packet_is_no_payload() -> None:
    packet = _ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / Raw(b"ab")
    frame = bytes(packet) + bytes(20)
    head = parse(frame, 0, len(frame))
    assert frame[head.payload : head.end] == b"ab"


_BLOCK = ring_blocks.record(0, ring_blocks.block(FRAMES))


def _with(at: int, number: int) -> bytes:
    """The record of a block, with another number at ``at``."""
    return _BLOCK[:at] + struct.pack("=I", number) + _BLOCK[at + 4 :]


@pytest.mark.parametrize(
    "buffer",
    [
        pytest.param(_BLOCK[:-1], id="a record that is cut"),
        pytest.param(_BLOCK + b"\1", id="a head that is cut"),
        pytest.param(_with(0, 7), id="a record of an unknown kind"),
        pytest.param(ring_blocks.record(0, b"short"), id="a block without a head"),
        pytest.param(_with(8 + 12, 2**32 - 1), id="more packets than it has room for"),
        pytest.param(_with(8 + 16, 2**32 - 1), id="a first packet behind it"),
        pytest.param(_with(8 + 48, 2**32 - 1), id="a next packet behind it"),
        pytest.param(_with(8 + 48 + 12, 2**32 - 1), id="a frame that ends behind it"),
    ],
)
def test_a_recording_that_no_recorder_wrote_is_refused(buffer: bytes) -> None:
    with pytest.raises(ValueError, match="at byte"):
        list(recorded(buffer))


class _Position:
    """A recorder that has recorded 1 MiB."""

    def ask(self, *_: object, **__: object) -> tuple[dict[str, Any], list[int]]:
        return {"position": 1 << 20, "drops": {}}, []


def test_the_lab_says_so_where_its_recording_is_broken() -> None:
    nothing: Any = None
    recorder: Any = _Position()
    for wrong in (_BLOCK[:-1], _with(8 + 12, 2**32 - 1)):
        with tempfile.TemporaryFile() as file:
            file.write(wrong)
            file.flush()
            captures = Captures(nothing, recorder, Follower(secret_of(bytes(8))), {}, file.fileno(), b"", b"")
            with pytest.raises(LabError, match="the recording of this lab is broken"):
                captures._catch_up()
