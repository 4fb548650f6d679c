"""A window that opens in the middle of a connection knows where it is, and says so where it cannot."""

from __future__ import annotations

import base64
import gzip
import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import capture_scenes as scenes
import pytest
import ring_blocks
import search_forms
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.model import Call, direct
from meshlab.model.report import Proof, Result
from meshlab.proofs import beacon, pcapng, verdicts
from meshlab.proofs import follower as follower_module
from meshlab.proofs.beacon import Beacons
from meshlab.proofs.canary import canary
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.packets import FIN, RST, UDP, Packet
from meshlab.proofs.unread import Unread
from meshlab.proofs.window import Window

Frame = tuple[Link, bool, int, bytes]
WAY = (scenes.CLIENT, scenes.FABRIC_1, scenes.FABRIC_2, scenes.SERVER)
NONE = Beacons(scenes.BEACON_SECRET, {})


def wiring() -> Wiring:
    """As the recorder numbers: ring 0 is node-1's, ring 1 node-2's."""
    sites: dict[str, Site] = dict(scenes.wiring().sites)
    return Wiring({(link.node == "node-2", link.ifindex): link for link in scenes.LINKS}, sites)


def recorded(frames: Iterable[Frame], *, stale: bytes = b"") -> bytes:
    """As the two nodes' rings would have kept them, node-1's block first."""
    nodes = [link.node for link in scenes.LINKS]
    kept: dict[str, list[tuple[int, bool, int, bytes]]] = {node: [] for node in dict.fromkeys(nodes)}
    for link, *rest in frames:
        kept[link.node].append((link.ifindex, *rest))  # type: ignore[arg-type]
    return b"".join(
        ring_blocks.record(ring, ring_blocks.block(packets, stale=stale))
        for ring, packets in enumerate(kept.values())
        if packets
    )


def connection(script: scenes.Script, port: int = 15008) -> scenes.Tcp:
    return scenes.Tcp(script, "shop/client", "shop/server", 40000, port, WAY)


def windows(parts: Sequence[tuple[bool, Sequence[Frame]]]) -> list[Window]:
    """Feed each part, in a window of its own or (False) in none."""
    follower, seen = Follower(scenes.SECRET), []
    for in_window, frames in parts:
        if in_window:
            follower.open()
        follower.feed(recorded(frames))
        if in_window:
            seen.append(follower.close(wiring(), NONE, {}))
    return seen


def split(script: scenes.Script, *marks: int) -> list[list[Frame]]:
    edges = [0, *marks, len(script.frames)]
    return [script.frames[start:end] for start, end in itertools.pairwise(edges)]


def test_the_records_of_a_living_connection_are_known_when_a_window_opens_in_the_middle_of_one() -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello)
    tunnel.say(tls.server, back=True)
    tunnel.say(tls.finished + tls.request + tls.bulk[:30_000])
    middle = len(script.frames)
    tunnel.say(tls.bulk[30_000:])
    second = len(script.frames)
    tunnel.say(b"now in clear")
    parts = split(script, middle, second)
    quiet, loud = windows([(False, parts[0]), (True, parts[1]), (True, parts[2])])
    assert {(flow.not_tls, flow.from_birth) for flow in quiet.flows} == {("", True)}
    assert {flow.not_tls[:5] for flow in loud.flows} == {"after"}


def test_a_connection_whose_birth_was_not_seen_is_not_judged() -> None:
    script = scenes.Script()
    connection(script).say(b"\x17\x03\x03\x00\x04abcd")
    (window,) = windows([(True, script.frames)])
    assert {(flow.not_tls, flow.from_birth) for flow in window.flows} == {("", False)}
    call = replace(scenes.call(scenes.play(scenes.SCENES["clean"]), 1), started_ns=0)
    proof = verdicts.encrypted(window, wiring(), call, scenes.to_server(call))
    assert proof.result is Result.CANNOT_TELL
    assert "so its TLS records cannot be followed" in proof.reason


