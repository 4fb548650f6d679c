"""What the kernel says of a socket that listens, and whose connections it takes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from meshlab.kernel.listening import Listener, decode

POD4, POD6 = ip_address("10.64.0.1"), ip_address("fd00::1")


def _message(family: int, address: bytes, port: int, only6: int | None = None) -> bytes:
    """As ``struct inet_diag_msg`` has it, with INET_DIAG_SKV6ONLY where the kernel gives it."""
    body = struct.pack("=BBBB", family, 10, 0, 0) + struct.pack("!HH", port, 0) + address.ljust(16, b"\0") + bytes(48)
    return body if only6 is None else body + struct.pack("=HHB3x", 5, 11, only6)


@pytest.mark.parametrize(
    ("message", "over4", "over6"),
    [
        (_message(2, bytes(4), 80), True, False),
        (_message(2, POD4.packed, 80), True, False),
        (_message(2, ip_address("127.0.0.1").packed, 80), False, False),
        (_message(10, bytes(16), 80, 0), True, True),
        (_message(10, bytes(16), 80, 1), False, True),
        (_message(10, POD6.packed, 80, 0), False, True),
        (_message(10, ip_address(f"::ffff:{POD4}").packed, 80, 0), True, False),
        (_message(10, ip_address("::1").packed, 80, 0), False, False),
    ],
    ids=["0.0.0.0", "own v4", "127.0.0.1", "::", ":: only", "own v6", "v4 in v6", "::1"],
)
def test_a_socket_takes_the_families_that_its_address_stands_for(message: bytes, over4: bool, over6: bool) -> None:
    listener = decode(message)
    assert (listener.takes(POD4, 80), listener.takes(POD6, 80)) == (over4, over6)


def test_a_socket_takes_its_own_port_only() -> None:
    assert not Listener(ip_address("::"), 80).takes(POD4, 81)
