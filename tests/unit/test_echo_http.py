"""HTTP/1.1 between the echo and its callers, both ends, without a socket: what is strict, and what is bounded."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.apps.bodies import Body
from meshlab.apps.http1 import HEAD_BYTES, MalformedError, ResponseReader, write_head
from meshlab.apps.http_echo import KEPT_BYTES, HttpEcho, Memory
from meshlab.apps.language import Answer
from meshlab.model import Peer

CLIENT = Peer(pod="shop/a", server_port=80, address=ip_address("10.0.0.1"), port=4242)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _echo(memory: Memory | None = None) -> HttpEcho:
    return HttpEcho(CLIENT, memory or Memory())


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\r\nEvil: b"])
def test_no_header_is_smuggled_by_a_value(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        write_head("GET / HTTP/1.1", {"X": value})


RESPONSES = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    (CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: x\r\n\r\n", b"abc"),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
]


@pytest.mark.parametrize(("wire", "body"), RESPONSES)
def test_a_response_is_whole_at_its_last_byte_however_it_is_split(wire: bytes, body: bytes) -> None:
    for step in (1, 2, 7, len(wire)):
        reader = ResponseReader()
        for at in range(0, len(wire), step):
            assert not reader.complete
            reader.feed(wire[at : at + step])
        assert (reader.complete, bytes(reader.body.kept)) == (True, body)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.data())
def test_chunks_are_a_body_as_far_as_they_have_come(parts: list[bytes], data: st.DataObject) -> None:
    wire = CHUNKED + b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    whole, early = ResponseReader(), ResponseReader()
    whole.feed(wire)
    assert (whole.complete, bytes(whole.body.kept)) == (True, b"".join(parts))
    early.feed(wire[: data.draw(st.integers(1, len(wire) - 1))])
    assert not early.complete
    assert b"".join(parts).startswith(early.body.kept)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("CONNECT", 200)])
def test_a_method_says_that_a_response_has_no_body(method: str, status: int) -> None:
    reader = ResponseReader(method)
    reader.feed(b"HTTP/1.1 %d OK\r\nContent-Length: 3\r\n\r\n" % status)
    assert (reader.complete, reader.status, reader.body.size) == (True, status, 0)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.0 200 OK\r\nA: 1\r\na:  2\r\n\r\nabc")
    assert (reader.complete, reader.headers) == (False, {"a": "1, 2"})
    reader.end()
    assert (reader.complete, bytes(reader.body.kept)) == (True, b"abc")


def test_the_end_of_the_connection_completes_no_body_that_has_a_length() -> None:
    for head in (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", CHUNKED + b"4\r\n", b"HTTP/1.1 20"):
        reader = ResponseReader()
        reader.feed(head)
        reader.end()
        assert not reader.complete


CHUNK_SIZES = ["-6", "-55", "+5", "0x5", "5_0", " 5", "", ";", "\u0665", "F" * 21, "1" * 5000]


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_a_chunk_size_is_hexadecimal_digits_and_nothing_else(size: str) -> None:
    with pytest.raises(MalformedError):
        ResponseReader().feed(CHUNKED + size.encode() + b"\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize("length", ["-1", "+5", "0x5", "5_0", "\u0665", "1, 2", "9" * 5000, ""])
def test_a_content_length_is_a_number_of_at_most_twenty_digits(length: str) -> None:
    with pytest.raises(MalformedError):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % length.encode())


@pytest.mark.parametrize("status", ["", "20", "2000", "-20", "099", "abc", "2" * 5000, "\u0662\u0660\u0660"])
def test_a_status_is_three_digits(status: str) -> None:
    with pytest.raises(MalformedError):
        ResponseReader().feed(b"HTTP/1.1 %s OK\r\nContent-Length: 0\r\n\r\n" % status.encode())


def test_a_body_has_one_framing() -> None:
    with pytest.raises(MalformedError):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\n")
    with pytest.raises(MalformedError):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")


@pytest.mark.parametrize(
    "wire", [b"SSH-2.0-x\r\n", b"HTTQ", b"HTTP/2.0 200 OK\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"\x15\x03"]
)
def test_what_is_no_response_is_malformed(wire: bytes) -> None:
    with pytest.raises(MalformedError):
        ResponseReader().feed(wire)


@pytest.mark.parametrize(
    "flood",
    [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 9000, CHUNKED + b"1;", CHUNKED + b"0\r\nA: "],
    ids=["one header", "headers", "chunk extension", "trailer"],
)
def test_a_line_or_head_that_does_not_end_is_malformed(flood: bytes) -> None:
    reader = ResponseReader()
    reader.feed(flood)
    with pytest.raises(MalformedError, match="too long"):
        reader.feed(b"x" * HEAD_BYTES)


def test_the_words_of_a_fault_are_short() -> None:
    with pytest.raises(MalformedError) as caught:
        ResponseReader().feed(CHUNKED + b"z" * 50_000 + b"\r\n")
    assert len(str(caught.value)) < 200


def test_of_a_long_body_all_is_counted_and_hashed_and_the_beginning_kept() -> None:
    reader = ResponseReader(keeps=1000)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    body = bytes(range(250)) * 400
    for at in range(0, len(body), 777):
        reader.feed(body[at : at + 777])
    assert (reader.complete, reader.body.size, reader.body.is_whole) == (True, 100_000, False)
    assert bytes(reader.body.kept) == body[:1000]
    assert reader.body.sha256 == hashlib.sha256(body).hexdigest()


def test_any_number_of_interim_responses_is_skipped_and_none_is_kept() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 102 Processing\r\nA: b\r\n\r\n" * 1000)
    assert (reader.status, reader.complete, reader.body.size) == (None, False, 0)


@pytest.mark.parametrize("at_once", [True, False], ids=["pipelined", "one after the other"])
def test_a_connection_stays_open_for_the_next_request(at_once: bool) -> None:
    echo = _echo()
    wires = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % number for number in range(3)]
    answers = b"".join(echo.receive(wire) for wire in ([b"".join(wires)] if at_once else wires))
    assert [answers.count(b'"path":"/%d"' % number) for number in range(3)] == [1, 1, 1]
    assert (answers.count(b"HTTP/1.1 200 OK\r\n"), b"Connection" in answers, echo.closing) == (3, False, False)
    assert b"Connection: close" in echo.receive(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert echo.closing


def test_a_body_in_chunks_is_answered_and_hashed() -> None:
    wire = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    echo = _echo()
    out = b"".join(echo.receive(bytes([byte])) for byte in wire)
    answer = Answer.from_json(out.partition(b"\r\n\r\n")[2])
    assert (answer.body_bytes, answer.body_sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert (answer.peer.pod, echo.closing) == ("shop/a", False)


def test_a_body_that_is_not_asked_back_is_not_kept() -> None:
    echo = _echo()
    echo.receive(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999_999)
    assert echo.held == 0


def test_a_body_that_is_asked_back_is_kept_until_it_is_answered() -> None:
    echo = _echo()
    echo.receive(b"POST / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Echo: body\r\nContent-Length: 1000\r\n\r\n" + b"x" * 999)
    assert echo.held == 999
    assert echo.receive(b"y").endswith(b"x" * 999 + b"y")
    assert echo.held == 0


@pytest.mark.parametrize(
    ("size", "held", "status"), [(KEPT_BYTES + 1, 0, b"413"), (1000, 1 << 40, b"503")], ids=["too long", "full"]
)
def test_a_body_for_which_there_is_no_memory_is_refused(size: int, held: int, status: bytes) -> None:
    echo = _echo(Memory(held=held))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Echo: body\r\nContent-Length: %d\r\n\r\nx" % size
    assert echo.receive(head).startswith(b"HTTP/1.1 " + status)
    assert (echo.closing, echo.held, echo.receive(b"more")) == (True, 0, b"")


@pytest.mark.parametrize(
    "upgrade", [b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n"]
)
def test_a_connection_is_never_switched_to_another_protocol(upgrade: bytes) -> None:
    echo = _echo()
    out = echo.receive(upgrade + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")
    assert echo.closing or out.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_a_body_keeps_no_more_than_it_may() -> None:
    body = Body(keeps=3)
    for piece in (b"ab", b"cd", b"ef"):
        body.add(piece)
    assert (bytes(body.kept), body.size, body.is_whole) == (b"abc", 6, False)