def test_a_stream_with_a_hole_is_not_judged() -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello[:100])
    mark = len(script.frames)
    tunnel.say(tls.hello[100:200])
    lost = len(script.frames)
    tunnel.say(tls.hello[200:])
    (window,) = windows([(True, [*script.frames[:mark], *script.frames[lost:]])])
    assert [flow.hole for flow in window.flows if flow.payload_bytes] == [True] * len(WAY)
    proof = verdicts.nothing_in_clear(window, wiring(), scenes.FABRIC_1, 4, [])
    assert (proof.result, "with bytes missing in their middle" in proof.reason) == (Result.CANNOT_TELL, True)


def test_a_hole_blinds_the_window_in_which_it_is_and_not_those_that_come_long_after_it() -> None:
    script = scenes.Script()
    stream = connection(script, 8080)
    stream.open()
    marks = []
    for number in range(5):
        marks.append(len(script.frames))
        stream.say(b"x" * 20 + (canary(scenes.SECRET, number) if number == 4 else b""))
    parts = split(script, *marks)
    del parts[1]  # nobody saw it
    seen = windows([(True, part) for part in parts])
    assert ["bytes missing" in window.blind for window in seen] == [False, True, True, False, False]
    assert {finding.number for finding in seen[-1].findings} == {4}


def test_the_same_ports_used_again_are_another_connection() -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    for isn in (100, 5_000_000):
        tunnel = connection(script)
        tunnel.sent = [isn, isn]
        tunnel.open()
        tunnel.say(tls.hello)
        tunnel.say(tls.server, back=True)
        tunnel.end()
    (window,) = windows([(True, script.frames)])
    assert {flow.not_tls for flow in window.flows} == {""}
    assert len(window.flows) == 2 * 2 * len(WAY)


def test_what_ended_is_forgotten_and_what_lives_is_not() -> None:
    follower, script = Follower(scenes.SECRET), scenes.Script()
    for port in range(100):
        done = scenes.Tcp(script, "shop/client", "shop/plain", 1000 + port, 9090, WAY)
        done.open()
        if port % 2:
            done.end(FIN)
        else:
            done.segment(b"", flags=RST)
    living = connection(script)
    living.open()
    follower.feed(recorded(script.frames))
    nothing: list[Frame] = []
    follower.feed(recorded(nothing))
    follower.feed(recorded(nothing))
    assert len(follower._streams) == 2 * len(WAY)


