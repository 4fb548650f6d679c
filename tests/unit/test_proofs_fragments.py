"""What was sent in IP fragments is read like what was not; fragments that stay alone make a window blind."""

from __future__ import annotations

import base64
import gzip
import random
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from itertools import pairwise

import capture_scenes as scenes
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.proofs.beacon import Beacons
from meshlab.proofs.canary import canary
from meshlab.proofs.follower import Follower
from meshlab.proofs.packets import SYN, TCP, UDP, Packet
from meshlab.proofs.window import Window

NONE = Beacons(scenes.BEACON_SECRET, {})
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda data: data.hex().encode(),
    "base64": base64.b64encode,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "huffman": lambda data: Encoder().encode([(b"x-canary", data)]),
}


def datagram(data: bytes) -> bytes:
    return struct.pack("!HHHH", 5000, 514, 8 + len(data), 0) + data


def fragments(
    packet: bytes, cuts: Sequence[int], *, family: int = 4, ident: int = 7, protocol: int = UDP
) -> list[bytes]:
    """An IP datagram's payload, cut at these multiples of eight bytes."""
    places = sorted({0, len(packet), *(cut * 8 for cut in cuts if cut * 8 < len(packet))})
    return [
        fragment(packet[start:end], start, end < len(packet), family=family, ident=ident, protocol=protocol)
        for start, end in pairwise(places)
    ]


def fragment(data: bytes, at: int, more: bool, *, family: int = 4, ident: int = 7, protocol: int = UDP) -> bytes:
    macs = bytes.fromhex("020000000001020000000002")
    one, other = (ip_address(scenes.ADDRESSES[name][family == 6]).packed for name in ("shop/client", "elsewhere"))
    if family == 6:
        extension = struct.pack("!BBHI", protocol, 0, at | more, ident)
        head = struct.pack("!IHBB", 6 << 28, 8 + len(data), 44, 64) + one + other + extension
        return macs + b"\x86\xdd" + head + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), ident, more << 13 | at // 8, 64, protocol, 0)
    return macs + b"\x08\x00" + head + one + other + data


def feed(follower: Follower, frames: Sequence[bytes]) -> None:
    packets, buffer = [], b""
    for place, frame in enumerate(frames):
        packets.append(Packet(0, 2, True, place, len(buffer), len(buffer) + len(frame), whole=True))
        buffer += frame
    follower.feed(buffer, packets)


def window(*feeds: Sequence[bytes], before: Sequence[bytes] = ()) -> Window:
    follower = Follower(scenes.SECRET)
    feed(follower, before)
    follower.open()
    for frames in feeds:
        feed(follower, frames)
    return follower.close(scenes.wiring(), NONE, {})


def found(seen: Window) -> set[tuple[int | None, int]]:
    return {(finding.number, finding.destination_port) for finding in seen.findings}


@pytest.mark.parametrize("form", list(FORMS))
@settings(deadline=None, max_examples=50)
@given(data=st.data(), family=st.sampled_from([4, 6]), number=st.integers(0, 10**9))
def test_a_canary_is_found_with_its_number_and_ports_however_its_datagram_is_cut_shuffled_and_repeated(
    form: str, data: st.DataObject, family: int, number: int
) -> None:
    packet = datagram(FORMS[form](data.draw(st.binary(max_size=40)) + canary(scenes.SECRET, number)))
    frames = fragments(packet, data.draw(st.lists(st.integers(1, 12), min_size=1)), family=family)
    again = data.draw(st.lists(st.sampled_from(frames), max_size=3))
    seen = window(data.draw(st.permutations([*frames, *again])))
    assert found(seen) == {(number, 514)}
    assert "fragments" not in seen.blind


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_that_overlap_and_agree_are_put_together(family: int) -> None:
    packet = datagram(gzip.compress(canary(scenes.SECRET, 5)))
    pieces = [(0, 24), (16, 40), (8, 32), (32, len(packet))]
    frames = [fragment(packet[start:end], start, end < len(packet), family=family) for start, end in pieces]
    assert found(window(frames)) == {(5, 514)}


