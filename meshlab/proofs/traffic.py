"""The flows of one link between two addresses, so indexed that a proof of one call among thousands costs little."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from meshlab.proofs.flows import Flow
from meshlab.proofs.packets import TCP
from meshlab.proofs.streams import HBONE_PORT


@dataclass(frozen=True, slots=True)
class Times:
    """When packets passed, sorted."""

    every: list[int]
    with_payload: list[int]
    sums: list[int]
    """How many bytes the packets with payload have carried before each of them, and in all."""

    def passed(self, started_ns: int, ended_ns: int) -> int:
        """How many in this time."""
        first, last = _within(self.every, started_ns, ended_ns)
        return last - first

    def carried(self, started_ns: int, ended_ns: int) -> int:
        """How many with payload in this time."""
        first, last = _within(self.with_payload, started_ns, ended_ns)
        return last - first

    def bytes(self, started_ns: int, ended_ns: int) -> int:
        """How many bytes of payload in this time."""
        first, last = _within(self.with_payload, started_ns, ended_ns)
        return self.sums[last] - self.sums[first]


NEVER = Times([], [], [0])


@dataclass(frozen=True, slots=True)
class Traffic:
    """All flows on one link from one address to another."""

    flows: tuple[Flow, ...]
    not_tls: Flow | None
    """The first on 15008 that is no sequence of TLS records."""
    unfollowed: Flow | None
    """The first on 15008 of which bytes were not seen."""
    no_certificate: Flow | None
    """The first on 15008 whose client cannot have shown a certificate."""
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
        no_certificate=next((flow for flow in hbone if flow.no_certificate), None),
        to_port=_by_port((flow, flow.destination_port) for flow in every),
        from_port=_by_port((flow, flow.source_port) for flow in every),
    )


def _by_port(flows: Iterable[tuple[Flow, int]]) -> dict[int, Times]:
    every: dict[int, list[Flow]] = {}
    for flow, port in flows:
        if flow.protocol == TCP and (port == HBONE_PORT or not flow.is_hbone):
            every.setdefault(port, []).append(flow)
    return {port: _times(some) for port, some in every.items()}


def _times(flows: list[Flow]) -> Times:
    data = sorted(packet for flow in flows for packet in flow.data)
    return Times(
        sorted(time for flow in flows for time in flow.times),
        [time for time, _ in data],
        [0, *accumulate(size for _, size in data)],
    )


def _within(times: list[int], started_ns: int, ended_ns: int) -> tuple[int, int]:
    return bisect_left(times, started_ns), bisect_right(times, ended_ns)
