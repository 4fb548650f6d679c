"""What the echo and its callers say, byte by byte, without a socket."""

from __future__ import annotations

import json
import string
from ipaddress import ip_address
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.apps import language
from meshlab.apps.language import Answer
from meshlab.apps.received import CanaryScanner, Received
from meshlab.model import Peer
from meshlab.proofs.canary import canary, secret_of

CANARY = canary(secret_of(bytes(range(8))), 7)


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"", None),
        (b"P", None),
        (b"GET", None),
        (b"GET ", "http"),
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"GETTING", "raw"),
        (b"MESH", None),
        (b"MESHLAB echo", None),
        (b"MESHLAB echo x\n", "echo"),
        (b"MESHLAB half-close x\nbody", "half-close"),
        (b"MESHLAB other x\n", "raw"),
        (b"MESHLAB " + b"x" * 504, "raw"),
        (b"\x16\x03\x01", "raw"),
    ],
)
def test_the_first_bytes_say_the_kind(first: bytes, kind: str | None) -> None:
    assert language.sniff(first) == kind


@given(st.binary(max_size=40), st.integers(0, 40))
def test_a_kind_once_known_stays(data: bytes, cut: int) -> None:
    early = language.sniff(data[:cut])
    assert early is None or language.sniff(data) == early


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_a_greeting_reads_as_it_was_written(address: str) -> None:
    line = language.greeting("shop/server", 8080, ip_address(address), 4242)
    assert language.read_greeting(line[:-1]) == Peer(
        pod="shop/server", server_port=8080, address=ip_address(address), port=4242
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"MESHLAB a b c",
        b"HELLO shop/a 80 10.0.0.1 1",
        b"MESHLAB shop/a 80 10.0.0.1",
        b"MESHLAB shop/a 10.0.0.1 1",
        b"\xff",
        b"MESHLAB shop/a 80 10.0.0.1 -1",
        b"MESHLAB shop/a 80 10.0.0.1 +1",
        b"MESHLAB shop/a 80 10.0.0.1 1_0",
        b"MESHLAB shop/a 65536 10.0.0.1 1",
        b"MESHLAB shop/a 80 10.0.0.1 65536",
        b"MESHLAB shop/a 80 10.0.0.1 " + b"9" * 5000,
    ],
)
def test_another_line_is_no_greeting(line: bytes) -> None:
    assert language.read_greeting(line) is None


texts = st.text(string.ascii_letters + string.digits + "/-\u00e9", max_size=10)


@given(texts, texts, st.dictionaries(texts, texts, max_size=3), st.integers(0, 1 << 40))
def test_an_answer_reads_as_it_was_written(pod: str, path: str, headers: dict[str, str], size: int) -> None:
    answer = Answer(
        peer=Peer(pod=pod, server_port=80, address=ip_address("fd00::1"), port=1, headers=headers),
        method="GET",
        path=path,
        body_bytes=size,
        body_sha256="00",
        canary="",
    )
    assert Answer.from_json(answer.to_json()) == answer
    assert answer.to_json().isascii()


ANSWER = {
    "pod": "shop/a",
    "port": 80,
    "peer": {"address": "10.0.0.1", "port": 1},
    "method": "GET",
    "path": "/",
    "headers": {"host": "x"},
    "bodyBytes": 0,
    "bodySha256": "00",
    "canary": "",
}


ODD: list[object] = [None, [], 7.0, True, "\ud800"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        *(json.dumps({**ANSWER, key: value}) for key in ANSWER for value in ODD),
        *(
            json.dumps({**ANSWER, "peer": {"address": "10.0.0.1", "port": port}})
            for port in (-1, 65536, True, "1", 1.0)
        ),
        *(json.dumps({**ANSWER, "peer": {"address": address, "port": 1}}) for address in (7, "", "10.0.0.256", None)),
        *(json.dumps({**ANSWER, "headers": headers}) for headers in ({"a": 1}, {"a": ["b"]}, {"\udfff": "a"})),
        json.dumps({**ANSWER, "bodyBytes": -1}),
    ],
)
def test_other_json_is_no_answer(text: str) -> None:
    assert Answer.from_json(json.dumps(ANSWER)).peer.pod == "shop/a"
    with pytest.raises(ValueError, match="not an answer of the echo"):
        Answer.from_json(text)


@given(st.lists(st.integers(0, 200), max_size=6))
def test_a_canary_is_found_however_the_stream_is_cut(cuts: list[int]) -> None:
    record = Received(count().__next__)
    scanner = CanaryScanner(record, "shop/a")
    stream = b"x" * 80 + CANARY + b"y" * 80
    places = [0, *sorted(cuts), len(stream)]
    for begin, end in pairwise(places):
        scanner.feed(stream[begin:end])
    assert record.among([CANARY.decode()]) == {CANARY.decode(): {"shop/a": 1}}


def test_a_canary_of_a_number_that_ends_alike_is_another_one() -> None:
    record = Received(count().__next__)
    CanaryScanner(record, "shop/a").feed(CANARY.replace(b"-7-", b"-17-"))
    assert record.among([CANARY.decode()]) == {}


def test_a_full_record_forgets_the_oldest_and_says_so() -> None:
    record = Received(count(1).__next__, most=2)
    for word in (b"a", b"b", b"a", b"c"):
        record.add(word, "shop/a")
    assert (record.among(["a", "b", "c"]), record.forgotten_until_ns) == ({"a": {"shop/a": 2}, "c": {"shop/a": 1}}, 2)


def test_connections_are_forgotten_in_the_order_of_their_last_bytes() -> None:
    record = Received(count(1).__next__, most=2)
    old, new = (record.opened("shop/a", 80, "10.0.0.1", port) for port in (1, 2))
    record.took(old, 5)
    third = record.opened("shop/a", 80, "10.0.0.1", 3)
    assert list(record.since(0)) == [third, old]
    assert list(record.since(4)) == [third]
    assert (old.bytes, record.forgotten_until_ns) == (5, new.last_ns)


@pytest.mark.parametrize(
    ("target", "delay_s"),
    [
        ("/?delay=200ms", 0.2),
        ("/a?b=c&delay=1.5s&d=e", 1.5),
        ("/?delay=99s", 4.0),
        ("/?delay=999999ms", 4.0),
        ("/?delay=200", 0.0),
        ("/?delay=-1s", 0.0),
        ("/?delay=1sx", 0.0),
        ("/?delayed=1s", 0.0),
        ("/delay=1s", 0.0),
        ("/", 0.0),
    ],
)
def test_a_delay_is_a_number_of_seconds_or_milliseconds_and_has_a_bound(target: str, delay_s: float) -> None:
    assert language.delay_s(target) == delay_s
