"""Which flows belong to a call: by the addresses of the two pods, the port, the links between them and the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshlab.model import Call
from meshlab.proofs.links import FABRIC, Link, Site, Wiring
from meshlab.proofs.packets import TCP
from meshlab.proofs.streams import HBONE_PORT
from meshlab.proofs.window import Finding, Flow, Window


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
    ends = (source.link.node, destination.link.node)
    fabric = [link for node in ends for link in wiring.links.values() if (link.node, link.name) == (node, FABRIC)]
    between = fabric if ends[0] != ends[1] else []
    return Route(source, destination, target.port, (source.link, *between, destination.link))


def flows(window: Window, route: Route) -> Iterator[Flow]:
    """All between the two pods, in both directions, on the links of the route."""
    for link in route.links:
        yield from _directed(window, link, route.source, route.destination)
        yield from _directed(window, link, route.destination, route.source)


def _directed(window: Window, link: Link, source: Site, destination: Site) -> Iterator[Flow]:
    for source_ip in source.addresses:
        for destination_ip in destination.addresses:
            yield from window.by_ends.get((link, source_ip, destination_ip), ())


def carried(window: Window, route: Route, call: Call) -> dict[Link, tuple[int, int]]:
    """On each link, in the call's time and on the wire's port: packets with payload there, and back."""
    return {
        link: (
            _count(_directed(window, link, route.source, route.destination), route.wire_port, call, back=False),
            _count(_directed(window, link, route.destination, route.source), route.wire_port, call, back=True),
        )
        for link in route.links
    }


def passed(window: Window, route: Route, call: Call) -> int:
    """All packets of it in the call's time on the wire's port, on the source's own link: also those without payload."""
    link = route.source.link
    there = _on_port(_directed(window, link, route.source, route.destination), route.wire_port, back=False)
    back = _on_port(_directed(window, link, route.destination, route.source), route.wire_port, back=True)
    return sum(flow.passed(call.started_ns, call.ended_ns) for flow in (*there, *back))


def _count(some: Iterator[Flow], port: int, call: Call, *, back: bool) -> int:
    return sum(flow.carried(call.started_ns, call.ended_ns) for flow in _on_port(some, port, back=back))


def _on_port(some: Iterator[Flow], port: int, *, back: bool) -> Iterator[Flow]:
    for flow in some:
        if flow.protocol == TCP and port == (flow.source_port if back else flow.destination_port):
            yield flow


def on_application_port(window: Window, route: Route, call: Call) -> Flow | None:
    """A flow to the port that the call asked for, or that the pod serves, with packets in the call's time."""
    ports = {route.port, call.port} - {HBONE_PORT}
    return next(
        (
            flow
            for flow in flows(window, route)
            if ports & {flow.source_port, flow.destination_port}
            and not flow.is_hbone
            and flow.passed(call.started_ns, call.ended_ns)
        ),
        None,
    )


def unread(window: Window, route: Route) -> Finding | None:
    """A canary between the two pods whose number was cut off, so that nobody knows whose it is."""
    ends = route.source.addresses | route.destination.addresses
    return next((f for f in window.by_call.get(None, ()) if {f.source, f.destination} <= ends), None)
