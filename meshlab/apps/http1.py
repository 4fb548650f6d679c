"""HTTP/1.1 as a caller needs it, without sockets: h11 reads the answer, and the head of a request is written here.

h11 is strict about what it reads (RFC 9112), takes time that is linear in the number of bytes, retries nothing and
hides nothing: the status is known when the head has come, and the body as far as it has come. A request is not written
by h11, because a test may want to send what h11 would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import h11

from meshlab.apps.bodies import Body

HEAD_BYTES = 64 * 1024
"""The longest head that is read."""
KEPT_BYTES = 1 << 20
"""How much of a body is kept where nothing else is asked for."""

_BEGINNING = b"HTTP/1."
_WORDS = 160


class MalformedError(ValueError):
    """The bytes are not HTTP/1.1."""


class ResponseReader:
    """Takes the bytes of one response until it is whole."""

    def __init__(self, method: str = "GET", keeps: int = KEPT_BYTES) -> None:
        self.status: int | None = None
        """``None`` until the head of the final response has come; 1xx responses are skipped."""
        self.headers: Mapping[str, str] = {}
        """Names are in lower case; values of a repeated name are joined by commas."""
        self.body = Body(keeps)
        self.complete = False
        self._beginning = b""
        self._method = method

    @property
    def started(self) -> bool:
        """Whether a byte has come."""
        return bool(self._beginning)

    @property
    def behind(self) -> int:
        """How many bytes came behind the response, as far as they came with its end."""
        return len(self._connection.trailing_data[0]) if self.complete else 0

    def feed(self, data: bytes) -> None:
        """Take what was received.

        Raises:
            MalformedError: it is no response.
        """
        if len(self._beginning) < len(_BEGINNING):  # bytes of another protocol may never come to the end of a head
            self._beginning += data[: len(_BEGINNING) - len(self._beginning)]
            if not _BEGINNING.startswith(self._beginning):
                raise MalformedError(f"no HTTP: {data[:40]!r}")
        self._read(data)

    def end(self) -> None:
        """Take the end of the connection, which is also how a body without a length ends."""
        try:
            self._read(b"")
        except MalformedError:
            return  # it ended too early, so ``complete`` stays false

    @cached_property
    def _connection(self) -> h11.Connection:
        """Made when the first byte has come: a refused call needs none."""
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        connection.send(_REQUESTS.get(self._method, _GET))
        connection.send(_END)
        return connection

    def _read(self, data: bytes) -> None:
        try:
            self._connection.receive_data(data)
            while not self.complete and self._take(self._connection.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            raise MalformedError(str(error)[:_WORDS]) from error

    def _take(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> bool:
        """Take one event; false if there are no more of them."""
        match event:
            case h11.Response():
                self.status = event.status_code
                self.headers = joined(event.headers)
            case h11.Data():
                self.body.add(event.data)
            case h11.EndOfMessage() | h11.PAUSED:  # paused: after a CONNECT that was granted
                self.complete = True
            case h11.NEED_DATA | h11.ConnectionClosed():
                return False
            case _:
                pass  # an interim response
        return True


def joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as a mapping: names in lower case, values of a repeated name joined by commas."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    return {name.decode("latin-1"): b", ".join(every).decode("latin-1") for name, every in values.items()}


def write_head(start: str, headers: Mapping[str, str]) -> bytes:
    """A head with its empty line.

    Raises:
        ValueError: a name or value holds a line break or a character that a head cannot carry.
    """
    text = "".join([f"{start}\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"])
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ValueError("a header must not hold a line break")
    return text.encode("latin-1")


def _request(method: str) -> h11.Request:
    return h11.Request(method=method, target="/", headers=[("Host", "-")])


_GET = _request("GET")
"""Stands for the request that was sent: of that, only these methods tell how the response is framed."""
_END = h11.EndOfMessage()
_REQUESTS = {method: _request(method) for method in ("HEAD", "CONNECT")}
