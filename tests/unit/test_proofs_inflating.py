"""A compressed stream is inflated as far as it goes, and random bytes are rarely taken for one."""

from __future__ import annotations

import gzip
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.proofs.inflating import End, inflate
from meshlab.proofs.unread import Budget

LIKELY_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


def test_of_random_bytes_behind_a_likely_header_few_are_taken_for_a_stream() -> None:
    noise, taken = random.Random(5), 0  # noqa: S311 - a test's
    for _ in range(4000):
        inflated = inflate(LIKELY_HEADER + noise.randbytes(600), 0, Budget.of(0))
        taken += inflated.likely
    assert 0 < taken / 4000 < 1 / 20


def test_an_unlikely_header_is_inflated_and_its_break_is_taken_for_chance() -> None:
    stream = bytearray(gzip.compress(random.Random(6).randbytes(500).hex().encode()))  # noqa: S311 - a test's
    stream[9] = 77  # a system that there is not
    inflated = inflate(bytes(stream[:300]) + random.Random(7).randbytes(4000), 0, Budget.of(0))  # noqa: S311 - a test's
    assert (inflated.end, inflated.likely, len(inflated.text) > 100) == (End.BROKEN, False, True)


@settings(deadline=None)
@given(st.binary(max_size=500), st.binary(max_size=500), st.binary(max_size=9))
def test_members_that_follow_each_other_are_one_text(one: bytes, other: bytes, behind: bytes) -> None:
    data = gzip.compress(one) + gzip.compress(other)
    inflated = inflate(b"<" + data + b"." + behind, 1, Budget.of(0))
    assert (inflated.text, inflated.end, inflated.next) == (one + other, End.WHOLE, 1 + len(data))


@settings(deadline=None)
@given(st.binary(max_size=500), st.integers(11, 400))
def test_a_broken_stream_gives_what_stood_before_the_break(data: bytes, cut: int) -> None:
    squeezed = gzip.compress(data, 0)  # stored, so that each byte stands for itself: ten of header, five of block
    broken = squeezed[: min(cut, len(squeezed) - 8)] + b"\xff" * 2000
    text = inflate(broken, 0, Budget.of(0)).text
    assert text.startswith(data[: max(0, min(cut, len(squeezed) - 8) - 15)])
