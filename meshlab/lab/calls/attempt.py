"""One call, from the client's side: what was sent, what came back, and what that comes to.

An outcome is read from bytes alone: that ``connect`` succeeded means nothing in ambient, where the node proxy accepts
first. So ``Outcome.OK`` says that the right bytes came back.

    connect -> CONNECT_REFUSED, UNREACHABLE
    RST or FIN before a byte -> RESET, CLOSED       after some bytes -> CLOSED_LATE
    bytes that nobody sent -> CORRUPTED, TLS_ALERT  of another pod -> WRONG_BACKEND
    whole, but not 2xx -> HTTP_STATUS               no HTTP, of a program of a pod's own -> NOT_HTTP
                                                    (TIMEOUT is its caller's: the deadline)

From the built-in echo every byte is known. Of another program any byte is an answer (``Call.answered``), and the
connection is then ended as politely as a client can: a RST would make many programs print a traceback.

HTTP is read by h11, which knows no sockets: a whole client library would retry, hide a reset, or end in an exception.
Whatever comes back, a call ends at its deadline and keeps a bounded part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal

from meshlab.apps import language
from meshlab.apps.bodies import Body
from meshlab.apps.http1 import KEPT_BYTES, MalformedError, ResponseReader, write_head
from meshlab.apps.language import Answer
from meshlab.model import Address, Family, Outcome, Peer

_READ_BYTES = 64 * 1024
_SENT_BYTES = 256 * 1024
_SHOWN = 80
_LEAVE_S = 1.0
"""How long a program of a pod's own may take to close a connection that has been answered."""
_TLS_ALERT = b"\x15\x03"
_OUTCOMES = {
    errno.ECONNREFUSED: Outcome.CONNECT_REFUSED,
    errno.ECONNRESET: Outcome.RESET,
    errno.EPIPE: Outcome.CLOSED,  # Linux' word for a RST that came after a FIN
    errno.ETIMEDOUT: Outcome.TIMEOUT,
}


