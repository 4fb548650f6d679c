"""Routes at a waypoint, as HTTPRoute, TCPRoute and VirtualService give them, and requests. Manifests only: what a
request or a connection comes to is the oracle's business.

All kinds come to one form. They differ in what is left out of it: of an HTTPRoute's rules the most specific match
wins, of a VirtualService's the first.

Source: https://gateway-api.sigs.k8s.io/reference/spec/#httproute, https://gateway-api.sigs.k8s.io/reference/spec/#tcproute
and https://istio.io/latest/docs/reference/config/networking/virtual-service/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from meshlab.model.workload import Labels

Matching = Literal["exact", "prefix", "segments", "regex"]
"""``prefix`` is one of characters; ``segments`` one of whole path segments, as PathPrefix of an HTTPRoute; ``regex``
is RE2's syntax, and has to match the whole text."""
RouteKind = Literal["HTTPRoute", "TCPRoute", "VirtualService"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """An HTTP request, as far as a proxy can tell one from another."""

    method: str = "GET"
    path: str = "/"
    """With its query, if it has one."""
    authority: str = ""
    """``Host`` or ``:authority``."""
    headers: Pairs = ()
    """Names in lower case, without ``host``."""
    takes_s: float = 0.0
    """How long the server takes to answer it, where the caller knows that."""


NO_HTTP = HttpRequest(method="")
"""Bytes that are no request."""


@dataclass(frozen=True, slots=True)
class StringMatch:
    how: Matching
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class NamedMatch:
    """A match of one header, or of one parameter of the query."""

    name: str
    """Of a header: in lower case."""
    value: StringMatch | None
    """``None``: it has to be there, with any value."""
    inverted: bool = False
    """Whether it must not match (``withoutHeaders``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMatch:
    """All of its parts have to match; one without parts matches every request."""

    path: StringMatch | None = None
    """Without the query."""
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: tuple[NamedMatch, ...] = ()
    query: tuple[NamedMatch, ...] = ()
    port: int | None = None
    """Of the Service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    """What is done to headers; names in lower case. ``host`` and ``:authority`` stand for the authority."""

    set: Pairs = ()
    add: Pairs = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where a share of the requests, or of the connections, goes."""

    service: str
    """``name.namespace``; it need not be there."""
    port: int
    """Of that Service. 0: its only port; where it has several, the port that was called."""
    subset: str = ""
    """Of the DestinationRule for that Service; empty: all its endpoints."""
    weight: int = 1
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where copies of requests go; their answers are dropped."""

    backend: Backend
    percent: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    status: int
    percent: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    seconds: float
    percent: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """``path`` and ``prefix`` exclude each other."""

    path: str | None = None
    """Of the whole path; the query stays."""
    prefix: str | None = None
    """What stands in the place of the prefix that matched; where no path was asked for, ``/`` matched."""
    authority: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """The answer that sends the client elsewhere. What is ``None`` stays as the request has it."""

    status: int
    scheme: str | None = None
    authority: str | None = None
    port: int | None = None
    path: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResponse:
    status: int
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRule:
    """What becomes of the requests that one of ``matches`` matches."""

    name: str = ""
    matches: tuple[RequestMatch, ...] = ()
    """Empty: every request."""
    backends: tuple[Backend, ...] = ()
    redirect: Redirect | None = None
    direct_response: DirectResponse | None = None
    """At most one of these three is given."""
    mirrors: tuple[Mirror, ...] = ()
    """Of the requests that are sent on; each strikes by itself."""
    rewrite: Rewrite | None = None
    abort: Abort | None = None
    delay: Delay | None = None
    timeout_s: float | None = None
    """Of the request as a whole, from when it is sent on: a delay comes before; ``None``: none."""
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpRule:
    """Where connections go whose bytes a waypoint does not read."""

    ports: tuple[int, ...] = ()
    """Of the Service; empty: every port."""
    backends: tuple[Backend, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An HTTPRoute, a TCPRoute or a VirtualService."""

    kind: RouteKind
    name: str
    namespace: str
    services: tuple[tuple[str, int | None], ...]
    """For which Services it is, ``name.namespace``, and for which port of each (``None``: all)."""
    rules: tuple[HttpRule, ...] = ()
    """For the ports that speak HTTP."""
    tcp: tuple[TcpRule, ...] = ()
    """For the other ports; the first one that has the port counts."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule:
    """The subsets of a Service."""

    name: str
    namespace: str
    service: str
    """``name.namespace``."""
    subsets: dict[str, Labels] = field(default_factory=dict)
    """Name -> labels of its pods."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"
