"""Bytes that the capture has lost: the window in which that happened is not judged, and a later one is."""

from __future__ import annotations

import capture_scenes as scenes
import pytest
import ring_blocks
from test_proofs_windows import NONE, WAY, connection, recorded, wiring

from meshlab.model.report import Result
from meshlab.proofs import verdicts
from meshlab.proofs.follower import Follower
from meshlab.proofs.packets import TCP, Header
from meshlab.proofs.streams import Order, Stream
from meshlab.proofs.tls import CLIENT_HELLO, TlsRecords
from meshlab.proofs.window import Window

GAP = ring_blocks.gap(0, 5_000) + ring_blocks.gap(1, 5_000)
RECORD = b"\x17\x03\x03\x00\x64" + bytes(100)
BROKEN = b"\x17\x03\x03\x7f\xff" + bytes(100)


class Talk:
    """A tunnel that stands, whose client says what a test lets it say."""

    def __init__(self) -> None:
        self.follower = Follower(scenes.SECRET)
        self.script = scenes.Script()
        self.tunnel = connection(self.script)
        tls = scenes.recorded_tls()
        self.tunnel.open()
        self.tunnel.say(tls.hello)
        self.tunnel.say(tls.server, back=True)
        self.tunnel.say(tls.finished)
        self.feed()

    def say(self, data: bytes, *, size: int = 1400) -> Talk:
        self.tunnel.say(data, size=size)
        return self

    def feed(self, word: bytes = b"") -> None:
        """What was said since, as it was recorded; then the recorder's word that more was lost."""
        self.follower.feed(recorded(self.script.frames) + word)
        self.script.frames.clear()

    def lose(self, data: bytes) -> None:
        self.say(data)
        self.script.frames.clear()

    def window(self, data: bytes, *, size: int = 1400) -> Window:
        self.follower.open()
        self.say(data, size=size).feed()
        return self.follower.close(wiring(), NONE, {})


def judged(window: Window) -> set[tuple[bool, str]]:
    assert len({flow.link for flow in window.flows if flow.payload_bytes}) == len(WAY)
    return {(flow.hole, flow.not_tls) for flow in window.flows if flow.payload_bytes}


def test_the_first_window_after_a_loss_that_was_told_is_judged_where_a_segment_begins_with_a_record() -> None:
    talk = Talk()
    talk.lose(RECORD * 3)
    talk.feed(GAP)
    window = talk.window(RECORD)
    assert judged(window) == {(False, "")}
    assert (window.lost_bytes, window.lost_before_bytes) == (0, 10_000)


def test_a_loss_that_nobody_told_costs_two_windows_and_no_more() -> None:
    talk = Talk()
    talk.lose(RECORD)
    assert judged(talk.window(RECORD)) == {(True, "")}
    assert judged(talk.window(RECORD)) == {(True, "")}, "what is missing might have come late"
    assert judged(talk.window(RECORD)) == {(False, "")}


def test_a_window_that_begins_in_the_middle_of_a_record_is_not_judged_and_the_next_one_is() -> None:
    talk = Talk()
    talk.lose(RECORD + RECORD[:50])
    talk.feed(GAP)
    assert judged(talk.window(RECORD[50:])) == {(True, "")}
    assert judged(talk.window(RECORD)) == {(False, "")}


def test_what_is_lost_within_a_window_blinds_that_window_only() -> None:
    talk = Talk()
    talk.follower.open()
    talk.say(RECORD).feed(GAP)
    talk.lose(RECORD)
    talk.say(RECORD).feed()
    window = talk.follower.close(wiring(), NONE, {})
    assert (window.lost_bytes, judged(window)) == (10_000, {(True, "")})
    assert judged(talk.window(RECORD)) == {(False, "")}


def test_a_tunnel_that_speaks_in_clear_after_a_loss_is_never_judged_to_be_tls() -> None:
    talk = Talk()
    talk.lose(RECORD)
    talk.feed(GAP)
    for _ in range(3):
        assert judged(talk.window(b"now in clear")) == {(True, "")}


def test_bytes_that_only_looked_like_a_header_are_no_fault() -> None:
    talk = Talk()
    talk.lose(RECORD)
    talk.feed(GAP)
    assert judged(talk.window(RECORD + BROKEN)) == {(True, "")}
    assert judged(talk.window(RECORD)) == {(False, "")}


def test_after_enough_records_what_is_none_is_a_fault_again() -> None:
    talk = Talk()
    talk.lose(RECORD)
    talk.feed(GAP)
    talk.window(RECORD * 9)
    ((hole, fault),) = judged(talk.window(BROKEN))
    assert (hole, fault[:5]) == (False, "after")


def test_a_connection_of_which_the_hello_was_lost_is_never_judged() -> None:
    records = TlsRecords(CLIENT_HELLO)
    assert not records.resume()


def test_the_reason_says_how_much_was_lost_before_the_window_and_what_to_do() -> None:
    talk = Talk()
    talk.lose(RECORD)
    talk.feed(GAP)
    window = talk.window(b"in the middle")
    proof = verdicts.nothing_in_clear(window, wiring(), scenes.FABRIC_1, 4, [])
    assert proof.result is Result.CANNOT_TELL
    assert "10000 bytes were lost before the window" in proof.reason
    assert "in another window, or over a new connection" in proof.reason


@pytest.mark.parametrize("size", [1400, 60_000])
def test_what_waits_for_a_byte_that_never_comes_has_a_bound(size: int) -> None:
    stream = Stream(_head(0), 0)
    stream.segment(_head(0), bytes(1), Order(), keep=False)
    most = 0
    for at in range(100, 64 << 20, size):
        stream.segment(_head(at), bytes(size), Order(), keep=False)
        most = max(most, sum(map(len, stream.pending.values())))
    assert most <= 17 << 20


def test_a_look_at_an_open_window_shows_what_came_until_now_and_the_end_shows_all() -> None:
    talk = Talk()
    talk.follower.open()
    talk.say(RECORD).feed()
    first = talk.follower.look(wiring(), NONE, {})
    talk.say(RECORD * 2).feed()
    second = talk.follower.look(wiring(), NONE, {})
    last = talk.follower.close(wiring(), NONE, {})
    sent = [sum(flow.payload_bytes for flow in window.flows) // len(WAY) for window in (first, second, last)]
    assert sent == [len(RECORD), 3 * len(RECORD), 3 * len(RECORD)]
    assert judged(first) == judged(last) == {(False, "")}


def _head(seq: int) -> Header:
    return Header(TCP, b"\1\2\3\4", b"\5\6\7\x08", 4000, 15008, seq & 0xFFFFFFFF, 0x10, 0, 0)
