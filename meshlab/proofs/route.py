"""Which flows belong to a call: on each leg by the addresses of its two pods, the port, the links and the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshlab.model import Call, Leg, Path
from meshlab.model.ambient import HBONE_PORT
from meshlab.proofs.cohorts import Cohort
from meshlab.proofs.exposed import Exposed
from meshlab.proofs.flows import Flow
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.traffic import Times, Traffic
from meshlab.proofs.window import Window


@dataclass(frozen=True, slots=True)
class Hop:
    """One leg of a path as packets pass it, and back."""

    source: Site
    destination: Site
    port: int
    tunnelled: bool
    """All of it should be on 15008. While one of its pods enters or leaves the mesh, nobody can say, and it is not."""
    links: tuple[Link, ...]
    """In the order in which a packet to the destination passes them."""

    @property
    def wire_port(self) -> int:
        return HBONE_PORT if self.tunnelled else self.port


Route = tuple[Hop, ...]
"""The hops of one path, in the order of its legs."""


def routes(wiring: Wiring, call: Call, paths: Sequence[Path]) -> list[Route]:
    """To the pod that answered; where none did, to all that might have."""
    answered = [path for path in paths if call.peer and path.server.pod == call.peer.pod]
    return [tuple(_hop(wiring, leg) for leg in path.legs) for path in answered or paths]


def hops(ways: Sequence[Route]) -> list[Hop]:
    """All hops of these routes, each once."""
    return list(dict.fromkeys(hop for way in ways for hop in way))


def _hop(wiring: Wiring, leg: Leg) -> Hop:
    source, destination = wiring.sites[leg.source], wiring.sites[leg.destination]
    nodes = (source.link.node, destination.link.node)
    between = [wiring.fabric(node) for node in nodes] if nodes[0] != nodes[1] else []
    tunnelled = leg.carried == "hbone" and source.enrolled and destination.enrolled
    return Hop(source, destination, leg.port, tunnelled, (source.link, *between, destination.link))


def carried(window: Window, hop: Hop, call: Call) -> dict[Link, tuple[int, int]]:
    """On each link, in the call's time and on the wire's port: packets with payload there, and back."""
    span = (call.started_ns, call.ended_ns)
    return {
        link: (
            sum(times.carried(*span) for times in _there(window, link, hop, hop.wire_port)),
            sum(times.carried(*span) for times in _back(window, link, hop, hop.wire_port)),
        )
        for link in hop.links
    }


def tunnelled_bytes(window: Window, hop: Hop, link: Link, cohort: Cohort) -> tuple[int, int]:
    """Bytes of payload that the wire's port carried on ``link`` in the cohort's time, there and back."""
    span = (cohort.started_ns, cohort.ended_ns)
    return (
        sum(times.bytes(*span) for times in _there(window, link, hop, hop.wire_port)),
        sum(times.bytes(*span) for times in _back(window, link, hop, hop.wire_port)),
    )


def passed(window: Window, hop: Hop, call: Call) -> int:
    """All packets of it, also those without payload, in its time, on the wire's port, on the caller's own link."""
    times = (
        *_there(window, hop.source.link, hop, hop.wire_port),
        *_back(window, hop.source.link, hop, hop.wire_port),
    )
    return sum(some.passed(call.started_ns, call.ended_ns) for some in times)


def on_application_port(window: Window, hop: Hop, call: Call) -> Link | None:
    """A link with packets of the call's time to the port that was asked for, or that the pod serves.

    A connection that is older than the membership of its ends may stay as it was, and does not count.
    """
    for port in {hop.port, call.port} - {HBONE_PORT}:
        for link in hop.links:
            times = (*_there(window, link, hop, port), *_back(window, link, hop, port))
            if any(some.passed(call.started_ns, call.ended_ns) for some in times) and _young(
                window, link, hop, port, call
            ):
                return link
    return None


def _young(window: Window, link: Link, hop: Hop, port: int, call: Call) -> bool:
    """Whether a flow of that port in the call's time is younger than the membership of its ends."""
    since_ns = max(hop.source.since_ns, hop.destination.since_ns)
    there = window.between(link, hop.source, hop.destination)
    back = window.between(link, hop.destination, hop.source)
    flows = [flow for some in there for flow in some.flows if flow.destination_port == port]
    flows += [flow for some in back for flow in some.flows if flow.source_port == port]
    return any(
        window.began_ns(flow) >= since_ns and any(call.started_ns <= at_ns <= call.ended_ns for at_ns in flow.times)
        for flow in flows
    )


def exposed_session(window: Window, hop: Hop) -> Exposed | None:
    """A TLS session between the two pods whose secrets were on a link, whichever it is."""
    ends = hop.source.addresses, hop.destination.addresses
    return next(
        (one for one in window.exposed if one.session.source in ends[0] and one.session.destination in ends[1]), None
    )


def not_tls(window: Window, hop: Hop) -> Flow | None:
    """A flow on 15008 between the two pods that is no sequence of TLS records."""
    return next((some.not_tls for some in _both(window, hop) if some.not_tls), None)


def unfollowed(window: Window, hop: Hop) -> Flow | None:
    """A flow on 15008 between the two pods of which bytes were not seen."""
    return next((some.unfollowed for some in _both(window, hop) if some.unfollowed), None)


def no_certificate(window: Window, hop: Hop) -> Flow | None:
    """A flow on 15008 between the two pods whose client cannot have shown a certificate."""
    return next((some.no_certificate for some in _both(window, hop) if some.no_certificate), None)


def _both(window: Window, hop: Hop) -> Iterator[Traffic]:
    for link in hop.links:
        yield from window.between(link, hop.source, hop.destination)
        yield from window.between(link, hop.destination, hop.source)


def _there(window: Window, link: Link, hop: Hop, port: int) -> Iterator[Times]:
    return (some.to_port(port) for some in window.between(link, hop.source, hop.destination))


def _back(window: Window, link: Link, hop: Hop, port: int) -> Iterator[Times]:
    return (some.from_port(port) for some in window.between(link, hop.destination, hop.source))
