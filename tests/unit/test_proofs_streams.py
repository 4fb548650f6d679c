"""Segments become streams in whatever order they come; a stream is TLS records, or it is said where it is not."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Sequence

import capture_scenes as scenes
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.proofs.packets import SYN, TCP, Header
from meshlab.proofs.streams import Order, Stream
from meshlab.proofs.tls import CLIENT_HELLO, SERVER_HELLO, TlsRecords


def _head(seq: int, flags: int = 0x10, port: int = 80) -> Header:
    return Header(TCP, b"", b"", 40000, port, seq & 0xFFFFFFFF, flags, 0, 0)


def _streamed(isn: int, segments: Sequence[tuple[int, bytes]]) -> bytes:
    """What an analyser makes of segments (place in the stream, bytes) that come in this order."""
    stream = Stream(_head(0), 0)
    stream.segment(_head(isn, SYN), b"", Order(), keep=True)
    for place, data in segments:
        stream.segment(_head(isn + 1 + place), data, Order(), keep=True)
    return b"".join(stream.chunks)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    """A stream, and segments that cover it: cut anywhere, overlapping, repeated, in any order."""
    data = draw(st.binary(min_size=1, max_size=60))
    cuts = sorted(draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    spans = list(itertools.pairwise(cuts))
    places = st.integers(0, len(data))
    ends = st.tuples(places, places).map(lambda pair: (min(pair), max(pair)))
    spans += draw(st.lists(ends, max_size=6))
    return data, [(start, data[start:end]) for start, end in draw(st.permutations(spans))]


@settings(deadline=None)
@given(deliveries(), st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFE0, 0xFFFFFFFF]))
def test_a_stream_is_the_same_however_it_is_cut_repeated_and_shuffled(
    delivery: tuple[bytes, list[tuple[int, bytes]]], isn: int
) -> None:
    data, segments = delivery
    assert _streamed(isn, segments) == data


@settings(deadline=None)
@given(deliveries(), st.integers(0, 59))
def test_nothing_is_shown_beyond_a_byte_that_never_came(
    delivery: tuple[bytes, list[tuple[int, bytes]]], lost: int
) -> None:
    data, segments = delivery
    without = [(at, part) for at, part in segments if not at <= lost < at + len(part)]
    assert data[: lost if lost < len(data) else None].startswith(_streamed(7, without))


def test_a_longer_copy_of_a_waiting_segment_is_not_forgotten() -> None:
    assert _streamed(7, [(2, b"cd"), (2, b"cdef"), (0, b"ab")]) == b"abcdef"


def test_a_stream_is_taken_up_again_behind_a_gap_that_stays() -> None:
    stream = Stream(_head(0, port=15008), 0)
    stream.segment(_head(0, SYN, 15008), b"", Order(), keep=True)
    for place in range(10, 10 + 2 * 4200, 2):
        stream.segment(_head(place, port=15008), b"ab", Order(), keep=True)
    assert len(stream.pending) <= 4097
    assert not stream.born
    assert stream.chunks


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=12))
def test_a_true_conversation_is_records_however_it_is_cut(sizes: list[int]) -> None:
    tls = scenes.recorded_tls()
    for opens_with, stream in ((CLIENT_HELLO, tls.hello + tls.finished + tls.request), (SERVER_HELLO, tls.server)):
        records = TlsRecords(opens_with)
        cuts = [0, *itertools.accumulate(sizes), len(stream)]
        for start, end in itertools.pairwise(cuts):
            records.feed(stream[start:end])
        assert (records.fault, records.records > 1) == ("", True)


HELLO = b"\x16\x03\x01\x00\x04\x01abc"


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"GET / HTTP/1.1\r\n", "after 0 TLS records come bytes that are none (47 45 54 20 2f 20)"),
        (b"\x17\x03\x03\x00\x04\x01abc", "it does not open with a ClientHello (17 03 03 00 04 01)"),
        (b"\x16\x03\x01\x00\x04\x02abc", "it does not open with a ClientHello (16 03 01 00 04 02)"),
        (HELLO + b"\x17\x03\x03\x40\x00" + bytes(16384) + b"POST ", "after 2 TLS records come bytes that are none"),
        (HELLO + b"\x18\x03\x03\x00\x01", "after 1 TLS records"),
        (HELLO + b"\x17\x03\x04\x00\x01", "after 1 TLS records"),
        (HELLO + b"\x17\x03\x03\x41\x01", "after 1 TLS records"),
        (HELLO + b"\x17\x03\x03\x00\x00", "after 1 TLS records"),
    ],
    ids=["http", "no-handshake", "server-hello", "clear-later", "heartbeat", "version", "too-long", "empty"],
)
def test_what_is_no_tls_is_named_with_its_bytes(stream: bytes, fault: str) -> None:
    for size in (1, 7, len(stream)):
        records = TlsRecords(CLIENT_HELLO)
        for at in range(0, len(stream), size):
            records.feed(stream[at : at + size])
        assert records.fault.startswith(fault)


def test_a_fault_stays() -> None:
    records = TlsRecords(CLIENT_HELLO)
    records.feed(b"GET / HTTP/1.1\r\n")
    fault = records.fault
    records.feed(HELLO)
    assert records.fault == fault


def test_a_gap_before_each_of_many_segments_is_filled_one_by_one() -> None:
    """A pod may send so on purpose: each segment that closes a gap must not look at all others that wait."""
    data = bytes(index % 251 for index in range(8000))
    places = [*range(1, 8000, 2), *range(0, 8000, 2)]
    assert _streamed(0xFFFFFF00, [(place, data[place : place + 1]) for place in places]) == data


@pytest.mark.parametrize(
    ("version", "fault"), [(ssl.TLSVersion.TLSv1_3, ""), (ssl.TLSVersion.TLSv1_2, "its server chose TLS 1.2 or older")]
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_server_that_chooses_an_older_tls_shows_the_certificates(
    version: ssl.TLSVersion, fault: str, size: int
) -> None:
    authority, contexts = (
        trustme.CA(),
        [ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)],
    )
    contexts[0].maximum_version = version
    authority.configure_trust(contexts[0])
    authority.issue_cert("server.test").configure_cert(contexts[1])
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(to_client, to_server, server_hostname="server.test"),
        contexts[1].wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends:
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    flight, records = to_client.read(), TlsRecords(SERVER_HELLO)
    for at in range(0, len(flight), size):
        records.feed(flight[at : at + size])
    assert records.fault.startswith(fault)
    assert bool(records.fault) == bool(fault)
