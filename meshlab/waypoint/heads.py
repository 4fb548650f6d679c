"""Heads of HTTP/1.1 messages, between h11 and the words of the oracle. Pure.

What concerns one connection only is not passed on: the headers of that kind, and how a body is framed, which is said
anew. An ``Upgrade`` to WebSocket is the exception.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import TypeVar

import h11

from meshlab.model import HeaderEdits, HttpRequest
from meshlab.oracle import tcp
from meshlab.oracle.http import Answered, Share

Headers = tuple[tuple[str, str], ...]

_Share = TypeVar("_Share", Share, tcp.Share)
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_BODILESS = (204, 304)
_TEXTS = {403: "RBAC: access denied", 503: "no healthy upstream", 504: "upstream request timeout"}
"""What Envoy says."""
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def draw(shares: Sequence[_Share], rng: random.Random) -> _Share:
    """One of them, by their chances."""
    return rng.choices(shares, [float(share.chance) for share in shares])[0]


# --- requests --------------------------------------------------------------------------------------------------------


def request_of(event: h11.Request) -> HttpRequest:
    """The request, as policies and routes see it.

    The host of an absolute target counts more than the ``Host`` header, see
    https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2.
    """
    headers, path = _pairs(event.headers), event.target.decode("latin-1")
    authority = next((value for name, value in headers if name == "host"), "")
    scheme, mark, rest = path.partition("://")
    if mark and scheme.lower() in ("http", "https"):
        authority, slash, path = rest.partition("/")
        path = slash + path or "/"
    return HttpRequest(
        method=event.method.decode("ascii"),
        path=path,
        authority=authority,
        headers=tuple(pair for pair in headers if pair[0] != "host"),
    )


def request_head(request: HttpRequest, framing: Headers = ()) -> h11.Request:
    """What is sent on."""
    headers = (("host", request.authority), *_end_to_end(request.headers), *framing, *_upgrade(request.headers))
    return h11.Request(method=request.method, target=request.path.encode("latin-1"), headers=_encoded(headers))


def copy_head(request: HttpRequest, framing: Headers = ()) -> h11.Request:
    """What a mirror gets: the host ends in ``-shadow``, as Envoy has it, and no other protocol is asked for."""
    host, colon, port = request.authority.rpartition(":")
    named = f"{host}-shadow:{port}" if colon and port.isdigit() else f"{request.authority}-shadow"
    headers = (("host", named), *_end_to_end(request.headers), *framing)
    return h11.Request(method=request.method, target=request.path.encode("latin-1"), headers=_encoded(headers))


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_head(event: h11.Response, edits: Iterable[HeaderEdits] = ()) -> h11.Response:
    """The answer of a server, as it is passed on."""
    headers = _edited(_end_to_end(_pairs(event.headers)), edits)
    return _response(event.status_code, (*headers, *framing_of(event)), event.reason)


def interim_head(event: h11.InformationalResponse) -> h11.InformationalResponse:
    """A 1xx answer of a server, as it is passed on."""
    headers = _pairs(event.headers)
    kept = (*_end_to_end(headers), *(_upgrade(headers) if event.status_code == 101 else ()))
    return h11.InformationalResponse(status_code=event.status_code, headers=_encoded(kept), reason=event.reason)


def own_answer(answered: Answered, method: str, edits: Iterable[HeaderEdits] = ()) -> tuple[h11.Response, bytes]:
    """An answer of the waypoint's own: its head, and the body that follows it to a request of ``method``."""
    said = answered.bad_token or _TEXTS.get(answered.status, "")
    text = (said if answered.body is None else answered.body).encode()
    headers: Headers = (("content-type", "text/plain"),) if text else ()
    if answered.location:
        headers += (("location", answered.location),)
    if answered.bad_token:
        headers += (("www-authenticate", 'Bearer error="invalid_token"'),)
    framing = () if answered.status in _BODILESS else (("content-length", str(len(text))),)
    head = _response(answered.status, (*_edited(headers, edits), *framing), _PHRASES.get(answered.status, "").encode())
    return head, b"" if method == "HEAD" or answered.status in _BODILESS else text


# --- headers ---------------------------------------------------------------------------------------------------------


def framing_of(event: h11.Request | h11.Response) -> Headers:
    """The header by which a body says where it ends; chunks count more than a length."""
    headers = dict(_pairs(event.headers))
    if "transfer-encoding" in headers:
        return (("transfer-encoding", "chunked"),)
    return (("content-length", headers["content-length"]),) if "content-length" in headers else ()


def _end_to_end(headers: Headers) -> Headers:
    dropped = _HOP_BY_HOP | {"content-length"} | _named(headers, "connection")
    return tuple(pair for pair in headers if pair[0] not in dropped)


def _upgrade(headers: Headers) -> Headers:
    """The headers that ask for WebSocket, or agree to it. Other upgrades would carry requests that nobody judges."""
    if "upgrade" in _named(headers, "connection") and _named(headers, "upgrade") == {"websocket"}:
        return (("connection", "upgrade"), ("upgrade", "websocket"))
    return ()


def _named(headers: Headers, name: str) -> set[str]:
    values = ",".join(value for key, value in headers if key == name)
    return {part.strip().lower() for part in values.split(",")} - {""}


def _edited(headers: Headers, every: Iterable[HeaderEdits]) -> Headers:
    """What is removed goes first. What concerns one connection only stays as it is."""
    for edits in every:
        replaced = {*edits.remove, *(name for name, _ in edits.set)}
        headers = (*(pair for pair in headers if pair[0] not in replaced), *edits.set, *edits.add)
    return _end_to_end(headers)


def _response(status: int, headers: Headers, reason: bytes) -> h11.Response:
    return h11.Response(status_code=status, headers=_encoded(headers), reason=reason)


def _pairs(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
