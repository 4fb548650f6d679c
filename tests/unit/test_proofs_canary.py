"""A canary says whose it is at its beginning, and is known by either half of its secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.proofs.canary import HALF_BYTES, LONGEST_BYTES, MOST_DIGITS, WHOLE, beacon, canary, secret_of

SECRET = secret_of(bytes(range(200, 208)))


@given(st.integers(0, 10**MOST_DIGITS - 1))
def test_a_canary_is_its_number_and_then_one_half_twice(number: int) -> None:
    word = canary(SECRET, number)
    assert word == b"mlc-%d-" % number + 2 * SECRET[:HALF_BYTES]
    assert WHOLE.fullmatch(word)
    assert len(word) <= LONGEST_BYTES


def test_a_beacon_is_no_canary() -> None:
    assert WHOLE.search(beacon(SECRET, 7)) is None


def test_a_secret_is_made_of_eight_random_bytes() -> None:
    assert len(SECRET) == 32
    with pytest.raises(ValueError, match="is made of 8 bytes, not 16"):
        secret_of(bytes(16))
