"""The echo as the lab starts it: a process with its sockets and its control channel as descriptors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from meshlab.kernel.channel import Channel, pair
from meshlab.proofs.canary import canary, secret_of

DEADLINE_S = 10.0
SECRET = secret_of(bytes(range(8)))
CANARY = canary(SECRET, 7).decode()
_START = "import json, sys; from meshlab.apps.echo import main; main(*map(json.loads, sys.argv[1:]))"


@dataclass
class Running:
    """An echo of two pods: ``shop/a`` echoes, ``shop/b`` speaks first."""

    process: subprocess.Popen[bytes]
    channel: Channel
    ports: dict[str, int]

    def ask(self, sockets: Sequence[socket.socket] = (), **request: Any) -> dict[str, Any]:
        self.channel.send({"id": 1, **request}, [sock.fileno() for sock in sockets])
        answer, _ = self.channel.receive(DEADLINE_S)
        assert isinstance(answer, dict)
        return answer

    def dial(self, pod: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[pod]), DEADLINE_S)

    def say(self, data: bytes, pod: str = "shop/a") -> bytes:
        """Send ``data``, close our side, and read to the end."""
        with self.dial(pod) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return _to_the_end(sock)


@pytest.fixture(name="echo", scope="module")
def _echo() -> Iterator[Running]:
    running = _start()
    yield running
    running.channel.close()
    assert running.process.wait(DEADLINE_S) == 0


def _start() -> Running:
    ours, theirs = pair()
    listeners = [_listener(), _listener()]
    ports = {pod: sock.getsockname()[1] for pod, sock in zip(("shop/a", "shop/b"), listeners, strict=True)}
    argv = [sys.executable, "-W", "error", "-c", _START, "{}", json.dumps({"control": theirs.fileno()})]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
    theirs.close()
    running = Running(process, ours, ports)
    pods = [
        {"pod": "shop/a", "port": ports["shop/a"], "listener": 0},
        {"pod": "shop/b", "port": ports["shop/b"], "listener": 1, "mode": "server-first"},
    ]
    assert running.ask(listeners, op="listen", pods=pods) == {"id": 1, "listening": 2}
    for sock in listeners:
        sock.close()
    return running


def _listener() -> socket.socket:
    """Dual-stack, as in a pod."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    sock.listen()
    return sock


def _to_the_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


def _answer(response: bytes) -> dict[str, Any]:
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    document = json.loads(body)
    assert isinstance(document, dict)
    return document


def test_an_http_answer_says_who_was_called_by_whom_with_what(echo: Running) -> None:
    request = (
        b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Meshlab-Canary: %s\r\nContent-Length: 3\r\n\r\nabc" % CANARY.encode()
    )
    with echo.dial("shop/a") as sock:
        port = sock.getsockname()[1]
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = _answer(_to_the_end(sock))
    assert answer == {
        "pod": "shop/a",
        "port": echo.ports["shop/a"],
        "peer": {"address": "127.0.0.1", "port": port},
        "method": "POST",
        "path": "/a?b=c",
        "headers": {"host": "x", "x-meshlab-canary": CANARY, "content-length": "3"},
        "bodyBytes": 3,
        "bodySha256": hashlib.sha256(b"abc").hexdigest(),
        "canary": CANARY,
    }


def test_one_connection_carries_many_requests_split_anywhere(echo: Running) -> None:
    request = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
    with echo.dial("shop/a") as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request * 2:
            sock.send(bytes([byte]))
        sock.sendall(request + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        response = _to_the_end(sock)
    assert response.count(b"HTTP/1.1 200 OK") == 4
    assert response.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Status: 418", "418 I'm a Teapot"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Status: 299", "299 Status"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Status: 100", "200 OK"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Status: later", "200 OK"),
        (f"GET / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Status: {'3' * 5000}", "200 OK"),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip", "501 Not Implemented"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1", "400 Bad Request"),
        (f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {'9' * 5000}", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Echo: body\r\nContent-Length: 99999999999", "413 "),
        ("GET / HTTP/1.1\r\nHost: x\r\nno colon", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nno: host", "400 Bad Request"),
    ],
)
def test_each_request_gets_its_status(echo: Running, request_head: str, status: str) -> None:
    response = echo.say(f"{request_head}\r\n\r\n".encode())
    assert response.decode().startswith(f"HTTP/1.1 {status}")


def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on(echo: Running) -> None:
    with echo.dial("shop/a") as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        )
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert _answer(_to_the_end(sock))["bodyBytes"] == 3


