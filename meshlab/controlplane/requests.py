"""The requests that a control plane answers, and their answers (see ``kernel.messages``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, final

from meshlab.kernel.messages import Op, by_name

Resources = Mapping[str, Mapping[str, str]]
"""Type URL -> name -> base64 of the resource."""


class NackSpoken(TypedDict):
    """``xds_server.Nack``: a client refused a response."""

    client: str
    node: str
    type_url: str
    version: str
    detail: str


class LagSpoken(TypedDict):
    """``xds_server.Lag``: what a client has not acknowledged."""

    client: str
    node: str
    type_url: str
    version: str


@final
class Acknowledged(TypedDict):
    """The push is in effect."""

    acknowledged: dict[str, dict[str, str]]
    """Client -> type -> version."""


@final
class Late(TypedDict):
    """It is not in effect at the deadline, and is served all the same."""

    timeout: list[LagSpoken]
    """Who lacks which type."""
    certificates: list[str]
    """Identities that have none yet."""


@final
class Superseded(TypedDict):
    """Another push replaced it before it was in effect."""

    superseded: bool


@final
class Refused(TypedDict):
    """A client has refused it."""

    nack: NackSpoken
    went_back: bool
    behind: list[LagSpoken]
    """Who may still serve what was refused."""


Pushed = Acknowledged | Late | Superseded | Refused
"""What became of a push."""


class StreamStatus(TypedDict):
    client: str
    node: str
    acknowledged: dict[str, str]
    """Type -> version."""


class Status(TypedDict):
    clients: list[str]
    streams: list[StreamStatus]
    versions: dict[str, str]
    issued: dict[str, int]
    unexpected: list[NackSpoken]
    """NACKs that no push was waiting for."""
    shared_keys: list[str]


class StreamsEnded(TypedDict):
    ended: list[str]
    """Clients whose tokens were taken away."""


class CaMode(TypedDict):
    mode: str


class Push(NamedTuple):
    """Replace all that is served."""

    resources: Resources
    """What a node proxy sees."""
    views: Mapping[str, Resources] = {}
    """By the first generation of an instance: what one sees that is no node proxy."""
    barrier: Sequence[str] = ()
    """Clients that are waited for."""
    certificates: Sequence[str] = ()
    """Identities that are waited for, until each has a certificate."""
    timeout_s: float = 5
    after_nack: str = "resend"
    """``resend`` what was in effect before, or ``leave`` what was refused."""
    fallback: Resources | None = None
    """What counts as acknowledged before: a control plane that has just started knows of nothing."""
    fallback_views: Mapping[str, Resources] = {}
    op: Op[Pushed] = Op("set")


class ReadStatus(NamedTuple):
    op: Op[Status] = Op("status")


class SetClients(NamedTuple):
    clients: Mapping[str, str]
    """Bearer token -> the instance whose it is."""
    op: Op[StreamsEnded] = Op("clients")


class SetCa(NamedTuple):
    mode: str | None = None
    """``ok`` or ``refuse``; None leaves it as it is."""
    ca: Mapping[str, str] | None = None
    """Another issuer; None leaves it as it is."""
    op: Op[CaMode] = Op("ca")


PlaneRequest = Push | ReadStatus | SetClients | SetCa
REQUESTS: dict[str, type[PlaneRequest]] = by_name(PlaneRequest)
