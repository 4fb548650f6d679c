"""The flows of one link between two addresses, so indexed that a proof of one call among thousands costs little."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshlab.proofs.flows import Flow
from meshlab.proofs.packets import TCP
from meshlab.proofs.streams import HBONE_PORT


@dataclass(frozen=True, slots=True)
class Times:
    """When packets passed, sorted."""

    every: list[int]
    with_payload: list[int]

    def passed(self, started_ns: int, ended_ns: int) -> int:
        """How many in this time."""
        return _within(self.every, started_ns, ended_ns)

    def carried(self, started_ns: int, ended_ns: int) -> int:
        """How many with payload in this time."""
        return _within(self.with_payload, started_ns, ended_ns)


NEVER = Times([], [])


@dataclass(frozen=True, slots=True)
class Traffic:
    """All flows on one link from one address to another."""

    flows: tuple[Flow, ...]
    not_tls: Flow | None
    """The first on 15008 that is no sequence of TLS records."""
    unfollowed: Flow | None
    """The first on 15008 of which bytes were not seen."""
    to_port: Mapping[int, Times]
    """TCP by destination port; what is on 15008, on either side, stands under that port only."""
    from_port: Mapping[int, Times]


def indexed(flows: Iterable[Flow]) -> Traffic:
    every = tuple(flows)
    hbone = [flow for flow in every if flow.is_hbone]
    return Traffic(
        flows=every,
        not_tls=next((flow for flow in hbone if flow.not_tls), None),
        unfollowed=next((flow for flow in hbone if flow.hole or not flow.from_birth), None),
        to_port=_by_port((flow, flow.destination_port) for flow in every),
        from_port=_by_port((flow, flow.source_port) for flow in every),
    )


def _by_port(flows: Iterable[tuple[Flow, int]]) -> dict[int, Times]:
    every: dict[int, list[Flow]] = {}
    for flow, port in flows:
        if flow.protocol == TCP and (port == HBONE_PORT or not flow.is_hbone):
            every.setdefault(port, []).append(flow)
    return {
        port: Times(
            sorted(time for flow in some for time in flow.times),
            sorted(time for flow in some for time in flow.data_times),
        )
        for port, some in every.items()
    }


def _within(times: list[int], started_ns: int, ended_ns: int) -> int:
    return bisect_right(times, ended_ns) - bisect_left(times, started_ns)
