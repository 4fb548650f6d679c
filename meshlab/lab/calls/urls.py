"""What the URL or the address of a call says, and nothing of which pods there are. Pure.

    http://HOST[:PORT][/PATH][?QUERY]      as RFC 3986 reads it; port 80 where there is none
    HOST:PORT                              of a TCP call

An IPv6 address stands in brackets. A pod's name has a slash, ``shop/server``, which no host of a URL may have: it is
written ``http://shop%2Fserver:8080/``, or as it is where that can mean nothing else (``names.read_url``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import unquote, urlsplit

from meshlab.errors import UsageError

_PRINTABLE = re.compile(r"[!-~]+")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]*))?")
_WITH_POD = re.compile(r"http://([a-z0-9.-]+/[a-z0-9.-]+):([0-9]+)([/?#].*)?")
_HIGHEST_PORT = 65535
_HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class Url:
    """Where a call goes, as it was written."""

    host: str
    """A name, ``namespace/pod`` or an address without brackets."""
    port: int
    path: str = "/"
    """With the query."""

    @property
    def own_headers(self) -> dict[str, str]:
        """``Host`` as a client that called by a name sends it; nothing where a pod or an address is called."""
        if "/" in self.host or ":" in self.host or self.host.replace(".", "").isdigit():
            return {}
        return {"Host": self.host if self.port == _HTTP_PORT else f"{self.host}:{self.port}"}


def parse(text: str) -> Url:
    """Read a URL as RFC 3986 does. Its fragment is left out: no client sends one.

    Raises:
        UsageError: it is no URL of the lab; the message says why.
    """
    if not _PRINTABLE.fullmatch(text):
        raise UsageError(f"{text!r} is no URL: percent-encode what is not printable ASCII, a blank as %20")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no URL: {error}") from None
    if parts.scheme != "http" or not parts.netloc:
        raise UsageError(f"'{text}' is no URL of the form http://HOST:PORT/PATH (the mesh does the TLS)")
    if "@" in parts.netloc:
        raise UsageError(f"'{text}' names a user, which no call of a lab has: send an Authorization header")
    host, port = _authority(text, parts.netloc)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(host, 80 if port is None else port, path)


def with_pod(text: str) -> tuple[str, str] | None:
    """The pod in ``http://shop/server:8080/x``, and the URL that can mean nothing else; ``None`` for another form."""
    match = _WITH_POD.fullmatch(text)
    if match is None:
        return None
    return match[1], f"http://{match[1].replace('/', '%2F')}:{match[2]}{match[3] or ''}"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Raises:
        UsageError: it has another form.
    """
    host, port = _authority(text, text)
    if port is None:
        raise UsageError(f"'{text}' is not HOST:PORT")
    return host, port


def _authority(text: str, authority: str) -> tuple[str, int | None]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise UsageError(f"'{text}' is not HOST:PORT; an IPv6 address stands in brackets: [fd00::1]:8080")
    host, port = match[1], match[2]
    if host.startswith("["):
        host = _bracketed(text, host[1:-1])
    return unquote(host).lower(), _port(text, port) if port else None


def _bracketed(text: str, host: str) -> str:
    if "%" in host:
        raise UsageError(f"'{text}': a zone means nothing in a lab; pods have addresses without one")
    try:
        return str(IPv6Address(host))
    except ValueError:
        raise UsageError(f"'{text}': '{host}' in brackets is no IPv6 address") from None


def _port(text: str, digits: str) -> int:
    number = int(digits) if len(digits) <= len(str(_HIGHEST_PORT)) else 0
    if not 1 <= number <= _HIGHEST_PORT:
        raise UsageError(f"'{text}': the port must be 1 to {_HIGHEST_PORT}, not {digits[:20]}")
    return number
