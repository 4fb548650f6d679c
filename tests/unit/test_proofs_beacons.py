"""Beacons are true frames to nobody, and are missed when any of them is not seen where it was sent."""

from __future__ import annotations

import capture_scenes as scenes
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from meshlab.proofs import beacon
from meshlab.proofs.follower import Follower
from meshlab.proofs.packets import Packet
from meshlab.proofs.search import Search

LINKS = [(0, 2), (1, 5)]
OPENING = beacon.opening(scenes.BEACON_SECRET, LINKS, 1)
CLOSING = beacon.closing(scenes.BEACON_SECRET, LINKS, 100)
EVERY = [*OPENING.expected.values(), *CLOSING.expected.values()]


def test_each_link_gets_a_datagram_and_a_stream_in_both_directions_and_over_a_window_in_both_families() -> None:
    kinds = {(one.link, one.outgoing, one.protocol, one.family) for one in EVERY}
    assert kinds == {
        (link, way, protocol, family)
        for link in LINKS
        for way in (True, False)
        for protocol in (6, 17)
        for family in (4, 6)
    }


@pytest.mark.parametrize("one", EVERY, ids=str)
def test_its_frames_have_right_checksums_and_go_to_a_foreign_mac(one: beacon.Beacon) -> None:
    for frame in beacon.frames(one, scenes.BEACON_SECRET):
        packet = Ether(frame)
        network, transport = (IP if one.family == 4 else IPv6), (TCP if one.protocol == 6 else UDP)
        assert packet.dst == "02:6d:65:73:68:01"
        remade = Ether(frame)
        del remade[transport].chksum
        if one.family == 4:
            del remade[network].chksum
        assert bytes(remade) == frame


def test_its_number_stands_in_no_single_segment_and_in_no_order_of_arrival() -> None:
    (stream,) = (one for one in OPENING.expected.values() if one.protocol == 6 and one.link == (0, 2) and one.outgoing)
    frames = beacon.frames(stream, scenes.BEACON_SECRET)
    arrived = b"".join(bytes(Ether(frame)[TCP].payload) for frame in frames)
    search = Search(scenes.BEACON_SECRET)
    assert {hit.number for data in (*frames, arrived) for hit in search.raw(data)} == {None}


def _missing(skip: beacon.Beacon | None, frame_lost: int | None) -> tuple[beacon.Beacon, ...]:
    buffer, packets = b"", []
    for one in EVERY:
        for place, frame in enumerate(beacon.frames(one, scenes.BEACON_SECRET)):
            if one != skip or frame_lost not in {None, place}:
                packets.append(Packet(*one.link, one.outgoing, 0, len(buffer), len(buffer) + len(frame), True))
                buffer += frame
    follower = Follower(scenes.SECRET)
    follower.open()
    follower.feed(buffer, packets)
    return follower.close(scenes.wiring(), OPENING.joined(CLOSING), {}).missing


def test_all_are_seen_when_all_were_kept() -> None:
    assert _missing(skip=EVERY[0], frame_lost=99) == ()


@pytest.mark.parametrize("one", EVERY, ids=str)
def test_each_is_missed_alone(one: beacon.Beacon) -> None:
    lost = 1 if one.protocol == 6 else 0  # of a stream, its second half
    assert _missing(skip=one, frame_lost=lost) == (one,)


def test_a_beacon_seen_on_another_link_or_in_the_other_direction_is_missing() -> None:
    one = EVERY[0]
    heard = frozenset((b.number, *b.link, b.outgoing) for b in EVERY)
    elsewhere = heard - {(one.number, *one.link, one.outgoing)} | {(one.number, 1, 5, one.outgoing)}
    backwards = heard - {(one.number, *one.link, one.outgoing)} | {(one.number, *one.link, not one.outgoing)}
    joined = OPENING.joined(CLOSING)
    assert [joined.missing(heard), joined.missing(elsewhere), joined.missing(backwards)] == [(), (one,), (one,)]


def test_the_flush_barrier_waits_for_the_last_datagram_of_each_link_and_direction() -> None:
    waiting = CLOSING.last()
    assert len(waiting) == len(LINKS) * 2
    one = next(one for one in CLOSING.expected.values() if one.protocol == 17)
    (frame,) = beacon.frames(one, scenes.BEACON_SECRET)
    assert CLOSING.unheard(b"..." + frame, waiting) == waiting - {one.number}
