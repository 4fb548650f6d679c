"""What a waypoint sees of a request, and whether a match of a route or a policy matches it.

A path is normalised before anything looks at it, as Istio's waypoint does by default (``BASE``): dot segments go,
backslashes become slashes, and characters that need no escape lose it. Slashes are not merged. What a client says of
its own certificate (``x-forwarded-client-cert``) is taken away.

    /a/./b/../c\\d?x=1 -> /a/c/d?x=1        /%61%2Fb -> /a%2Fb

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization
and https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from urllib.parse import parse_qsl

from meshlab.model import HttpRequest, NamedMatch, RequestMatch, StringMatch

CLIENT_CERTIFICATE = "x-forwarded-client-cert"
_ESCAPED = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SEGMENT = r"[^/]+"


def normalised(request: HttpRequest) -> HttpRequest:
    """The request as a waypoint takes it."""
    request = replace(request, headers=tuple(pair for pair in request.headers if pair[0] != CLIENT_CERTIFICATE))
    path, mark, query = request.path.partition("?")
    if not path.startswith("/"):
        return request  # the asterisk of OPTIONS
    path = _ESCAPED.sub(_unescaped, path).replace("\\", "/")
    return replace(request, path=_without_dots(path) + mark + query)


def path_of(request: HttpRequest) -> str:
    """The path without the query."""
    return request.path.partition("?")[0]


def query_of(request: HttpRequest, name: str) -> str | None:
    """The first value of a parameter, or ``None`` where it is not there."""
    pairs = parse_qsl(request.path.partition("?")[2], keep_blank_values=True)
    return next((value for key, value in pairs if key == name), None)


def header_values(request: HttpRequest, name: str) -> list[str]:
    """The values of a header, each as it was sent: Envoy 1.40 matches them one by one, and does not join them."""
    special = {":authority": request.authority, "host": request.authority, ":method": request.method}
    if name in special:
        return [special[name]]
    if name == ":path":
        return [request.path]
    return [value for key, value in request.headers if key == name]


def matches(match: RequestMatch, request: HttpRequest, port: int) -> bool:
    """Whether all parts of ``match`` match a normalised request that came to ``port`` of a Service."""
    return (
        (match.port is None or match.port == port)
        and _is(match.path, path_of(request))
        and _is(match.method, request.method)
        and _is(match.authority, request.authority)
        and all(_is_named(each, header_values(request, each.name)) for each in match.headers)
        and all(_is_named(each, [query_of(request, each.name)]) for each in match.query)
    )


def _is_named(wanted: NamedMatch, texts: Sequence[str | None]) -> bool:
    """Whether any of them matches; that none does, where the match is inverted."""
    return any(text is not None and _is(wanted.value, text) for text in texts) is not wanted.inverted


def _is(wanted: StringMatch | None, text: str) -> bool:
    if wanted is None:
        return True
    value = wanted.value
    if wanted.ignore_case:
        value, text = value.lower(), text.lower()
    match wanted.how:
        case "exact":
            return text == value
        case "prefix":
            return text.startswith(value)
        case "segments":
            whole = value.rstrip("/")
            return text == whole or text.startswith(f"{whole}/")
        case "regex":
            return re.fullmatch(value, text) is not None


def is_like_path(path: str, pattern: str) -> bool:
    """Whether a path is what a policy asks for: exact, ``prefix*``, ``*suffix``, ``*``, or a template.

    In a template ``{*}`` is one segment and ``{**}`` none or more.

    Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation
    """
    if "{*}" in pattern or "{**}" in pattern:
        return _template(pattern).fullmatch(path) is not None
    if pattern == "*":
        return path != ""
    if pattern.startswith("*"):
        return path.endswith(pattern[1:])
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern


@lru_cache(maxsize=256)
def _template(pattern: str) -> re.Pattern[str]:
    known = {"{*}": _SEGMENT, "{**}": ".*"}
    return re.compile("/".join(known.get(part, re.escape(part)) for part in pattern.split("/")), re.DOTALL)


def _unescaped(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0]


def _without_dots(path: str) -> str:
    """Source: https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4"""
    kept: list[str] = []
    parts = path[1:].split("/")
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "..":
            if kept:
                kept.pop()
        elif part != ".":
            kept.append(part)
            continue
        if last:
            kept.append("")
    return "/" + "/".join(kept)