def test_an_answer_waits_as_long_as_its_request_asks_and_those_behind_it_with_it(echo: Running) -> None:
    began = time.monotonic()
    answers = echo.say(b"GET /?a=b&delay=300ms HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert time.monotonic() - began >= 0.3
    assert [text in answers for text in (b'"path":"/?a=b&delay=300ms"', b'"path":"/next"')] == [True, True]


def test_other_clients_are_answered_while_an_answer_waits_and_its_client_may_go(echo: Running) -> None:
    with echo.dial("shop/a") as slow:
        slow.sendall(b"GET /?delay=3s HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        assert b"200 OK" in echo.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert time.monotonic() - began < 2


def test_a_body_comes_back_where_the_request_asks_for_it(echo: Running) -> None:
    body = bytes(range(256)) * 1024
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Meshlab-Echo: body\r\nContent-Length: %d\r\n\r\n" % len(body)
    response_head, _, rest = echo.say(head + body).partition(b"\r\n\r\n")
    assert rest == body
    assert b'X-Meshlab-Answer: {"pod":"shop/a"' in response_head


def test_bytes_of_no_known_kind_come_back_as_they_came(echo: Running) -> None:
    for data in (b"\x00\x01", b"hello\n", b"GE", b"MESHLAB", b"MESHLAB what\nx", b"x" * 300_000):
        assert echo.say(data) == data


def test_a_client_that_does_not_read_is_read_no_further_and_loses_nothing(echo: Running) -> None:
    block = bytes(range(256)) * 4096
    sent = 0
    with echo.dial("shop/a") as sock:
        sock.setblocking(False)
        writable = select.poll()
        writable.register(sock, select.POLLOUT)
        while sent < 96 << 20 and writable.poll(200):
            sent += sock.send(block[sent % 256 :])
        assert sent < 96 << 20, "the echo took everything into its memory"
        sock.settimeout(DEADLINE_S)
        sock.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(_to_the_end(sock)).digest() == hashlib.sha256((block * 96)[:sent]).digest()


def test_a_first_line_asks_for_a_greeting(echo: Running) -> None:
    with echo.dial("shop/a") as sock:
        port = sock.getsockname()[1]
        sock.sendall(b"MESHLAB echo x\nhello")
        expected = b"MESHLAB shop/a %d 127.0.0.1 %d\nMESHLAB echo x\nhello" % (echo.ports["shop/a"], port)
        got = b""
        while len(got) < len(expected):  # our side is still open
            got += sock.recv(65536)
    assert got == expected


def test_half_close_is_answered_after_the_end_and_not_before(echo: Running) -> None:
    with echo.dial("shop/a") as sock:
        sock.sendall(b"MESHLAB half-close x\nhello")
        sock.setblocking(False)
        # A later connection has been served: had there been an answer to the first, it would be here.
        assert echo.say(b"barrier") == b"barrier"
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(DEADLINE_S)
        sock.shutdown(socket.SHUT_WR)
        greeting, _, rest = _to_the_end(sock).partition(b"\n")
    assert greeting.startswith(b"MESHLAB shop/a ")
    assert rest == b"MESHLAB half-close x\nhello"


def test_server_first_greets_a_client_that_says_nothing(echo: Running) -> None:
    with echo.dial("shop/b") as sock:
        assert sock.recv(65536).startswith(b"MESHLAB shop/b %d 127.0.0.1 " % echo.ports["shop/b"])
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(65536) == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("split", [0, 1, 20, 41])
def test_a_canary_is_known_wherever_it_was_and_however_it_was_split(echo: Running, split: int) -> None:
    word = canary(SECRET, 1000 + split)
    data = b"x" * 70_000 + word + b"y"
    cut = 70_000 + split
    with echo.dial("shop/a") as sock:
        sock.sendall(data[:cut])
        received = 0
        while received < cut:  # the echo has read it: what follows is another read
            received += len(sock.recv(65536))
        sock.sendall(data[cut:])
        sock.shutdown(socket.SHUT_WR)
        _to_the_end(sock)
    answer = echo.ask(op="received", canaries=[word.decode(), canary(SECRET, 8).decode()], since_ns=0)
    assert (answer["received"], answer["forgotten_until_ns"]) == ({word.decode(): {"shop/a": 1}}, 0)


def test_bytes_and_connections_are_counted_by_listener_and_client(echo: Running) -> None:
    def rows(since_ns: int) -> list[list[Any]]:
        answer = echo.ask(op="received", canaries=[], since_ns=since_ns)
        return [row for row in answer["connections"] if row[0] == "shop/a"]

    echo.say(b"first")
    began = time.clock_gettime_ns(time.CLOCK_REALTIME)
    echo.say(b"")
    echo.say(b"12345")
    found = rows(began)
    assert {tuple(row[:3]) for row in found} == {("shop/a", echo.ports["shop/a"], "127.0.0.1")}
    assert sorted(row[6] for row in found) == [0, 5]
    assert all(began <= opened <= last for *_, opened, last, _ in found)
    assert len(rows(0)) > len(found)


def test_an_unknown_operation_is_an_error_that_says_the_choices(echo: Running) -> None:
    assert echo.ask(op="dance") == {
        "id": 1,
        "error": "ValueError: no operation 'dance'; there are listen, leave, received",
    }


@pytest.mark.parametrize("how", ["SIGTERM", "end of the control channel"])
def test_it_ends_with_status_0_when_told_also_while_clients_are_connected(how: str) -> None:
    running = _start()
    assert running.say(b"up") == b"up"
    with running.dial("shop/b") as client:
        client.recv(65536)
        if how == "SIGTERM":
            running.process.send_signal(signal.SIGTERM)
        else:
            running.channel.close()
        assert running.process.wait(DEADLINE_S) == 0
        assert client.recv(1) == b""
    running.channel.close()


def test_a_request_that_makes_no_sense_is_answered_with_an_error(echo: Running) -> None:
    assert echo.ask(op="received")["error"] == "KeyError: 'canaries'"
    assert echo.ask(op="received", canaries=[], since_ns=0)["received"] == {}


# --- pods that come and go -------------------------------------------------------------------------------------------


@pytest.fixture(name="changing")
def _changing() -> Iterator[Running]:
    running = _start()
    yield running
    running.channel.close()
    assert running.process.wait(DEADLINE_S) == 0


def test_a_pod_that_comes_is_served_beside_those_that_are_there(changing: Running) -> None:
    with changing.dial("shop/a") as before, _listener() as listener:
        before.sendall(b"of no known kind")
        changing.ports["shop/c"] = listener.getsockname()[1]
        entry = {"pod": "shop/c", "port": changing.ports["shop/c"], "listener": 0, "mode": "server-first"}
        assert changing.ask([listener], op="listen", pods=[entry]) == {"id": 1, "listening": 1}
        assert changing.say(b"", "shop/c").startswith(b"MESHLAB shop/c")
        before.shutdown(socket.SHUT_WR)
        assert _to_the_end(before) == b"of no known kind"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_pod_that_leaves_takes_its_listener_and_its_connections_and_no_others(changing: Running, reset: bool) -> None:
    with changing.dial("shop/a") as left, changing.dial("shop/b") as stays:
        left.sendall(b"bytes of no known kind")
        assert left.recv(100) == b"bytes of no known kind"
        stays.recv(100)
        assert changing.ask(op="leave", pods=["shop/a"], reset=reset) == {"id": 1, "closed": 1}
        if reset:
            with pytest.raises(ConnectionResetError):
                left.recv(1)
        else:
            assert left.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            changing.dial("shop/a")
        stays.sendall(b"still here")
        assert stays.recv(100) == b"still here"
    rows = changing.ask(op="received", canaries=[], since_ns=0)["connections"]
    assert {row[0] for row in rows} == {"shop/a", "shop/b"}, "what it had received is still known"


def test_connections_that_nobody_had_accepted_yet_end_with_their_pod_too(changing: Running) -> None:
    clients = [changing.dial("shop/a") for _ in range(100)]
    answer = changing.ask(op="leave", pods=["shop/a"])
    assert answer["closed"] <= len(clients)
    for client in clients:
        with client, contextlib.suppress(ConnectionResetError):  # of those that were still in the backlog
            assert client.recv(1) == b""


def test_a_pod_can_come_again_on_its_port(changing: Running) -> None:
    assert changing.ask(op="leave", pods=["shop/a"])["closed"] == 0
    with _listener() as listener:
        changing.ports["shop/a"] = listener.getsockname()[1]
        entry = {"pod": "shop/a", "port": changing.ports["shop/a"], "listener": 0}
        assert changing.ask([listener], op="listen", pods=[entry]) == {"id": 1, "listening": 1}
    assert changing.say(b"again") == b"again"


def test_a_listen_or_leave_that_makes_no_sense_is_an_error_that_changes_nothing(changing: Running) -> None:
    fresh = {"pod": "shop/c", "port": 1, "listener": 0}
    with _listener() as listener:
        twice = changing.ask([listener], op="listen", pods=[fresh, fresh])
        assert twice["error"] == "ValueError: the echo would listen twice at shop/c port 1"
        known = {"pod": "shop/a", "port": changing.ports["shop/a"], "listener": 0}
        assert "listen twice at shop/a" in changing.ask([listener], op="listen", pods=[fresh, known])["error"]
        assert changing.ask([], op="listen", pods=[fresh])["error"] == "IndexError: list index out of range"
        assert changing.ask([listener], op="listen", pods=[fresh, {"pod": "shop/d"}])["error"] == "KeyError: 'port'"
        gone = changing.ask(op="leave", pods=["shop/a", "shop/c"])
        assert gone["error"] == "ValueError: the echo does not listen in shop/c"
        assert changing.ask([listener], op="listen", pods=[fresh]) == {"id": 1, "listening": 1}
    assert changing.say(b"still") == b"still"