_address = lru_cache(maxsize=1024)(ip_address)
_text = lru_cache(maxsize=1024)(str)
"""An address as text, and back: a lab has few, and to write an IPv6 address takes ten times as long as a lookup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call to make."""

    source: str
    """The calling pod, ``namespace/name``."""
    to: str
    """``namespace/pod:port`` or ``service.namespace:port``."""
    family: Family
    address: Address
    """What is dialled."""
    port: int
    kind: Literal["http", "tcp"] = "http"
    mode: Literal["plain", "echo-body", "half-close", "server-first"] = "plain"
    """HTTP: ``echo-body`` asks for the body back. TCP: ``half-close`` sends, closes its side and is answered
    then; ``server-first`` sends nothing before the listener (in that mode) has greeted."""
    method: str = "GET"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    """They beat what would be sent of itself (Host, Connection, the canary ...)."""
    body: bytes = b""
    timeout_s: float = 5.0
    """From the SYN to the last byte."""
    echo: bool = True
    """Whether the built-in echo is at the other end, so that every byte of the answer is known. Of another program a
    whole 2xx, or any byte at all over TCP, is OK; any byte at all is an answer."""
    is_read: bool = False
    """Whether a waypoint reads it, which may change its path and its headers, and answer by itself."""
    expect_peer: frozenset[str] = frozenset()
    """The pods that may answer; empty: any."""


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended, and in whose words."""

    outcome: Outcome
    error: str = ""


class _EndedError(Exception):
    """Leaves the middle of a call; never this file."""

    def __init__(self, outcome: Outcome, error: str = "") -> None:
        self.end = End(outcome, error)
        super().__init__(error)


@dataclass(slots=True)
class Attempt:
    """A call while it is made: what is known of it so far, also when it is cut off."""

    sock: socket.socket
    """Unconnected and non-blocking."""
    request: Request
    canary: bytes
    sent: int = 0
    local: tuple[Address, int] | None = None
    request_headers: Mapping[str, str] = field(default_factory=dict)
    """All that were sent."""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    body_bytes: int = 0
    peer: Peer | None = None
    _send_error: OSError | None = None
    received: int = 0
    """Bytes."""

    async def run(self) -> End:
        """Make the call; whatever the network does is an ``End``."""
        talk = _Http(self) if self.request.kind == "http" else _Tcp(self)
        try:
            await self._connect()
            return await talk.run()
        except _EndedError as error:
            return error.end

    async def _connect(self) -> None:
        target = (_text(self.request.address), self.request.port)
        code = self.sock.connect_ex(target)
        host, port = self.sock.getsockname()[:2]  # now: after a refusal the kernel has forgotten the port
        self.local = (_address(host), port)
        try:
            if code == errno.EINPROGRESS:
                await asyncio.get_running_loop().sock_connect(self.sock, target)
            elif code:
                raise OSError(code, os.strerror(code))
        except OSError as error:
            raise _EndedError(_OUTCOMES.get(error.errno or 0, Outcome.UNREACHABLE), _words(error)) from error

    async def exchange(self, data: bytes, receiving: Coroutine[None, None, None], half_close: bool = False) -> None:
        """Send while receiving; once the answer is here the rest need not be sent."""
        rest = data[self._send_at_once(data) :]
        if not rest:
            self._sent_all(half_close)
            await receiving
            return
        ended = None
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send(rest, half_close))
            try:
                await receiving
            except _EndedError as error:
                ended = error  # raised here the group would wrap it
            sending.cancel()
        if ended:
            raise ended

    async def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, _READ_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        self.received += len(data)
        if self.received > _READ_BYTES:
            # sock_recv does not wait while there is something to read, and a deadline needs a loop that turns.
            await asyncio.sleep(0)
        return data

    async def take_leave(self) -> None:
        """Close this side and read on until an own program that has answered closes its side, for a moment at most."""
        if self.request.echo or not self.received:
            return
        with contextlib.suppress(OSError, TimeoutError, _EndedError):
            self.sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LEAVE_S):
                while await self.receive():
                    pass

    def keep(self, body: Body) -> None:
        """Note what came back."""
        self.body, self.body_bytes = bytes(body.kept), body.size

    @property
    def keeps(self) -> int:
        """How much of a body is kept; of one that should be the request's own, all that is right."""
        return max(KEPT_BYTES, len(self.request.body))

    def closed(self) -> _EndedError:
        """The answer ended too early. A reset that sending has met is not told again to a read."""
        if self._send_error is not None:
            return self._broken(self._send_error)
        return _EndedError(Outcome.CLOSED_LATE if self.received else Outcome.CLOSED)

    def finish(self) -> End:
        """Every byte is right; was it the right pod's?"""
        allowed = self.request.expect_peer
        if not allowed or (self.peer and self.peer.pod in allowed):
            return End(Outcome.OK)
        who = self.peer.pod if self.peer else "one that does not say its name"
        return End(Outcome.WRONG_BACKEND, f"answered by {who}, not {' or '.join(sorted(allowed))}")

    def _broken(self, error: OSError) -> _EndedError:
        late = Outcome.CLOSED_LATE if self.received else None
        return _EndedError(late or _OUTCOMES.get(error.errno or 0, Outcome.UNREACHABLE), _words(error))

    def _send_at_once(self, data: bytes) -> int:
        """What fits the socket's buffer; mostly that is all."""
        try:
            self.sent = self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._send_error = error
            return len(data)
        return self.sent

    async def _send(self, data: bytes, half_close: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            for at in range(0, len(data), _SENT_BYTES):
                piece = data[at : at + _SENT_BYTES]
                await loop.sock_sendall(self.sock, piece)
                self.sent += len(piece)
        except OSError as error:
            self._send_error = error
        self._sent_all(half_close)

    def _sent_all(self, half_close: bool) -> None:
        if half_close and self._send_error is None:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # a RST came first: the next read says so in its own words
                    self._send_error = error


class _Http:
    """HTTP/1.1, one request a connection."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._request = attempt.request
        attempt.request_headers = self._headers()
        head = write_head(f"{self._request.method} {self._request.path} HTTP/1.1", attempt.request_headers)
        self._payload = head + attempt.request.body
        self._reader = ResponseReader(attempt.request.method, attempt.keeps)

    async def run(self) -> End:
        await self._attempt.exchange(self._payload, self._receive())
        if not self._reader.complete:
            raise self._attempt.closed()
        if self._request.echo and (more := self._reader.behind):
            return End(Outcome.CORRUPTED, f"{more} bytes came behind the answer")
        return self._judge()

    def _headers(self) -> dict[str, str]:
        request = self._request
        address = _text(request.address)
        host = f"[{address}]" if request.family == 6 else address
        own = {
            "Host": f"{host}:{request.port}",
            "Connection": "close",
            language.CANARY_HEADER: self._attempt.canary.decode(),
        }
        if request.body:
            own["Content-Length"] = str(len(request.body))
        if request.mode == "echo-body":
            own[language.ECHO_HEADER] = "body"
        taken = {name.lower() for name in request.headers}
        return {**{name: value for name, value in own.items() if name.lower() not in taken}, **request.headers}

    async def _receive(self) -> None:
        reader, attempt = self._reader, self._attempt
        try:
            while not reader.complete:
                data = await attempt.receive()
                if not data:
                    reader.end()
                    break
                self._feed(data)
                if self._request.echo and not reader.body.is_whole:
                    raise _EndedError(Outcome.CORRUPTED, f"the answer has more than {attempt.keeps} bytes")
        finally:
            attempt.status = reader.status
            attempt.headers = reader.headers
            attempt.keep(reader.body)

    def _feed(self, data: bytes) -> None:
        first = not self._reader.started
        try:
            self._reader.feed(data)
        except MalformedError as error:
            raise _EndedError(self._no_http(data) if first else Outcome.CORRUPTED, str(error)) from error

    def _no_http(self, data: bytes) -> Outcome:
        return _corruption(data) if self._request.echo else Outcome.NOT_HTTP

    def _judge(self) -> End:
        """The whole answer is here. Is it the one that was asked for?"""
        attempt = self._attempt
        answer = self._answer() if self._request.echo else None
        attempt.peer = replace(answer.peer, method=answer.method, path=answer.path) if answer else None
        if attempt.status is None or not 200 <= attempt.status <= 299:
            return End(Outcome.HTTP_STATUS, f"HTTP {attempt.status}")
        if self._request.echo:
            difference = self._difference(answer)
            if difference:
                return End(Outcome.CORRUPTED, difference)
        return attempt.finish()

    def _answer(self) -> Answer | None:
        text = self._attempt.headers.get(language.ANSWER_HEADER.lower(), "").encode() or self._attempt.body
        try:
            return Answer.from_json(text)
        except ValueError:
            return None

    def _difference(self, answer: Answer | None) -> str:
        """What the echo saw that was not sent, or sent that was not asked for."""
        request = self._request
        if answer is None:
            return "the answer is not the echo's"
        if answer.canary.encode() != self._attempt.canary:
            return f"the echo saw the canary {answer.canary[:_SHOWN]!r}"
        if not request.is_read and (answer.method, answer.path) != (request.method, request.path):
            return f"the echo saw {answer.method[:_SHOWN]} {answer.path[:_SHOWN]}"
        if answer.body_sha256 != hashlib.sha256(request.body).hexdigest():
            return f"the echo saw another body, of {answer.body_bytes} bytes"
        if request.mode == "echo-body" and self._attempt.body != request.body:
            return first_difference(self._attempt.body, request.body)
        return ""


class _Tcp:
    """Bytes that come back as they went, behind a first line that says who sends them back."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._request = attempt.request
        self._half_close = attempt.request.mode == "half-close"
        mode = language.HALF_CLOSE if self._half_close else language.ECHO
        self._payload = language.opening(mode, attempt.canary) + attempt.request.body
        self._got = Body(attempt.keeps + len(self._payload) + language.LINE_BYTES)

    async def run(self) -> End:
        if self._request.mode == "server-first":
            await self._receive_greeting()
        await self._attempt.exchange(self._payload, self._receive(), self._half_close)
        if not self._got.size:
            raise self._attempt.closed()
        return self._judge_echo() if self._request.echo else self._attempt.finish()

    async def _receive_greeting(self) -> None:
        """Wait for the server's first line."""
        got = self._got.kept
        while b"\n" not in got and len(got) < language.LINE_BYTES:
            data = await self._attempt.receive()
            if not data:
                raise self._attempt.closed()
            self._got.add(data)

    async def _receive(self) -> None:
        try:
            while not self._enough():
                data = await self._attempt.receive()
                if not data:
                    break
                self._got.add(data)
        finally:
            self._attempt.keep(self._got)

    def _enough(self) -> bool:
        if not self._request.echo:
            return bool(self._got.size) and not self._half_close
        if self._half_close:  # then the end is awaited, unless there is more than can be right
            return self._got.size > language.LINE_BYTES + len(self._payload)
        got = self._got.kept
        line = got.find(b"\n", 0, language.LINE_BYTES)
        if line < 0:
            return len(got) >= language.LINE_BYTES
        return len(got) - line - 1 >= len(self._payload)

    def _judge_echo(self) -> End:
        attempt, got = self._attempt, bytes(self._got.kept)
        line, newline, rest = got.partition(b"\n")
        attempt.peer = language.read_greeting(line) if newline else None
        if attempt.peer is None and (newline or not language.may_greet(got)):
            return End(_corruption(got), f"no greeting: {got[:40]!r}")
        if not self._payload.startswith(rest):
            return End(Outcome.CORRUPTED, first_difference(rest, self._payload))
        if len(rest) < len(self._payload):
            raise attempt.closed()
        attempt.body = self._request.body
        attempt.body_bytes = len(attempt.body)
        return attempt.finish()


def _corruption(first_bytes: bytes) -> Outcome:
    return Outcome.TLS_ALERT if first_bytes.startswith(_TLS_ALERT) else Outcome.CORRUPTED


def first_difference(got: bytes, expected: bytes) -> str:
    at = next((at for at, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"{len(got)} bytes came back of {len(expected)}"
    return f"byte {at} of {len(expected)} came back as {got[at]:#04x}, not {expected[at]:#04x}"


def _words(error: OSError) -> str:
    return error.strerror or str(error)
