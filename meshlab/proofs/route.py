"""Which flows belong to a call: by the addresses of the two pods, the port, the links between them and the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshlab.model import Call
from meshlab.proofs.cohorts import Cohort
from meshlab.proofs.exposed import Exposed
from meshlab.proofs.flows import Flow
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.streams import HBONE_PORT
from meshlab.proofs.traffic import Times, Traffic
from meshlab.proofs.window import Window


@dataclass(frozen=True, slots=True)
class Target:
    """A pod that a call may have reached, and there the port: of a Service, one for each endpoint."""

    pod: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """From one pod to another, and back."""

    source: Site
    destination: Site
    port: int
    links: tuple[Link, ...]
    """In the order in which a packet to the destination passes them."""

    @property
    def tunnelled(self) -> bool:
        """Both ends are enrolled, so all should be on 15008."""
        return self.source.enrolled and self.destination.enrolled

    @property
    def wire_port(self) -> int:
        return HBONE_PORT if self.tunnelled else self.port


def routes(wiring: Wiring, call: Call, targets: Sequence[Target]) -> list[Route]:
    """To the pod that answered; where none did, to all that might have."""
    answered = [target for target in targets if call.peer and target.pod == call.peer.pod]
    return [_route(wiring, wiring.sites[call.source], target) for target in answered or targets]


def _route(wiring: Wiring, source: Site, target: Target) -> Route:
    destination = wiring.sites[target.pod]
    nodes = (source.link.node, destination.link.node)
    between = [wiring.fabric(node) for node in nodes] if nodes[0] != nodes[1] else []
    return Route(source, destination, target.port, (source.link, *between, destination.link))


def carried(window: Window, route: Route, call: Call) -> dict[Link, tuple[int, int]]:
    """On each link, in the call's time and on the wire's port: packets with payload there, and back."""
    span = (call.started_ns, call.ended_ns)
    return {
        link: (
            sum(times.carried(*span) for times in _there(window, link, route, route.wire_port)),
            sum(times.carried(*span) for times in _back(window, link, route, route.wire_port)),
        )
        for link in route.links
    }


def tunnelled_bytes(window: Window, route: Route, link: Link, cohort: Cohort) -> tuple[int, int]:
    """Bytes of payload that the wire's port carried on ``link`` in the cohort's time, there and back."""
    span = (cohort.started_ns, cohort.ended_ns)
    return (
        sum(times.bytes(*span) for times in _there(window, link, route, route.wire_port)),
        sum(times.bytes(*span) for times in _back(window, link, route, route.wire_port)),
    )


def passed(window: Window, route: Route, call: Call) -> int:
    """All packets of it, also those without payload, in its time, on the wire's port, on the caller's own link."""
    times = (
        *_there(window, route.source.link, route, route.wire_port),
        *_back(window, route.source.link, route, route.wire_port),
    )
    return sum(some.passed(call.started_ns, call.ended_ns) for some in times)


def on_application_port(window: Window, route: Route, call: Call) -> Link | None:
    """A link with packets of the call's time to the port that was asked for, or that the pod serves.

    A connection that is older than the membership of its ends may stay as it was, and does not count.
    """
    for port in {route.port, call.port} - {HBONE_PORT}:
        for link in route.links:
            times = (*_there(window, link, route, port), *_back(window, link, route, port))
            if any(some.passed(call.started_ns, call.ended_ns) for some in times) and _young(
                window, link, route, port, call
            ):
                return link
    return None


def _young(window: Window, link: Link, route: Route, port: int, call: Call) -> bool:
    """Whether a flow of that port in the call's time is younger than the membership of its ends."""
    since_ns = max(route.source.since_ns, route.destination.since_ns)
    there = window.between(link, route.source, route.destination)
    back = window.between(link, route.destination, route.source)
    flows = [flow for some in there for flow in some.flows if flow.destination_port == port]
    flows += [flow for some in back for flow in some.flows if flow.source_port == port]
    return any(
        flow.began_ns >= since_ns and any(call.started_ns <= at_ns <= call.ended_ns for at_ns in flow.times)
        for flow in flows
    )


def exposed_session(window: Window, route: Route) -> Exposed | None:
    """A TLS session between the two pods whose secrets were on a link, whichever it is."""
    ends = route.source.addresses, route.destination.addresses
    return next(
        (one for one in window.exposed if one.session.source in ends[0] and one.session.destination in ends[1]), None
    )


def not_tls(window: Window, route: Route) -> Flow | None:
    """A flow on 15008 between the two pods that is no sequence of TLS records."""
    return next((some.not_tls for some in _both(window, route) if some.not_tls), None)


def unfollowed(window: Window, route: Route) -> Flow | None:
    """A flow on 15008 between the two pods of which bytes were not seen."""
    return next((some.unfollowed for some in _both(window, route) if some.unfollowed), None)


def no_certificate(window: Window, route: Route) -> Flow | None:
    """A flow on 15008 between the two pods whose client cannot have shown a certificate."""
    return next((some.no_certificate for some in _both(window, route) if some.no_certificate), None)


def _both(window: Window, route: Route) -> Iterator[Traffic]:
    for link in route.links:
        yield from window.between(link, route.source, route.destination)
        yield from window.between(link, route.destination, route.source)


def _there(window: Window, link: Link, route: Route, port: int) -> Iterator[Times]:
    return (some.to_port(port) for some in window.between(link, route.source, route.destination))


def _back(window: Window, link: Link, route: Route, port: int) -> Iterator[Times]:
    return (some.from_port(port) for some in window.between(link, route.destination, route.source))
