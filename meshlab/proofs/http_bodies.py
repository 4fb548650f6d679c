"""Bodies of HTTP/1.1 messages that a search would not read as they stand: sent in chunks, or with a content coding.

    ... HTTP/1.1 ... \\r\\n Transfer-Encoding: chunked \\r\\n\\r\\n  5\\r\\n hello \\r\\n  0\\r\\n
                                                           \\______ place ______/   text: hello

Each byte is looked at a fixed number of times, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_VERSION = b"HTTP/1."
_HEAD_END = b"\r\n\r\n"
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,1024})?\r\n")
_FIELD = re.compile(rb"\r\n(transfer-encoding|content-encoding|content-length):[ \t]*([^\r\n]*)", re.IGNORECASE)
_MOST_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Body:
    """A body as its receiver would put it together, before its content coding is undone."""

    text: bytes
    start: int
    """The body as it was sent is ``data[start:end]``."""
    end: int
    coding: frozenset[str]
    """Of its ``Content-Encoding``, in lower case."""
    chunked: bool
    broken: bool
    """What should be the next chunk's size is none."""
    complete: bool
    """All of it is here."""


def bodies(data: bytes) -> Iterator[Body]:
    """Find every body in the stream that was sent in chunks or with a content coding."""
    at = data.find(_VERSION)
    while at >= 0:
        start = data.find(_HEAD_END, at) + len(_HEAD_END)
        if start < len(_HEAD_END):
            return
        end = start
        body = _body(data, _fields(data, at, start), start)
        if body is not None:
            yield body
            end = body.end
        at = data.find(_VERSION, end)


def _fields(data: bytes, at: int, end: int) -> dict[str, str]:
    """Return the fields that say how the body is sent; they stand at the end of what may be no head at all."""
    found = _FIELD.findall(data, max(at, end - _MOST_HEAD_BYTES), end)
    return {name.decode().lower(): value.decode("latin-1").strip().lower() for name, value in found}


def _body(data: bytes, fields: dict[str, str], start: int) -> Body | None:
    coding = _tokens(fields.get("content-encoding", "")) - {"identity"}
    if "chunked" in _tokens(fields.get("transfer-encoding", "")):
        return _chunked(data, start, coding)
    if not coding:
        return None
    length = fields.get("content-length", "")
    end = start + int(length) if re.fullmatch(r"[0-9]{1,15}", length) else len(data)
    return Body(data[start:end], start, min(end, len(data)), coding, False, False, end <= len(data) and bool(length))


def _tokens(value: str) -> frozenset[str]:
    return frozenset(token.strip() for token in value.split(",") if token.strip())


def _chunked(data: bytes, at: int, coding: frozenset[str]) -> Body:
    start, parts, broken, complete = at, [], False, False
    while at < len(data):
        line = _CHUNK_LINE.match(data, at)
        if line is None:
            broken = b"\n" in data[at : at + 2048] or len(data) - at >= 2048
            break
        size = int(line[1], 16)
        parts.append(data[line.end() : line.end() + size])
        at = min(line.end() + size + 2, len(data))
        if not size:
            complete, at = True, line.end()
            break
        if data[at - 2 : at] != b"\r\n" and line.end() + size + 2 <= len(data):
            broken = True
            break
    return Body(b"".join(parts), start, at, coding, True, broken, complete)
