"""A refused upgrade leaves a connection on which each request is judged: nothing is smuggled behind it.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-7.8
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from meshlab.lab import Lab, open_lab
from meshlab.plan.netns import pod_netns

ROUTES = Path(__file__).parents[2] / "topologies" / "routes.yaml"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: shop.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
DENIED = b"DELETE /smuggled HTTP/1.1\r\nHost: shop.shop\r\nConnection: close\r\n\r\n"


def statuses(lab: Lab, *sent: bytes, at_once: bool) -> list[bytes]:
    """The status of each answer, on one connection of the client to the Service ``shop``."""
    service = next(each for each in lab.mesh.services if each.key == "shop.shop")
    with lab.site.open_socket(pod_netns("shop/client"), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((str(service.ipv4), 80))
        got = b""
        with suppress(ConnectionError):  # a waypoint may end the connection
            for place, each in enumerate(sent):
                sock.sendall(each)
                while not at_once and got.count(b"HTTP/1.1 ") <= place and (data := sock.recv(1 << 16)):
                    got += data
            while data := sock.recv(1 << 16):
                got += data
    return re.findall(rb"HTTP/1.1 ([0-9]+)", got)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("waypoint", ["envoy", "reference"])
def test_a_request_behind_a_refused_upgrade_is_judged(waypoint: str, at_once: bool) -> None:
    with open_lab(ROUTES, waypoint=waypoint) as lab:
        found = statuses(lab, UPGRADE, DENIED, at_once=at_once)
    assert found in ([b"200", b"403"], [b"200"])
