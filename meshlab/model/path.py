"""The path of a call, leg by leg, and what should come of the call.

Direct ambient is one leg. Through a waypoint a path has two: from the client to the waypoint, from there to the server.

    shop/client --hbone--> shop/server
    shop/client --hbone--> shop/gate --hbone--> shop/server
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from meshlab.model.connection import Connection
from meshlab.model.route import HeaderEdits, HttpRequest
from meshlab.model.topology import Verdict

Carried = Literal["hbone", "plain"]
"""How the bytes of a leg travel: in mutual TLS within HBONE, or as the application sent them."""


@dataclass(frozen=True, slots=True)
class PodPort:
    """A port of a pod."""

    pod: str
    """``namespace/name``"""
    port: int


@dataclass(frozen=True, slots=True)
class Leg:
    """From one end to the next."""

    source: str
    """The pod that it starts at, ``namespace/name``."""
    destination: str
    """The pod that it ends at."""
    port: int
    """What is asked for there: the application's port. Over HBONE the packets themselves go to 15008."""
    carried: Carried


@dataclass(frozen=True, slots=True)
class Path:
    """The legs of a call, in the order in which its bytes pass them."""

    legs: tuple[Leg, ...]
    """One at least; each starts where the one before ends."""

    @property
    def server(self) -> PodPort:
        """Where the path ends."""
        last = self.legs[-1]
        return PodPort(last.destination, last.port)

    @property
    def is_hbone(self) -> bool:
        """Whether every leg is carried by HBONE."""
        return all(leg.carried == "hbone" for leg in self.legs)

    @property
    def leaves_its_pod(self) -> bool:
        """Whether a leg goes from one pod to another: a path that stays within a pod crosses no link."""
        return any(leg.source != leg.destination for leg in self.legs)

    def __str__(self) -> str:
        return " -> ".join((self.legs[0].source, *(leg.destination for leg in self.legs)))


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection is refused, or ends without a byte of an answer."""


@dataclass(frozen=True, slots=True)
class Reaches:
    """The call arrives at a pod, which answers."""

    pod: str


@dataclass(frozen=True, slots=True)
class Status:
    """A waypoint answers by itself, with this status."""

    code: int


Response = Refused | Reaches | Status


@dataclass(frozen=True, slots=True)
class Way:
    """One path that a call may take, and what should come of it there."""

    path: Path
    connection: Connection | None
    """Its last leg, as the server's node proxy sees it; ``None`` where a waypoint answers by itself."""
    response: Response
    rule: str
    """The rule that decides, as a sentence."""
    kept_from: tuple[Path, ...] = ()
    """Where the waypoint answers by itself: the paths to the pods that the call must not reach."""
    too_late: bool = False
    """Whether the server gets the request, and answers later than its rule waits."""

    @property
    def verdict(self) -> Verdict:
        """A status of a waypoint's own is a denial from 400 on."""
        match self.response:
            case Reaches():
                return Verdict.ALLOW
            case Status(code) if code < 400:
                return Verdict.ALLOW
            case _:
                return Verdict.DENY


@dataclass(frozen=True, slots=True)
class Copies:
    """Where copies of requests go."""

    chance: Fraction
    """Of each request."""
    ways: tuple[Way, ...]
    """One for each pod that may get the copy."""

    @property
    def are_let_in(self) -> bool:
        """Whether every pod that may be chosen gets the copy."""
        return all(way.verdict is Verdict.ALLOW for way in self.ways)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What becomes of a share of equal requests, or connections, at a waypoint."""

    chance: Fraction
    """Above 0; those of all shares add up to 1."""
    ways: tuple[Way, ...]
    """One for each pod that may get it; one, where the waypoint answers or refuses it itself."""
    request: HttpRequest | None = None
    """As the server gets it; ``None`` where none does, and of a connection whose bytes are not read."""
    delay_s: float = 0.0
    """How long the answer waits, at least."""
    location: str = ""
    """Of a redirect."""
    body: str | None = None
    """Of an answer of the waypoint's own; ``None``: any."""
    response_headers: tuple[HeaderEdits, ...] = ()
    """What is done to the answer's headers, in this order."""
    copies: tuple[Copies, ...] = ()
    """Where copies of the request go beside, each independently of the others."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What should come of a call."""

    ways: tuple[Way, ...]
    """One for each pod that the proxy may pick; none where nobody can answer."""
    rule: str
    """The rules that decide, as a sentence."""
    shares: tuple[Share, ...] = ()
    """At a waypoint: what a request that it reads, or a connection that it routes, comes to, with the chances. ``ways``
    are those of all of them."""
    is_read: bool = False
    """Whether a waypoint reads what is asked for."""

    @property
    def passage(self) -> Literal["allow", "deny", "mixed"]:
        """What the call comes to. ``mixed``: the pods that it may reach disagree, and the proxy picks one at random."""
        verdicts = {way.verdict for way in self.ways}
        if len(verdicts) > 1:
            return "mixed"
        return "allow" if Verdict.ALLOW in verdicts else "deny"

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(way.path for way in self.ways)

    @property
    def answering(self) -> frozenset[str]:
        """The pods that may answer."""
        return frozenset(way.response.pod for way in self.ways if isinstance(way.response, Reaches))

    @property
    def statuses(self) -> frozenset[int]:
        """With which a waypoint may answer by itself."""
        return frozenset(way.response.code for way in self.ways if isinstance(way.response, Status))

    @property
    def is_certain(self) -> bool:
        """Whether all equal calls come to the same, up to the choice among endpoints."""
        return len(self.shares) < 2 and not any(copies.chance < 1 for share in self.shares for copies in share.copies)

    @property
    def chances(self) -> tuple[Fraction, ...]:
        """Of all that may become of a call: of the shares, and of copies that are made of some requests only."""
        some = [copies.chance for share in self.shares for copies in share.copies if copies.chance < 1]
        return (*(share.chance for share in self.shares), *some, *(1 - chance for chance in some))


def direct(source: str, pod: str, port: int, carried: Carried = "hbone") -> Path:
    """The path of one leg from ``source`` to ``port`` of ``pod``."""
    return Path((Leg(source, pod, port, carried),))
