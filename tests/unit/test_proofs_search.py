"""A canary is found in whatever form and behind whatever layer it leaks, and tells whose it is; the rest is counted."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterable

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from search_forms import chunked, deflated, lines, raw_deflate

from meshlab.proofs.canary import MOST_DIGITS, canary, secret_of
from meshlab.proofs.forms import Form
from meshlab.proofs.search import Hit, Search
from meshlab.proofs.unread import Budget, Unread

SECRET = secret_of(bytes(range(200, 208)))
OTHER = secret_of(bytes(8))


def _huffman(text: bytes) -> bytes:
    """As a header's value, in which it begins at any of 8 bits."""
    return Encoder().encode([(b"x-canary", text)])


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda data: data.hex().encode(),
    "hex upper": lambda data: data.hex().upper().encode(),
    "hex with colons": lambda data: data.hex(":").encode(),
    "hex with spaces": lambda data: data.hex(" ").upper().encode(),
    "base64": base64.b64encode,
    "base64 url-safe": base64.urlsafe_b64encode,
    "base64 mime": lambda data: lines(data, 76, b"\r\n"),
    "base64 pem": lambda data: lines(data, 64, b"\n"),
    "base64 pem in json": lambda data: json.dumps({"pem": lines(data, 64, b"\r\n").decode()}).encode(),
    "huffman": _huffman,
    "gzip": gzip.compress,
    "gzip of two members": lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
    "gzip of gzip": lambda data: gzip.compress(gzip.compress(data)),
    "base64 in gzip": lambda data: gzip.compress(base64.b64encode(data)),
    "zlib": lambda data: deflated(zlib.compress(data)),
    "raw deflate": lambda data: deflated(raw_deflate(data)),
    "chunks of 1": lambda data: chunked(data, 1),
    "chunks of 7": lambda data: chunked(data, 7),
    "gzip in chunks of 3": lambda data: chunked(gzip.compress(data), 3, head=b"Content-Encoding: gzip\r\n"),
    "gzip in chunks of 40": lambda data: chunked(gzip.compress(data), 40),
    "deflate in chunks of 5": lambda data: chunked(zlib.compress(data), 5, head=b"content-encoding: deflate\r\n"),
}
numbers = st.integers(0, 10**MOST_DIGITS - 1)


@pytest.mark.parametrize("form", list(FORMS))
@settings(deadline=None)
@given(before=st.binary(max_size=80), behind=st.binary(max_size=9), number=numbers)
def test_the_number_is_read_in_every_form_at_every_place(form: str, before: bytes, behind: bytes, number: int) -> None:
    data = b"<" + FORMS[form](before + canary(SECRET, number) + behind) + b">"
    search = Search(SECRET)
    hits = search.everywhere(data)
    assert {hit.number for hit in hits} == {number}
    assert search.unread.total() == 0


@settings(deadline=None)
@given(st.text("abcdefghijklmnopqrstuvwxyz:/.?=&-", max_size=20), numbers)
def test_huffman_is_read_at_each_of_the_eight_bits_at_which_a_word_may_begin(before: str, number: int) -> None:
    data = _huffman(before.encode() + canary(SECRET, number) + b"&x=y")
    assert {(hit.number, hit.encoding) for hit in Search(SECRET).everywhere(data)} == {(number, "huffman")}


@pytest.mark.parametrize("column", range(1, 60))
def test_a_line_break_may_stand_anywhere_in_the_base64_of_a_canary(column: int) -> None:
    text = base64.b64encode(canary(SECRET, 1234567))
    for end in (b"\n", b"\r\n", rb"\n", rb"\r\n"):
        hits = Search(SECRET).everywhere(text[:column] + end + text[column:])
        assert {hit.number for hit in hits} == {1234567}


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_nothing_is_found_where_nothing_is(data: bytes) -> None:
    assert Search(SECRET).everywhere(data) == []