def test_a_late_copy_of_the_end_of_a_tunnel_is_nothing_new_until_nobody_sends_one_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a ztunnel said last to a pod that is gone is sent again for long, into windows that know nothing of it."""
    follower, script, tls = Follower(scenes.SECRET), scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello)
    tunnel.say(tls.server, back=True)
    tunnel.end()
    follower.feed(recorded(script.frames))
    last = [frame for frame in script.frames if len(frame[3]) > 100][-1:]
    nothing: list[Frame] = []
    for _ in range(3):
        follower.feed(recorded(nothing))

    def again() -> set[tuple[bool, bool]]:
        follower.open()
        follower.feed(recorded(last))
        return {(flow.from_birth, flow.hole) for flow in follower.close(wiring(), NONE, {}).flows}

    assert again() == {(True, False)}
    monkeypatch.setattr(follower_module, "_LATE_NS", -follower_module._LATE_NS)
    follower.feed(recorded(nothing))
    assert follower._streams == {}
    assert again() == {(False, False)}


@pytest.mark.parametrize(("data", "known"), [(b"same bytes", True), (b"same bytes and more", False)])
def test_the_end_of_a_tunnel_that_comes_to_the_next_pod_of_the_address_is_known_from_other_links(
    data: bytes, known: bool
) -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = scenes.Tcp(script, "shop/client", "shop/server", 40000, 15008, WAY[:-1])
    tunnel.open()
    tunnel.say(tls.hello)
    at = tunnel.sent[0]
    tunnel.say(b"same bytes")
    before = len(script.frames)
    late = scenes.Tcp(script, "shop/client", "shop/server", 40000, 15008, WAY[-1:], [at, 0])
    late.segment(data, flags=FIN)
    _, window = windows([(True, script.frames[:before]), (True, script.frames[before:])])
    assert {(flow.link, flow.from_birth) for flow in window.flows} == {(scenes.SERVER, known)}


def test_of_too_many_connections_those_that_were_quiet_the_longest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower_module, "_MOST_STREAMS", 4 * len(WAY))
    follower = Follower(scenes.SECRET)
    living = scenes.Script()
    connection(living).open()
    for port in range(20):
        begun = scenes.Script()
        scenes.Tcp(begun, "shop/client", "shop/plain", 1000 + port, 9090, WAY).open()
        follower.feed(recorded([*begun.frames, *living.frames]))
    assert len(follower._streams) == 4 * len(WAY)
    assert {key[6] for key in follower._streams} == {1019, 9090, 40000, 15008}


def test_one_window_at_a_time() -> None:
    follower = Follower(scenes.SECRET)
    follower.open()
    with pytest.raises(ValueError, match="a window is open already"):
        follower.open()


def test_icmp_between_enrolled_pods_is_listed_and_anything_else_beside_15008_is_not_forgiven() -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello)
    ping = scenes.ethernet("shop/client", "shop/server", 4, b"\x08\x00" + bytes(14), protocol=1)
    script.put(scenes.FABRIC_1, True, ping)
    listed = _fabric_proof(script)
    script.put(scenes.FABRIC_1, True, scenes.ethernet("shop/client", "shop/server", 4, bytes(30), protocol=UDP))
    assert (listed.result, listed.reason) == (
        Result.HELD,
        "beside it, 1 packets of ICMP 10.128.0.1:8 -> 10.64.0.2:0 on node-1:fabric",
    )
    proof = _fabric_proof(script)
    assert (proof.result, proof.reason[:20]) == (Result.FAILED, "not on 15008: UDP 10")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_a_frame_that_is_no_ip_is_searched_from_its_first_byte(pack: Callable[[bytes], bytes]) -> None:
    """0x88B5 is an EtherType for experiments (IEEE 802): what stands behind it is whatever its sender likes."""
    script, word = scenes.Script(), canary(scenes.SECRET, 7)
    script.put(scenes.FABRIC_1, True, bytes(12) + b"\x88\xb5" + pack(word))
    (window,) = windows([(True, script.frames)])
    assert {finding.number for finding in window.findings} == {7}


def _fabric_proof(script: scenes.Script) -> Proof:
    beacons = beacon.opening(scenes.BEACON_SECRET, [(0, 4)], 1)
    lit = [
        (scenes.FABRIC_1, one.outgoing, script.now_ns(), frame)
        for one in beacons.expected.values()
        for frame in beacon.frames(one, beacons.secret)
    ]
    follower = Follower(scenes.SECRET)
    follower.open()
    follower.feed(recorded([*script.frames, *lit]))
    window = follower.close(wiring(), beacons, {})
    return verdicts.nothing_in_clear(window, wiring(), scenes.FABRIC_1, 4, [])


def test_without_beacons_nothing_holds() -> None:
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello)
    (window,) = windows([(True, script.frames)])
    proof = verdicts.nothing_in_clear(window, wiring(), scenes.FABRIC_1, 4, [])
    assert (proof.result, "no beacon" in proof.reason) == (Result.CANNOT_TELL, True)


def test_old_bytes_between_packets_are_no_leak() -> None:
    script = scenes.Script()
    word = canary(scenes.SECRET, 1)
    script.put(
        scenes.CLIENT, False, scenes.ethernet("shop/client", "elsewhere", 4, bytes(8) + word[6:15], protocol=UDP)
    )
    script.put(scenes.CLIENT, False, scenes.ethernet("shop/client", "elsewhere", 4, bytes(8), protocol=UDP))
    follower = Follower(scenes.SECRET)
    follower.open()
    buffer = recorded(script.frames, stale=word[15:22])
    assert scenes.SECRET[:16] in buffer
    follower.feed(buffer)
    assert follower.close(wiring(), NONE, {}).findings == ()


@pytest.mark.parametrize("kept", [slice(0, 14), slice(0, 20), slice(2, None), slice(20, None)])
def test_a_canary_that_was_cut_off_is_found_and_says_whose_it_is_where_its_beginning_is_there(kept: slice) -> None:
    script, word = scenes.Script(), canary(scenes.SECRET, 1234)
    leak = connection(script, 8080)
    leak.open()
    leak.say(b"log: " + word[kept])
    (window,) = windows([(True, script.frames)])
    assert {finding.number for finding in window.findings} == {None if kept.start else 1234}


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda data: data.hex().encode(),
    "base64": base64.b64encode,
    "huffman": lambda data: Encoder().encode([(b"x-canary", data)]),
    "gzip": gzip.compress,
    "gzip in chunks": lambda data: search_forms.chunked(gzip.compress(data), 5),
    "deflate": lambda data: search_forms.deflated(zlib.compress(data)),
}


@pytest.mark.parametrize("form", list(FORMS))
@settings(deadline=None, max_examples=40)
@given(data=st.data(), number=st.integers(0, 10**9))
def test_a_canary_is_found_with_its_number_however_its_stream_is_cut_and_shuffled(
    form: str, data: st.DataObject, number: int
) -> None:
    stream = FORMS[form](data.draw(st.binary(max_size=40)) + canary(scenes.SECRET, number) + b"&x=y")
    cuts = data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6))
    pieces = [stream[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(stream)])]
    order = data.draw(st.permutations(range(len(pieces))))
    script = scenes.Script()
    leak = connection(script, 8080)
    leak.open()
    leak.shuffled(pieces, [*order, *data.draw(st.lists(st.sampled_from(order), max_size=2))])
    (window,) = windows([(True, script.frames)])
    assert {finding.number for finding in window.findings} == {number}
    assert not window.unread


def test_a_window_of_random_streams_and_datagrams_holds_nothing_and_all_of_it_was_read() -> None:
    noise, script = random.Random(4), scenes.Script()  # noqa: S311 - a test's
    for port in range(20):
        stream = scenes.Tcp(script, "shop/client", "elsewhere", 40000 + port, 443, (scenes.FABRIC_1,))
        stream.open()
        stream.say(noise.randbytes(50_000))
        script.put(scenes.FABRIC_1, True, scenes.ethernet("shop/client", "elsewhere", 4, noise.randbytes(1400), UDP))
    (window,) = windows([(True, script.frames)])
    assert (window.findings, window.unread) == ((), {})


def test_a_number_that_a_packet_cuts_off_is_read_from_the_stream() -> None:
    script, word = scenes.Script(), canary(scenes.SECRET, 1234)
    leak = connection(script, 8080)
    leak.open()
    leak.say(word[:6])
    leak.say(word[6:])
    (window,) = windows([(True, script.frames)])
    assert {(finding.number, finding.reassembled) for finding in window.findings} == {(1234, True)}


def test_a_canary_of_unknown_number_fails_its_link_and_makes_every_calls_proof_uncertain() -> None:
    clean = scenes.play(scenes.SCENES["clean"])
    buffer = scenes.as_pcapng("clean")
    window = scenes.window_of(buffer)
    one = scenes.call(clean, 1)
    odd = scenes.window_of(scenes.as_pcapng("leak-raw")).findings[0]
    proxy = ip_address("10.200.0.1").packed
    found = replace(window, findings=(odd._replace(number=None, source=proxy, destination=proxy),))
    proof = verdicts.encrypted(found, scenes.wiring(), one, scenes.to_server(one))
    assert (proof.result, "its number cannot be read" in proof.reason) == (Result.CANNOT_TELL, True)
    assert odd.link in verdicts.links_to_prove(found, scenes.wiring(), 4, [])
    assert verdicts.nothing_in_clear(found, scenes.wiring(), odd.link, 4, [one]).result is Result.FAILED


def test_a_window_beyond_its_bound_says_its_size() -> None:
    follower = Follower(scenes.SECRET)
    follower.open()
    follower.feed(ring_blocks.gap(0, 300 << 20))
    assert "is larger than its bound: 16 bytes kept, 314572800 not" in follower.close(wiring(), NONE, {}).blind


def test_frames_for_people_leave_the_beacons_out() -> None:
    window = scenes.window_of(scenes.as_pcapng("clean"))
    frames = list(window.frames())
    assert len(frames) == len(scenes.play(scenes.SCENES["clean"]).frames) - 24 * (1 + 5)
    assert all(scenes.BEACON_SECRET[:20] not in frame for _, _, _, frame in frames)
    assert not any(flow.destination == ip_address("192.0.2.2").packed for flow in window.flows)


def _first_call(tunnel: Callable[[scenes.Script], None], *, skip: Link | None = None) -> tuple[Window, Call]:
    """A window around call 1, made in this way; ``skip`` a link on which only the beacons were seen."""
    script = scenes.play(scenes.Scene("", tunnel=tunnel))
    frames = [frame for frame in script.frames if frame[0] != skip or frame[3].startswith(beacon.FOREIGN_MAC)]
    buffer = b"".join(pcapng.write(scenes.LINKS, frames))
    return scenes.window_of(buffer), scenes.call(script, 1)


def _tunnel(script: scenes.Script, source_port: int = 40000) -> None:
    tls = scenes.recorded_tls()
    tunnel = scenes.Tcp(script, "shop/client", "shop/server", source_port, 15008, WAY)
    tunnel.open()
    tunnel.say(tls.hello)
    tunnel.say(tls.server, back=True)


def test_a_packet_to_the_applications_port_in_the_calls_time_is_a_failure_even_when_it_is_empty() -> None:
    def beside(script: scenes.Script) -> None:
        _tunnel(script)
        connection(script, 8080).open()

    window, call = _first_call(beside)
    for prove in (verdicts.encrypted, verdicts.path):
        proof = prove(window, scenes.wiring(), call, scenes.to_server(call))
        assert (proof.result, proof.reason) == (
            Result.FAILED,
            "packets of its time on the application's own port were seen on node-1:shop/client",
        )


def test_a_tunnel_from_a_port_of_the_applications_number_is_still_a_tunnel() -> None:
    window, call = _first_call(lambda script: _tunnel(script, source_port=8080))
    assert verdicts.encrypted(window, scenes.wiring(), call, scenes.to_server(call)).result is Result.HELD
    back = replace(call, source="shop/server", to="shop/client:8080", peer=None)
    proof = verdicts.encrypted(window, scenes.wiring(), back, [direct("shop/server", "shop/client", 8080)])
    assert proof.reason == "no packet of it on port 15008 was seen on node-2:shop/server"


@pytest.mark.parametrize("link", WAY, ids=str)
def test_the_way_holds_only_where_every_link_of_it_was_seen(link: Link) -> None:
    window, call = _first_call(_tunnel, skip=link)
    proof = verdicts.path(window, scenes.wiring(), call, scenes.to_server(call))
    assert (proof.result, proof.reason) == (
        Result.CANNOT_TELL,
        f"no packet of it on port 15008 was seen on {link}",
    )


def test_packets_that_were_kept_and_streams_that_were_searched_in_part_blind_a_window() -> None:
    follower = Follower(scenes.SECRET)
    follower.open()
    frame = scenes.ethernet("shop/client", "elsewhere", 4, bytes(30), protocol=UDP)
    follower.feed(frame, [Packet(0, 2, False, 0, 0, len(frame), whole=False)])
    window = follower.close(wiring(), NONE, {})
    assert window.blind == "1 packets were kept in part only"
    assert replace(window, cut_packets=0, unread={Unread.BROKEN: 2, Unread.HOLES: 1}).blind == (
        "a canary could have been missed in 1 TCP streams with bytes missing in their middle,"
        " in 2 compressed streams that break off in their middle"
    )


def test_a_word_without_its_beginning_is_found_in_the_middle_of_a_long_segment() -> None:
    script, word = scenes.Script(), canary(scenes.SECRET, 1234)
    leak = connection(script, 8080)
    leak.open()
    leak.say(bytes(9000), size=9000)
    leak.say(bytes(4000) + word[-16:] + bytes(4000), size=9000)
    (window,) = windows([(True, script.frames)])
    assert {finding.number for finding in window.findings} == {None}
