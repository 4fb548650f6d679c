"""The form of the words that calls and beacons carry, made and read here and nowhere else.

    canary of call 7    mlc-7-9f86d081884c7d659f86d081884c7d65
    beacon 7            mlb-7-2c26b46b68ffc68f2c26b46b68ffc68f
                            | \\______________/\\______________/
                       number   a half           the same half     the lab's secret, constant for all of its words

The number stands first, so a word that was cut off at its end still says whose it is. The secret is one half written
twice, so that a search needs to look for one half only, and finds a word that lost its beginning, its end, or has
something (a line break, the frame of a chunk) in its middle: one of the halves is whole.
"""

from __future__ import annotations

import re

CANARY = b"mlc-"
"""What a call's word begins with."""
BEACON = b"mlb-"
RANDOM_BYTES = 8
HALF_BYTES = 2 * RANDOM_BYTES
SECRET_BYTES = 2 * HALF_BYTES
MOST_DIGITS = 18
HEAD_BYTES = len(CANARY) + MOST_DIGITS + 1
"""The most that stands before the secret."""
LONGEST_BYTES = HEAD_BYTES + SECRET_BYTES
WHOLE = re.compile(rb"mlc-[0-9]{1,18}-([0-9a-f]{16})\1")
"""Any lab's canary. Its length is known once its number is, so nothing has to mark its end."""


def secret_of(random: bytes) -> bytes:
    """Return what all words of a lab end with, from its random bytes.

    Raises:
        ValueError: there are not eight of them.
    """
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a secret is made of {RANDOM_BYTES} bytes, not {len(random)}")
    return random.hex().encode() * 2


def canary(secret: bytes, number: int) -> bytes:
    """Return the word of the call ``number``."""
    return CANARY + b"%d-" % number + secret


def beacon(secret: bytes, number: int) -> bytes:
    """Return the word of the beacon ``number``."""
    return BEACON + b"%d-" % number + secret
