"""A call's outcome is read from its bytes, over loopback: against the echo, and against ends that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from meshlab.apps.echo import Echo
from meshlab.kernel.channel import pair
from meshlab.lab.calls.traffic import Request, TrafficLoop, perform, perform_all
from meshlab.model import Call, Outcome
from meshlab.proofs.canary import canary, secret_of

SECRET = secret_of(bytes(range(8)))
BULK = bytes(range(256)) * 1024
DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def traffic() -> Iterator[TrafficLoop]:
    loop = TrafficLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """An echo in a thread: ``echo``, ``server-first`` and ``six`` (on ::1)."""
    ours, theirs = pair()
    listeners = {name: _listen(socket.AF_INET6 if name == "six" else socket.AF_INET) for name in _MODES}
    numbers = {name: sock.getsockname()[1] for name, sock in listeners.items()}
    pods = [
        {"pod": f"shop/{name}", "port": numbers[name], "listener": place, "mode": mode}
        for place, (name, mode) in enumerate(_MODES.items())
    ]
    ours.send({"id": 1, "op": "listen", "pods": pods}, [sock.fileno() for sock in listeners.values()])

    async def serve() -> None:
        await Echo(theirs).run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ours.receive(DEADLINE_S)[0] == {"id": 1, "listening": len(listeners)}
    for sock in listeners.values():
        sock.close()
    yield numbers
    ours.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "the echo outlived its control channel"


_MODES = {"echo": "echo", "server-first": "server-first", "six": "echo"}


def _listen(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    sock.listen(512)
    return sock


def _client(request: Request) -> socket.socket:
    family = socket.AF_INET if request.family == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    return sock


def _request(port: int, **fields: Any) -> Request:
    family = fields.pop("family", 4)
    address = ip_address(fields.pop("address", "127.0.0.1" if family == 4 else "::1"))
    return Request(
        **{"source": "shop/client", "to": f"shop/echo:{port}", "timeout_s": DEADLINE_S, **fields},
        family=family,
        address=address,
        port=port,
    )


def _call(traffic: TrafficLoop, request: Request, number: int = 7) -> Call:
    return traffic.run(perform(_client(request), request, canary(SECRET, number), number), DEADLINE_S)


@contextlib.contextmanager
def _server(script: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port that accepts one connection and does ``script`` with it."""
    listener = _listen()
    listener.settimeout(DEADLINE_S)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            script(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(DEADLINE_S)
        listener.close()


def _answers(answer: bytes, reset: bool = False) -> Callable[[socket.socket], None]:
    """Reads the request, answers, and closes or resets."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)
        if reset:
            _reset(connection)

    return script


def _reset(connection: socket.socket) -> None:
    """Its close will be a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_an_http_call_to_the_echo_is_ok_and_knows_who_answered(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    call = _call(traffic, _request(ports["echo"], path="/hello?x=1", headers={"X-Mine": "yes"}))
    assert (call.outcome, call.status, call.error) == (Outcome.OK, 200, "")
    assert call.peer is not None
    assert (call.peer.pod, call.peer.address, call.peer.port) == ("shop/echo", call.source_ip, call.source_port)
    assert call.peer.headers["x-mine"] == "yes"
    assert call.peer.headers["x-meshlab-canary"] == canary(SECRET, 7).decode()
    assert call.started_ns < call.ended_ns
    assert call.sent_bytes > 100


def test_a_call_over_ipv6_is_ok(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    call = _call(traffic, _request(ports["six"], family=6))
    assert (call.outcome, str(call.source_ip)) == (Outcome.OK, "::1")


@pytest.mark.parametrize("status", [404, 503, 302])
def test_an_answer_that_is_not_2xx_is_a_status_of_a_known_peer(
    traffic: TrafficLoop, ports: dict[str, int], status: int
) -> None:
    call = _call(traffic, _request(ports["echo"], headers={"X-Meshlab-Status": str(status)}))
    assert (call.outcome, call.status) == (Outcome.HTTP_STATUS, status)
    assert call.peer is not None


@pytest.mark.parametrize("body", [b"hello", BULK], ids=["small", "256 KiB"])
def test_a_body_goes_to_the_echo_and_comes_back(traffic: TrafficLoop, ports: dict[str, int], body: bytes) -> None:
    call = _call(traffic, _request(ports["echo"], method="POST", mode="echo-body", body=body))
    assert (call.outcome, call.error) == (Outcome.OK, "")
    assert call.body == body
    assert call.sent_bytes > len(body)


def test_a_body_that_is_not_asked_back_is_known_by_its_hash(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    call = _call(traffic, _request(ports["echo"], method="PUT", body=BULK))
    assert call.outcome is Outcome.OK
    assert b'"bodyBytes":262144' in call.body


@pytest.mark.parametrize("fields", [{"method": "HEAD"}, {"headers": {"X-Meshlab-Status": "204"}}], ids=["HEAD", "204"])
def test_an_answer_without_a_body_says_all_the_same_who_it_is(
    traffic: TrafficLoop, ports: dict[str, int], fields: dict[str, Any]
) -> None:
    call = _call(traffic, _request(ports["echo"], expect_peer=frozenset({"shop/echo"}), **fields))
    assert (call.outcome, call.body) == (Outcome.OK, b"")


@pytest.mark.parametrize("body", [b"", b"hello\n", BULK], ids=["empty", "small", "256 KiB"])
@pytest.mark.parametrize("mode", ["plain", "half-close", "server-first"])
def test_tcp_comes_back_as_it_went(traffic: TrafficLoop, ports: dict[str, int], mode: str, body: bytes) -> None:
    port = ports["server-first" if mode == "server-first" else "echo"]
    call = _call(traffic, _request(port, kind="tcp", mode=mode, body=body))
    assert (call.outcome, call.error) == (Outcome.OK, "")
    assert call.body == body
    assert call.peer is not None
    assert call.peer.port == call.source_port


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_an_answer_of_another_pod_is_a_wrong_backend(traffic: TrafficLoop, ports: dict[str, int], kind: str) -> None:
    right = _call(traffic, _request(ports["echo"], kind=kind, expect_peer=frozenset({"shop/echo", "shop/b"})))
    wrong = _call(traffic, _request(ports["echo"], kind=kind, expect_peer=frozenset({"shop/a", "shop/b"})))
    assert right.outcome is Outcome.OK
    assert (wrong.outcome, wrong.error) == (Outcome.WRONG_BACKEND, "answered by shop/echo, not shop/a or shop/b")


def test_many_calls_at_once_each_get_their_own_answer(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    requests = [_request(ports["echo"], kind=("http", "tcp")[number % 2]) for number in range(64)]
    planned = [(_client(request), request, canary(SECRET, number), number) for number, request in enumerate(requests)]
    calls = traffic.run(perform_all(planned), DEADLINE_S)
    assert [call.number for call in calls] == list(range(64))
    assert {call.outcome for call in calls} == {Outcome.OK}
    assert all(sock.fileno() == -1 for sock, *_ in planned)


def test_nobody_listening_is_refused(traffic: TrafficLoop) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        call = _call(traffic, _request(bound.getsockname()[1]))
    assert (call.outcome, call.sent_bytes, call.error) == (Outcome.CONNECT_REFUSED, 0, "Connection refused")


def test_no_route_is_unreachable(traffic: TrafficLoop) -> None:
    call = _call(traffic, _request(80, address="255.255.255.255"))
    assert (call.outcome, call.error) == (Outcome.UNREACHABLE, "Network is unreachable")


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_accepted_then_fin_is_closed(traffic: TrafficLoop, kind: str) -> None:
    with _server(_answers(b"")) as port:
        call = _call(traffic, _request(port, kind=kind))
    assert (call.outcome, call.body) == (Outcome.CLOSED, b"")
    assert call.sent_bytes > 0


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_accepted_then_rst_is_reset(traffic: TrafficLoop, kind: str) -> None:
    with _server(_reset) as port:
        call = _call(traffic, _request(port, kind=kind))
    assert call.outcome is Outcome.RESET
    assert call.source_port > 0


class _SendsLate(socket.socket):
    """Sends only when the other side has already reset the connection, for which it asks."""

    sending: threading.Event

    def send(self, data: Any, flags: int = 0) -> int:
        self.sending.set()
        poll = select.poll()
        poll.register(self, 0)  # POLLERR and POLLHUP come unasked
        assert poll.poll(DEADLINE_S * 1000)
        return super().send(data, flags)


@pytest.mark.parametrize(("fin_first", "outcome"), [(False, Outcome.RESET), (True, Outcome.CLOSED)])
def test_a_reset_that_is_met_while_sending_counts_as_what_came_first(
    traffic: TrafficLoop, fin_first: bool, outcome: Outcome
) -> None:
    sending = threading.Event()

    def script(connection: socket.socket) -> None:
        assert sending.wait(DEADLINE_S)
        if fin_first:
            connection.shutdown(socket.SHUT_WR)
        _reset(connection)

    with _server(script) as port:
        request = _request(port)
        sock = _SendsLate(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.sending = sending
        sock.setblocking(False)
        call = traffic.run(perform(sock, request, canary(SECRET, 1), 1), DEADLINE_S)
    assert (call.outcome, call.sent_bytes) == (outcome, 0)


class _ShutsLate(_SendsLate):
    """Closes its side only when the other side has already reset the connection."""

    send = socket.socket.send  # type: ignore[assignment]  # at once

    def shutdown(self, how: int) -> None:
        self.sending.set()
        poll = select.poll()
        poll.register(self, 0)
        assert poll.poll(DEADLINE_S * 1000)
        super().shutdown(how)


def test_a_fin_and_a_reset_that_come_before_a_side_is_closed_are_a_close(traffic: TrafficLoop) -> None:
    sending = threading.Event()

    def script(connection: socket.socket) -> None:
        assert sending.wait(DEADLINE_S)
        connection.shutdown(socket.SHUT_WR)
        _reset(connection)

    with _server(script) as port:
        sock = _ShutsLate(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.sending = sending
        sock.setblocking(False)
        request = _request(port, kind="tcp", mode="half-close")
        call = traffic.run(perform(sock, request, canary(SECRET, 1), 1), DEADLINE_S)
    assert call.outcome is Outcome.CLOSED


def test_a_reset_in_the_middle_of_a_large_body_is_a_reset(traffic: TrafficLoop) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(1)
        _reset(connection)

    with _server(script) as port:
        call = _call(traffic, _request(port, method="POST", mode="echo-body", body=BULK * 64))
    assert call.outcome is Outcome.RESET
    assert call.sent_bytes < len(BULK) * 64


def test_an_answer_that_comes_before_all_is_sent_ends_the_call(traffic: TrafficLoop) -> None:
    over = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        over.wait(DEADLINE_S)

    with _server(script) as port:
        call = _call(traffic, _request(port, method="POST", body=BULK * 64, timeout_s=DEADLINE_S / 2))
        over.set()
    assert (call.outcome, call.status) == (Outcome.HTTP_STATUS, 413)
    assert 0 < call.sent_bytes < len(BULK) * 64


def test_closing_before_the_server_greets_is_closed(traffic: TrafficLoop) -> None:
    with _server(lambda connection: None) as port:
        call = _call(traffic, _request(port, kind="tcp", mode="server-first"))
    assert (call.outcome, call.sent_bytes) == (Outcome.CLOSED, 0)


HALF_ANSWERS = {
    "http head": ("http", b"HTTP/1.1 200 OK\r\nContent-"),
    "http body": ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "http chunks": ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    "tcp greeting": ("tcp", b"MESHLAB shop/ech"),
    "tcp echo": ("tcp", b"MESHLAB shop/echo 80 127.0.0.1 1\nMESHLAB echo mlc-"),
}


@pytest.mark.parametrize("after", ["fin", "rst"])
@pytest.mark.parametrize("name", HALF_ANSWERS)
def test_an_answer_that_breaks_off_is_closed_late(traffic: TrafficLoop, name: str, after: str) -> None:
    kind, answer = HALF_ANSWERS[name]
    with _server(_answers(answer, reset=after == "rst")) as port:
        call = _call(traffic, _request(port, kind=kind))
    assert call.outcome is Outcome.CLOSED_LATE


def test_an_answer_that_never_comes_is_a_timeout(traffic: TrafficLoop) -> None:
    over = threading.Event()

    def script(connection: socket.socket) -> None:
        over.wait(DEADLINE_S)

    with _server(script) as port:
        call = _call(traffic, _request(port, timeout_s=0.05))
        over.set()
    assert (call.outcome, call.error) == (Outcome.TIMEOUT, "not over after 0.05 s")
    assert call.source_port > 0


WRONG_ANSWERS = {
    "no http": ("http", b"SSH-2.0-OpenSSH\r\n", Outcome.CORRUPTED),
    "http without the echo": ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Outcome.CORRUPTED),
    "no chunks": ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Outcome.CORRUPTED),
    "tls instead of http": ("http", b"\x15\x03\x03\x00\x02\x02\x28", Outcome.TLS_ALERT),
    "no greeting": ("tcp", b"220 mail\r\n", Outcome.CORRUPTED),
    "other bytes": ("tcp", b"MESHLAB shop/echo 80 127.0.0.1 1\nMESHLAB ECHO", Outcome.CORRUPTED),
    "tls instead of a greeting": ("tcp", b"\x15\x03\x03\x00\x02\x02\x28", Outcome.TLS_ALERT),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_bytes_that_nobody_sent_are_corruption(traffic: TrafficLoop, name: str) -> None:
    kind, answer, outcome = WRONG_ANSWERS[name]
    with _server(_answers(answer)) as port:
        call = _call(traffic, _request(port, kind=kind))
    assert (call.outcome, bool(call.error)) == (outcome, True)


def test_more_bytes_than_were_sent_are_corruption(traffic: TrafficLoop) -> None:
    def script(connection: socket.socket) -> None:
        data = connection.recv(65536)
        connection.sendall(b"MESHLAB shop/echo 80 127.0.0.1 1\n" + data + b"more")

    with _server(script) as port:
        assert _call(traffic, _request(port, kind="tcp")).outcome is Outcome.CORRUPTED


CHANGES = {
    "the answer's body": ("echo-body", b"", b"", b"hello", b"hellO", "byte 4 of 5 came back as 0x4f, not 0x6f"),
    "the request's body": ("plain", b"hello", b"hellO", b"", b"", "the echo saw another body, of 5 bytes"),
    "the request's path": ("plain", b"POST /a", b"POST /b", b"", b"", "the echo saw POST /b"),
    "the request's method": ("plain", b"POST /a", b"PUT /a", b"", b"", "the echo saw PUT /a"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_on_the_way_is_corruption(traffic: TrafficLoop, ports: dict[str, int], what: str) -> None:
    mode, old_request, new_request, old_answer, new_answer, error = CHANGES[what]

    def script(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", ports["echo"]), DEADLINE_S) as echo:
            echo.sendall(connection.recv(65536).replace(old_request, new_request, 1 if old_request else 0))
            answer = bytearray()
            while data := echo.recv(65536):
                answer += data
            connection.sendall(answer.replace(old_answer, new_answer, 1 if old_answer else 0))

    with _server(script) as port:
        call = _call(traffic, _request(port, method="POST", path="/a", mode=mode, body=b"hello"))
    assert (call.outcome, call.error) == (Outcome.CORRUPTED, error)


def test_bytes_behind_the_answer_are_corruption(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    def script(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", ports["echo"]), DEADLINE_S) as echo:
            echo.sendall(connection.recv(65536))
            answer = bytearray()
            while data := echo.recv(65536):
                answer += data
            connection.sendall(answer + b"secret")

    with _server(script) as port:
        call = _call(traffic, _request(port))
    assert (call.outcome, call.error) == (Outcome.CORRUPTED, "6 bytes came behind the answer")


def test_the_answer_to_another_call_is_corruption(traffic: TrafficLoop, ports: dict[str, int]) -> None:
    other = canary(SECRET, 8).decode()
    call = _call(traffic, _request(ports["echo"], headers={"X-Meshlab-Canary": other}))
    assert (call.outcome, call.error) == (Outcome.CORRUPTED, f"the echo saw the canary {other!r}")


OTHER_PROGRAMS = {
    "http by length": ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "http by chunks": ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    "http by its end": ("http", b"HTTP/1.0 200 OK\r\n\r\nhello"),
    "http after 100": ("http", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "tcp": ("tcp", b"hello"),
}


@pytest.mark.parametrize("name", OTHER_PROGRAMS)
def test_a_whole_answer_of_another_program_is_ok(traffic: TrafficLoop, name: str) -> None:
    kind, answer = OTHER_PROGRAMS[name]
    with _server(_answers(answer)) as port:
        call = _call(traffic, _request(port, kind=kind, echo=False))
    assert (call.outcome, call.body) == (Outcome.OK, b"hello")


def test_a_request_that_cannot_be_written_is_the_callers_mistake(traffic: TrafficLoop) -> None:
    request = _request(80, headers={"X": "a\r\nb"})
    sock = _client(request)
    with pytest.raises(ValueError, match="line break"):
        traffic.run(perform(sock, request, canary(SECRET, 1), 1), DEADLINE_S)
    assert sock.fileno() == -1


def test_a_run_that_takes_too_long_is_cancelled_and_closes_its_sockets(traffic: TrafficLoop) -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        closed.set()

    with _server(script) as port:
        request = _request(port)
        sock = _client(request)
        with pytest.raises(TimeoutError):
            traffic.run(perform(sock, request, canary(SECRET, 1), 1), 0.05)
        assert closed.wait(DEADLINE_S)


def test_a_loop_starts_again_after_it_was_closed() -> None:
    async def which() -> str:
        return threading.current_thread().name

    loop = TrafficLoop()
    try:
        assert loop.run(which(), DEADLINE_S) == "meshlab-traffic"
        loop.close()
        assert loop.run(which(), DEADLINE_S) == "meshlab-traffic"
    finally:
        loop.close()


_OWN_WORDS = [
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", Outcome.HTTP_STATUS),
    (b"-ERR unknown command 'GET'\r\n", Outcome.NOT_HTTP),
    (b"J\0\0\0\n8.0.36\0", Outcome.NOT_HTTP),
    (b"\x15\x03\x01\0\x02\x02\x46", Outcome.NOT_HTTP),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", Outcome.CLOSED_LATE),
]


@pytest.mark.parametrize(("words", "outcome"), _OWN_WORDS, ids=["404", "redis", "mysql", "tls", "cut"])
def test_whatever_a_program_of_a_pods_own_says_is_an_answer(
    traffic: TrafficLoop, words: bytes, outcome: Outcome
) -> None:
    with _server(_answers(words)) as port:
        call = _call(traffic, _request(port, echo=False))
    assert (call.outcome, call.answered, call.received_bytes) == (outcome, True, len(words))


@pytest.mark.parametrize("words", [words for words, _ in _OWN_WORDS], ids=["404", "redis", "mysql", "tls", "cut"])
def test_the_same_words_are_no_answer_where_the_echo_should_answer(traffic: TrafficLoop, words: bytes) -> None:
    with _server(_answers(words)) as port:
        assert not _call(traffic, _request(port)).answered


@pytest.mark.parametrize("script", [_reset, _answers(b"")], ids=["reset", "closed"])
def test_a_program_that_says_nothing_has_not_answered(
    traffic: TrafficLoop, script: Callable[[socket.socket], None]
) -> None:
    with _server(script) as port:
        call = _call(traffic, _request(port, echo=False))
    assert (call.answered, call.received_bytes) == (False, 0)
    assert call.outcome in Outcome.REFUSED


def test_a_program_that_has_answered_may_say_its_last_words(traffic: TrafficLoop) -> None:
    """A client that closes at once makes the second of them a broken pipe, of which many programs print a traceback."""
    said: list[bytes] = []

    def greets_and_says_goodbye(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        while connection.recv(65536):
            pass
        for word in (b"221 bye\r\n", b"bye\r\n"):
            connection.sendall(word)
            said.append(word)

    with _server(greets_and_says_goodbye) as port:
        call = _call(traffic, _request(port, echo=False))
    assert call.answered
    assert len(said) == 2


HOSTILE_ANSWERS = {
    "a negative chunk size": b"Transfer-Encoding: chunked\r\n\r\n-6\r\nhello\r\n",
    "a chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a length of 5,000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "more than the echo would say": b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000,
    "JSON that is nested 100,000 deep": b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "half of a surrogate pair": b'Content-Length: 18\r\n\r\n{"canary":"\\ud800"}',
}


@pytest.mark.parametrize("name", HOSTILE_ANSWERS)
def test_an_answer_that_is_meant_to_break_its_reader_is_corruption(traffic: TrafficLoop, name: str) -> None:
    with _server(_answers(b"HTTP/1.1 200 OK\r\n" + HOSTILE_ANSWERS[name])) as port:
        call = _call(traffic, _request(port))
    assert (call.outcome, bool(call.error)) == (Outcome.CORRUPTED, True)
    assert len(call.error) < 300


def test_a_status_of_5000_digits_is_corruption(traffic: TrafficLoop) -> None:
    with _server(_answers(b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n")) as port:
        assert _call(traffic, _request(port)).outcome is Outcome.CORRUPTED


def _endless(beginning: bytes, block: bytes) -> Callable[[socket.socket], None]:
    """Sends until the client is gone."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        with contextlib.suppress(OSError):
            connection.sendall(beginning)
            while True:
                connection.sendall(block)

    return script


ENDLESS_ANSWERS = {
    "a body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10\r\n0123456789abcdef\r\n" * 3000),
    "interim responses": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000),
}


@pytest.mark.parametrize("name", ENDLESS_ANSWERS)
def test_an_answer_without_end_ends_at_the_deadline_and_other_calls_go_on(
    traffic: TrafficLoop, ports: dict[str, int], name: str
) -> None:
    with _server(_endless(*ENDLESS_ANSWERS[name])) as port:
        requests = [_request(port, echo=False, timeout_s=1.0), _request(ports["echo"])]
        planned = [(_client(request), request, canary(SECRET, at), at) for at, request in enumerate(requests)]
        endless, other = traffic.run(perform_all(planned), DEADLINE_S)
    assert (endless.outcome, other.outcome) == (Outcome.TIMEOUT, Outcome.OK)
    assert len(endless.body) <= 1 << 20
    assert endless.body_bytes >= len(endless.body)


def test_of_a_long_answer_the_beginning_is_kept_and_all_is_counted(traffic: TrafficLoop) -> None:
    with _server(_answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)) as port:
        call = _call(traffic, _request(port, echo=False))
    assert (call.outcome, len(call.body), call.body_bytes) == (Outcome.OK, 1 << 20, 3_000_000)


def test_a_half_closed_call_stops_reading_once_there_is_more_than_was_sent(traffic: TrafficLoop) -> None:
    with _server(_endless(b"MESHLAB shop/echo 80 127.0.0.1 1\n", b"x" * 65536)) as port:
        call = _call(traffic, _request(port, kind="tcp", mode="half-close"))
    assert call.outcome is Outcome.CORRUPTED
    assert call.body_bytes < 1 << 20