def test_megabytes_of_random_bytes_hold_nothing_and_were_all_read() -> None:
    data = random.Random(0).randbytes(8 << 20)  # noqa: S311 - a test's
    search = Search(SECRET)
    search.begin(len(data))
    assert search.everywhere(data, more_follows=False) == []
    assert search.unread.total() == 0


def test_all_calls_are_found_by_one_search() -> None:
    data = b"".join(canary(SECRET, number) for number in range(1, 100))
    assert [hit.number for hit in Search(SECRET).plain(data)] == list(range(1, 100))


@pytest.mark.parametrize("left", range(len("mlc-12345-") + 4, len(canary(SECRET, 12345))))
def test_a_canary_that_lost_its_end_says_whose_it_is(left: int) -> None:
    assert [hit.number for hit in Search(SECRET).plain(b"... " + canary(SECRET, 12345)[:left])] == [12345]


@pytest.mark.parametrize("lost", range(1, len("mlc-12345-") + 17))
def test_a_canary_that_lost_its_beginning_is_found_and_its_number_is_not_guessed(lost: int) -> None:
    word = canary(SECRET, 12345)[lost:]
    for form in (bytes, bytes.hex, base64.b64encode, _huffman):
        data = form(word)
        hits = Search(SECRET).plain(data.encode() if isinstance(data, str) else data)
        assert {hit.number for hit in hits} == {None}


def test_a_canary_of_another_lab_is_none() -> None:
    assert Search(SECRET).everywhere(canary(OTHER, 1)) == []


def test_a_hit_names_its_layers_from_the_outside_in() -> None:
    data = chunked(gzip.compress(b"x" * 5000 + base64.b64encode(canary(SECRET, 3))), 9)
    assert [(hit.number, hit.encoding) for hit in Search(SECRET).everywhere(data)] == [(3, "chunked+gzip+base64")]


def test_a_number_that_the_boundary_of_a_chunk_splits_is_read_once_and_not_called_unknown() -> None:
    head, word = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", canary(SECRET, 1234)
    data = head + b"6\r\n" + word[:6] + b"\r\n" + b"%x\r\n" % len(word[6:]) + word[6:] + b"\r\n0\r\n\r\n"
    assert [(hit.number, hit.encoding) for hit in Search(SECRET).everywhere(data)] == [(1234, "chunked")]


def test_a_message_behind_a_chunked_one_is_read_too() -> None:
    data = chunked(b"hello", 2) + chunked(gzip.compress(canary(SECRET, 5)), 4)
    assert {hit.number for hit in Search(SECRET).everywhere(data)} == {5}


# --- what cannot be read is counted ----------------------------------------------------------------------------------

TEXT = random.Random(1).randbytes(3000).hex().encode()  # noqa: S311 - a test's
SQUEEZED = gzip.compress(TEXT)
HEAD = b"HTTP/1.1 200 OK\r\n"


def unread(data: bytes, *, more_follows: bool = True) -> dict[Unread, int]:
    search = Search(SECRET)
    search.begin(len(data))
    search.everywhere(data, more_follows=more_follows)
    return {reason: count for reason, count in search.unread.items() if count}