def test_a_tcp_segment_in_fragments_takes_its_place_in_its_stream() -> None:
    segments = [
        scenes.tcp(40001, 80, 100, SYN, b""),
        scenes.tcp(40001, 80, 101, 0x10, b"mlc-9"),
        scenes.tcp(40001, 80, 106, 0x10, canary(scenes.SECRET, 99)[5:]),
    ]
    frames = [
        piece
        for number, segment in enumerate(segments)
        for piece in fragments(segment, [1, 3], ident=number, protocol=TCP)
    ]
    seen = window(frames)
    assert found(seen) == {(99, 80)}
    assert {(flow.protocol, flow.source_port, flow.payload_bytes) for flow in seen.flows} == {(TCP, 40001, 39)}


def test_a_datagram_whose_first_half_came_before_the_window_is_read_in_it() -> None:
    first, last = fragments(datagram(gzip.compress(canary(scenes.SECRET, 5))), [3])
    seen = window([last], before=[first])
    assert (found(seen), "fragments" in seen.blind) == ({(5, 514)}, False)


def test_a_datagram_that_stays_incomplete_makes_the_window_blind_and_is_a_flow() -> None:
    first, _, last = fragments(datagram(bytes(60)), [2, 4])
    seen = window([first, last])
    assert seen.blind == (
        "a canary could have been missed in 1 IP packets of which fragments are missing or contradict each other"
    )
    assert {(flow.protocol, flow.destination_port, len(flow.times)) for flow in seen.flows} == {(UDP, 0, 2)}


def test_what_stayed_incomplete_before_a_window_or_in_another_one_does_not_make_it_blind() -> None:
    first, last = fragments(datagram(bytes(60)), [2])
    follower = Follower(scenes.SECRET)
    feed(follower, [first])
    for frames, blind in (([], False), ([last], True), ([], False)):
        follower.open()
        feed(follower, frames)
        assert ("fragments" in follower.close(scenes.wiring(), NONE, {}).blind) is blind


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_that_contradict_each_other_make_the_window_blind(family: int) -> None:
    packet = datagram(bytes(60))
    other = fragment(b"\1" * 16, 8, True, family=family)
    first, last = fragments(packet, [3], family=family)
    assert "contradict each other" in window([other, first, last]).blind


def test_an_identification_that_is_used_again_is_another_datagram() -> None:
    frames = [fragments(datagram(gzip.compress(canary(scenes.SECRET, number))), [3]) for number in (5, 6)]
    assert found(window(*frames)) == {(5, 514), (6, 514)}


def test_a_cut_number_in_a_fragment_is_read_from_the_whole() -> None:
    frames = fragments(datagram(b"123" + canary(scenes.SECRET, 5678)), [2])
    assert found(window([frames[1]])) == {(None, 0)}
    assert found(window(frames)) == {(5678, 514)}


def test_more_datagrams_than_are_kept_are_counted_and_not_kept() -> None:
    frames = [fragments(datagram(bytes(60)), [2], ident=ident)[0] for ident in range(1000)]
    follower = Follower(scenes.SECRET)
    follower.open()
    feed(follower, frames)
    assert len(follower._fragments._datagrams) == 256
    assert "in 1000 IP packets of which fragments are missing" in follower.close(scenes.wiring(), NONE, {}).blind


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 0xFFFF), st.sampled_from([4, 6]))
def test_no_fragment_whatever_its_header_breaks_the_analyser(data: bytes, bits: int, family: int) -> None:
    frame = bytearray(fragment(data, 0, False, family=family))
    at = 14 + 6 if family == 4 else 14 + 40 + 2
    frame[at : at + 2] = bits.to_bytes(2, "big")
    window([bytes(frame), bytes(frame)[:-3], bytes(frame)])


def test_random_datagrams_in_fragments_hold_nothing_and_blind_nobody() -> None:
    noise = random.Random(3)  # noqa: S311 - a test's
    seen = window(*(fragments(datagram(noise.randbytes(3000)), [185], ident=ident) for ident in range(200)))
    assert (seen.findings, seen.unread) == ((), {})
