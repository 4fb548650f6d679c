"""What a list of header fields must be: RFC 9113 8.2 and 8.3, and for CONNECT 8.5. Pure.

A list that is not so is *malformed*: an error of its stream alone, and the connection goes on (RFC 9113 8.1.1).
h2 would end the connection, so it is told not to look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Fields = Sequence[tuple[bytes, bytes]]
Kind = Literal["request", "response", "trailers"]

_NAME = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:@\[\]-]*")
_STATUS = re.compile(rb"[1-5][0-9]{2}")
_OF_A_CONNECTION = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_KNOWN = {
    "request": frozenset({b":method", b":scheme", b":authority", b":path"}),
    "response": frozenset({b":status"}),
    "trailers": frozenset[bytes](),
}


def malformed(fields: Fields, kind: Kind) -> str:
    """Return what is wrong with a list of header fields; empty text if nothing is."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if problem := _field_problem(name, value):
            return problem
        if not name.startswith(b":"):
            regular = True
        elif regular or name in pseudo or name not in _KNOWN[kind]:
            return f"the pseudo-header {_text(name)} is out of place"
        else:
            pseudo[name] = value
    return _pseudo_problem(pseudo, kind)


def _field_problem(name: bytes, value: bytes) -> str:
    if not _NAME.fullmatch(name):
        return f"{_text(name)} is not the name of a field"
    if not _VALUE.fullmatch(value):
        return f"{_text(value)} is not a value for {_text(name)}"
    if name in _OF_A_CONNECTION or (name == b"te" and value != b"trailers"):
        return f"{_text(name)} belongs to HTTP/1.1 connections"
    return ""


def _pseudo_problem(pseudo: dict[bytes, bytes], kind: Kind) -> str:
    if kind == "trailers":
        return ""
    if kind == "response":
        return "" if _STATUS.fullmatch(pseudo.get(b":status", b"")) else "there is no :status of three digits"
    if not _AUTHORITY.fullmatch(pseudo.get(b":authority", b"")):
        return f"{_text(pseudo[b':authority'])} is not an :authority"
    if pseudo.get(b":method") == b"CONNECT":
        wanted = {b":method", b":authority"}
        return "" if pseudo.keys() == wanted else "a CONNECT has :method and :authority, and no other pseudo-header"
    required = all(pseudo.get(name) for name in (b":method", b":scheme", b":path"))
    return "" if required else "a request has :method, :scheme and :path"


def _text(data: bytes) -> str:
    return repr(data.decode("latin-1"))