def test_a_gzip_stream_with_something_else_in_its_middle_is_searched_up_to_there_and_counted() -> None:
    whole = gzip.compress(bytes(1000) + canary(SECRET, 4) + TEXT)
    broken = whole[:2000] + b"\xff" * 40 + whole[2000:]
    assert {hit.number for hit in Search(SECRET).everywhere(broken)} == {4}
    assert unread(broken) == {Unread.BROKEN: 1}


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (SQUEEZED, {}),
        (SQUEEZED[:1000], {Unread.BROKEN: 1}),
        (HEAD + b"Content-Encoding: deflate\r\nContent-Length: 9\r\n\r\nno zlib..", {Unread.BROKEN: 1}),
        (HEAD + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", {Unread.CODING: 1}),
        (HEAD + b"Content-Encoding: gzip, zstd\r\n\r\nabc", {Unread.CODING: 1}),
        (HEAD + b"Content-Encoding: identity\r\n\r\nabc", {}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nno size\r\n", {Unread.CHUNKS: 1}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-6\r\nabc\r\n", {Unread.CHUNKS: 1}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdefg\r\n", {Unread.CHUNKS: 1}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", {}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n400\r\nabc", {}),
        (chunked(SQUEEZED[:1000], 99), {Unread.BROKEN: 1}),
    ],
    ids=[
        "whole", "cut", "no zlib", "brotli", "zstd", "identity", "no size", "negative", "too long", "chunks",
        "chunk goes on", "cut in chunks",
    ],
)  # fmt: skip
def test_what_a_datagram_holds_and_cannot_be_read_is_counted(data: bytes, reasons: dict[Unread, int]) -> None:
    assert unread(data, more_follows=False) == reasons


def test_a_compressed_stream_that_goes_on_behind_the_window_was_read_as_far_as_it_went() -> None:
    assert unread(SQUEEZED[:1000]) == {}
    assert unread(chunked(SQUEEZED, 99)[:1000]) == {}


def test_magic_that_stands_there_by_chance_is_not_counted() -> None:
    noise = random.Random(2)  # noqa: S311 - a test's
    chance = b"".join(b"\x1f\x8b\x08" + noise.randbytes(61) for _ in range(1000))
    assert unread(chance, more_follows=False) == {}


def test_a_bomb_is_searched_up_to_the_budget_and_says_so() -> None:
    search = Search(SECRET, Budget(4 << 20))
    bomb = gzip.compress(canary(SECRET, 5) + bytes(5 << 20), compresslevel=1)
    assert {hit.number for hit in search.everywhere(bomb)} == {5}
    assert search.unread == {Unread.TOO_LARGE: 1, Unread.BROKEN: 0}


def test_what_is_packed_more_often_than_layers_are_taken_off_is_counted() -> None:
    data = canary(SECRET, 5)
    for _ in range(6):
        data = gzip.compress(data)
    assert unread(data) == {Unread.TOO_LARGE: 1}


HOSTILE: dict[str, bytes] = {
    "magic": b"\x1f\x8b\x08",
    "magic with a header": b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    "magic with a name": b"\x1f\x8b\x08\x08\0\0\0\0\0\xffab",
    "magic with a stored block": b"\x1f\x8b\x08\0\0\0\0\0\0\xff\0\x09\0\xf6\xff",
    "bombs": gzip.compress(bytes(1 << 16)),
    "bombs of bombs": gzip.compress(gzip.compress(bytes(1 << 16)) * 8),
    "http": b"HTTP/1.1",
    "heads": b"HTTP/1.1\r\n\r\n",
    "chunked heads": b"HTTP/1.1\r\ntransfer-encoding:chunked\r\n\r\n",
    "chunks of 1": b"1\r\na\r\n",
    "halves": SECRET[:16],
    "cut words": canary(SECRET, 1)[:10],
    "base64": base64.b64encode(SECRET + b"+"),
}


class _Counting(Search):
    """Counts the bytes that it searches."""

    searched = 0

    def plain(self, data: bytes, among: Iterable[Form] | None = None) -> list[Hit]:
        self.searched += len(data)
        return super().plain(data, among)


@pytest.mark.parametrize("unit", list(HOSTILE))
def test_the_work_is_linear_whatever_comes(unit: str) -> None:
    """Counted in bytes inflated and searched, since a clock would also measure the machine."""
    for size in (1 << 14, 1 << 17):
        search = _Counting(SECRET, Budget(8 * size))
        search.everywhere(HOSTILE[unit] * (size // len(HOSTILE[unit])), more_follows=False)
        inflated = 8 * size - search.budget.left
        assert search.searched
        assert inflated <= 10 * size
        assert search.searched <= inflated + 5 * size
