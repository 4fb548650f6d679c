"""As much HTTP/1.1 as the echo and its callers need, without sockets: heads, and bodies by length or chunks.

Source: RFC 9112
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HEAD_BYTES = 64 * 1024
"""The longest head that is read."""


class MalformedError(ValueError):
    """The bytes are not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Head:
    """A start line and its headers."""

    start: tuple[str, str, str]
    headers: Mapping[str, str]
    """Names in lower case; values of a repeated name are joined by commas."""
    size: int
    """Bytes on the wire, with the empty line."""

    @property
    def length(self) -> int | None:
        """Content-Length.

        Raises:
            MalformedError: it is no number.
        """
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise MalformedError(f"Content-Length: {text!r}")
        return int(text)

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower().endswith("chunked")


def read_head(data: bytes | bytearray) -> Head | None:
    """The head at the start of ``data``; ``None`` while it is not whole.

    Raises:
        MalformedError: it is none, or too long.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES)
    if end < 0:
        if len(data) >= HEAD_BYTES:
            raise MalformedError(f"no end of the head within {HEAD_BYTES} bytes")
        return None
    start, *lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    words = start.split(" ", 2)
    if len(words) < 2:
        raise MalformedError(f"start line {start[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise MalformedError(f"header line {line[:80]!r}")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return Head((words[0], words[1], words[2] if len(words) > 2 else ""), headers, end + 4)


def write_head(start: str, headers: Mapping[str, str]) -> bytes:
    """A head with its empty line.

    Raises:
        ValueError: a name or value holds a line break or a character that a head cannot carry.
    """
    text = "".join([f"{start}\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"])
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ValueError("a header must not hold a line break")
    return text.encode("latin-1")


def read_chunks(data: bytes | bytearray) -> bytes | None:
    """The body that is in chunks in ``data``; ``None`` while it is not whole.

    Raises:
        MalformedError: it is not in chunks.
    """
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        try:
            size = int(bytes(data[at:end]).partition(b";")[0], 16)
        except ValueError as error:
            raise MalformedError(f"chunk size {bytes(data[at:end])[:20]!r}") from error
        at = end + 2
        if size == 0:
            return b"".join(parts) if data.find(b"\r\n", at) >= 0 else None
        if len(data) < at + size + 2:
            return None
        parts.append(bytes(data[at : at + size]))
        at += size + 2


@dataclass(slots=True)
class ResponseReader:
    """Takes the bytes of one response until it is whole."""

    bodiless: bool = False
    """The request was a HEAD."""
    head: Head | None = None
    body: bytes = b""
    complete: bool = False
    _buffer: bytearray = field(default_factory=bytearray)

    @property
    def started(self) -> bool:
        """Whether a byte has come."""
        return self.head is not None or bool(self._buffer)

    @property
    def status(self) -> int | None:
        return int(self.head.start[1]) if self.head else None

    def feed(self, data: bytes) -> None:
        """Take what was received.

        Raises:
            MalformedError: it is no response.
        """
        self._buffer += data
        while self.head is None:
            if not b"HTTP/1.".startswith(self._buffer[:7]):
                raise MalformedError(f"no HTTP: {bytes(self._buffer[:40])!r}")
            head = read_head(self._buffer)
            if head is None:
                return
            if not (head.start[1].isascii() and head.start[1].isdigit()):
                raise MalformedError(f"status {head.start[1]!r}")
            del self._buffer[: head.size]
            if not head.start[1].startswith("1"):  # 1xx: the answer proper follows
                self.head = head
        self._take_body(self.head)

    def end(self) -> None:
        """The connection ended, which is also how a body without length ends."""
        if self.head and not self.complete and not self.head.chunked and self.head.length is None:
            self.body = bytes(self._buffer)
            self.complete = True

    @property
    def partial(self) -> bytes:
        """What there is of a body that is not whole."""
        return bytes(self._buffer)

    def _take_body(self, head: Head) -> None:
        whole: bytes | None
        if self.bodiless or head.start[1] in {"204", "304"}:
            whole = b""
        elif head.chunked:
            whole = read_chunks(self._buffer) if self._buffer.endswith(b"\r\n") else None
        elif head.length is not None and len(self._buffer) >= head.length:
            whole = bytes(self._buffer[: head.length])
        else:
            whole = None
        if whole is not None:
            self.body = whole
            self.complete = True
