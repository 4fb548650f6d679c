"""Forms in which a canary may leak, as a sender writes them."""

from __future__ import annotations

import base64
import zlib


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


def lines(data: bytes, width: int, end: bytes) -> bytes:
    """In base64, with a line break after each ``width`` characters."""
    text = base64.b64encode(data)
    return end.join(text[at : at + width] for at in range(0, len(text), width))


def chunked(data: bytes, size: int, *, head: bytes = b"") -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\n" + head + b"transfer-encoding: Chunked\r\n\r\n" + body + b"0\r\n\r\n"


def deflated(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
