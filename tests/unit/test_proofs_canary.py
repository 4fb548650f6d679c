"""A canary is found in whatever form it leaks, wherever it stands, and tells whose it is."""

from __future__ import annotations

import base64
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.proofs.canary import Search, canary, canary_prefix, inflate

PREFIX = canary_prefix(bytes(range(200, 216)))
FORMS = {
    "raw": bytes,
    "hex": lambda data: data.hex().encode(),
    "hex upper": lambda data: data.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64 url-safe": base64.urlsafe_b64encode,
    "gzip": gzip.compress,
}


@pytest.mark.parametrize("form", list(FORMS))
@settings(deadline=None)
@given(before=st.binary(max_size=9), behind=st.binary(max_size=9), number=st.integers(1, 10**12))
def test_the_number_is_read_in_every_form_at_every_place(form: str, before: bytes, behind: bytes, number: int) -> None:
    data = b"<" + FORMS[form](before + canary(PREFIX, number) + behind) + b">"
    assert number in {hit.number for hit in Search(PREFIX).everywhere(data)}


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_nothing_is_found_where_nothing_is(data: bytes) -> None:
    assert list(Search(PREFIX).everywhere(data)) == []


def test_all_calls_are_found_by_one_search() -> None:
    data = b"".join(canary(PREFIX, number) for number in range(1, 100))
    assert [hit.number for hit in Search(PREFIX).plain(data)] == list(range(1, 100))


def test_a_number_that_is_cut_off_is_not_guessed() -> None:
    assert [hit.number for hit in Search(PREFIX).plain(canary(PREFIX, 12345)[:-3])] == [None]


def test_a_canary_of_another_lab_is_none() -> None:
    other = canary_prefix(bytes(16))
    assert list(Search(PREFIX).everywhere(canary(other, 1))) == []


def test_hex_and_base64_within_gzip_are_found() -> None:
    data = gzip.compress(b"x" * 5000 + base64.b64encode(canary(PREFIX, 3)))
    assert [(hit.number, hit.encoding) for hit in Search(PREFIX).everywhere(data)] == [(3, "gzip+base64+0")]


def test_a_gzip_stream_that_chunked_http_breaks_is_searched_up_to_the_break() -> None:
    whole = gzip.compress(bytes(1000) + canary(PREFIX, 4) + b"".join(str(n).encode() for n in range(9000)))
    broken = whole[:2000] + b"\r\n1f40\r\n" + whole[2000:]
    assert [hit.number for hit in Search(PREFIX).everywhere(broken)] == [4]


def test_a_bomb_is_searched_up_to_the_bound_and_says_so() -> None:
    search = Search(PREFIX)
    bomb = gzip.compress(canary(PREFIX, 5) + bytes(65 << 20), compresslevel=1)
    assert [hit.number for hit in search.everywhere(bomb)] == [5]
    assert search.cut_short == 1


@settings(deadline=None)
@given(st.binary(max_size=500), st.integers(1, 400))
def test_inflating_a_broken_stream_gives_its_beginning(data: bytes, cut: int) -> None:
    squeezed = gzip.compress(data)
    assert data.startswith(inflate(squeezed[:cut] + b"\xff" * 9, 1 << 20)[: len(data)]) or cut < len(squeezed)
    assert inflate(squeezed, 1 << 20) == zlib.decompress(squeezed, wbits=31)


def test_a_prefix_comes_from_sixteen_random_bytes() -> None:
    assert len(PREFIX) == 36
    with pytest.raises(ValueError, match="has 16 bytes, not 8"):
        canary_prefix(bytes(8))
