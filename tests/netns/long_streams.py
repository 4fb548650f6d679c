"""Connections with a history (a pause, a FIN, a hang-up, a crowd), and whether a data plane is right about them.

The server is a socket of the test's own in shop/far, so that it is as slow as the test wants, and nothing sleeps.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from open_connections import DEADLINE_S, SLOW_PORT, connected, echoed, ends, open_to

from meshlab.errors import ProofFailedError
from meshlab.model import Outcome
from meshlab.model.report import Result
from meshlab.plan.netns import pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

ABANDONED = 12
"""Downloads: of a tunnel's window of 16 MiB, as usual as any, all is gone if each takes some with it."""
FULL_S = 0.3
CROWD = 120
"""More connections than a tunnel has streams."""
PIECE = b"this answer is for whoever has hung up. " * 100
PIECES_APART_S = 0.02


# --- a pause ---------------------------------------------------------------------------------------------------------


def is_in_clear_after_a_pause(lab: Lab) -> bool:
    """Whether anything between enrolled pods is in plaintext while a connection is used, is silent, and is used."""
    with lab.capture() as capture, open_to(lab, "shop/client", "shop/far", 8080) as sock:
        assert not ends(sock), "nothing was said, and it ended"
        assert echoed(sock, b"and another thing")
        call = lab.pod("shop/client").http("http://shop/far:8080/")
    proofs = capture.nothing_in_clear([call])
    assert proofs
    assert Result.CANNOT_TELL not in {proof.result for proof in proofs}
    return Result.FAILED in {proof.result for proof in proofs}


# --- a FIN -----------------------------------------------------------------------------------------------------------


def answer_after_the_clients_fin(lab: Lab, source: str) -> list[bytes]:
    """What a client that has ended its side gets of an answer in two parts, with a long silence before each."""
    with _conversation(lab, source) as (client, app):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert _rest(app) == b"question"
        return _said_slowly(app, client)


def request_after_the_servers_fin(lab: Lab, source: str) -> list[bytes]:
    """What a server that has ended its side gets of what the client says then, in two parts, each after a silence."""
    with _conversation(lab, source) as (client, app):
        app.sendall(b"greeting")
        app.shutdown(socket.SHUT_WR)
        assert _rest(client) == b"greeting"
        return _said_slowly(client, app)


def _said_slowly(one: socket.socket, other: socket.socket) -> list[bytes]:
    """What ``other`` receives: "first", "second", and the end."""
    got: list[bytes] = []
    for part in (b"first", b"second"):
        if ends(other):
            return got
        other.settimeout(DEADLINE_S)
        one.sendall(part)
        got.append(_next(other, len(part)))
    one.shutdown(socket.SHUT_WR)
    return [*got, _rest(other)]


# --- a hang-up -------------------------------------------------------------------------------------------------------


def _reset(sock: socket.socket) -> None:
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _close_unread(sock: socket.socket) -> None:
    """The kernel makes it a RST, as bytes wait (RFC 1122, 4.2.2.13)."""
    sock.recv(1)
    sock.close()


def _close_read(sock: socket.socket) -> None:
    """A FIN; the next piece of the answer is what the kernel resets it for."""
    assert _next(sock, len(PIECE)) == PIECE
    sock.close()


HANG_UPS: dict[str, Callable[[socket.socket], None]] = {
    "with a RST": _reset,
    "with bytes unread": _close_unread,
    "with a FIN": _close_read,
}


def answer_after_a_hang_up(lab: Lab, how: str, then: str) -> bytes:
    """What pod ``then`` gets from a port at which shop/client has just hung up in the middle of an answer."""
    with _listener(lab) as listener:
        with _joined(lab, "shop/client", listener) as (client, app):
            app.sendall(PIECE)
            HANG_UPS[how](client)
            _goes_on_until_it_is_lost(app)
        with _joined(lab, then, listener) as (client, app):
            app.sendall(b"own answer")
            app.shutdown(socket.SHUT_WR)
            return _rest(client)


def _goes_on_until_it_is_lost(app: socket.socket) -> None:
    """Send piece after piece, until the connection is reset."""
    lost = select.poll()
    lost.register(app, 0)  # of POLLERR and POLLHUP one is always told
    deadline = time.monotonic() + DEADLINE_S
    with contextlib.suppress(ConnectionError):
        while not lost.poll(PIECES_APART_S * 1000):
            app.sendall(PIECE)
            assert time.monotonic() < deadline, "nobody told the server that its client has hung up"


def calls_after_abandoned_downloads(lab: Lab) -> list[Outcome]:
    """How calls of shop/client end at the pod of whose answers it has left some unread, all that it had room for."""
    with _listener(lab) as listener, contextlib.suppress(TimeoutError):
        for _ in range(ABANDONED):
            with _joined(lab, "shop/client", listener) as (client, app):
                _fill(app)
                client.close()
                _goes_on_until_it_is_lost(app)
    far = "http://shop/far:8080/"
    plan = lab.pod("shop/client").plan_http(far, method="POST", body=bytes(1 << 20), headers={"X-Meshlab-Echo": "body"})
    return [call.outcome for call in lab.calls([plan] * 3)]


def _fill(app: socket.socket) -> None:
    """Send until nobody takes any more for a while."""
    app.settimeout(FULL_S)
    with contextlib.suppress(TimeoutError):
        while True:
            app.sendall(PIECE * 16)
    app.settimeout(DEADLINE_S)


# --- a crowd ---------------------------------------------------------------------------------------------------------


def is_denied_in_a_crowd(lab: Lab) -> bool:
    """Whether shop/client, which a policy denies, is kept from a pod that many connections are open to; proven."""
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(open_to(lab, "shop/other", "shop/far", 8080)) for _ in range(CROWD)]
        with lab.capture() as capture:
            allowed, denied = (lab.pod(pod).http("http://shop/far:8080/") for pod in ("shop/other", "shop/client"))
        assert all(echoed(sock, b"still here") for sock in crowd)
    assert allowed.outcome is Outcome.OK
    try:
        capture.prove_denied(denied, twin=allowed)
    except ProofFailedError:
        return False
    return denied.outcome in Outcome.REFUSED


# --- the test's own server -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listener(lab: Lab) -> Iterator[socket.socket]:
    with lab.site.open_socket(
        pod_netns("shop/far"), socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP
    ) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", SLOW_PORT))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield listener


@contextlib.contextmanager
def _joined(lab: Lab, source: str, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pod's connection, and the server's side of it, which has been spoken to."""
    with connected(lab, source, str(lab.pod("shop/far").ipv4), SLOW_PORT) as client:
        client.sendall(b"hello")
        app, _ = listener.accept()
        with app:
            app.settimeout(DEADLINE_S)
            assert _next(app, 5) == b"hello"
            yield client, app


@contextlib.contextmanager
def _conversation(lab: Lab, source: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with _listener(lab) as listener, _joined(lab, source, listener) as ends_of_it:
        yield ends_of_it


def _next(sock: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer where the other side ends before."""
    got = b""
    while len(got) < length and (more := sock.recv(length - len(got))):
        got += more
    return got


def _rest(sock: socket.socket) -> bytes:
    """All that comes until the other side ends."""
    with sock.makefile("rb") as stream:
        return stream.read()
