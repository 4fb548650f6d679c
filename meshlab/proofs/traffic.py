"""The flows of one link between two addresses, so indexed that a proof of one call among thousands costs little."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from meshlab.model.ambient import HBONE_PORT
from meshlab.proofs.flows import Flow
from meshlab.proofs.packets import TCP


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


@dataclass(frozen=True)
class Traffic:
    """All flows on one link from one address to another. What nobody asks for is never worked out."""

    flows: Sequence[Flow]

    @cached_property
    def not_tls(self) -> Flow | None:
        """The first on 15008 that is no sequence of TLS records."""
        return next((flow for flow in self._hbone if flow.not_tls), None)

    @cached_property
    def unfollowed(self) -> Flow | None:
        """The first on 15008 of which bytes were not seen."""
        return next((flow for flow in self._hbone if flow.hole or not flow.from_birth), None)

    @cached_property
    def no_certificate(self) -> Flow | None:
        """The first on 15008 whose client cannot have shown a certificate."""
        return next((flow for flow in self._hbone if flow.no_certificate), None)

    def to_port(self, port: int) -> Times:
        """TCP to that port; what is on 15008, on either side, counts for that port only."""
        return self._known("destination_port", port)

    def from_port(self, port: int) -> Times:
        """TCP from that port; 15008 counts as for ``to_port``."""
        return self._known("source_port", port)

    @cached_property
    def _hbone(self) -> tuple[Flow, ...]:
        return tuple(flow for flow in self.flows if flow.is_hbone)

    @cached_property
    def _times(self) -> dict[tuple[str, int], Times]:
        return {}

    def _known(self, side: str, port: int) -> Times:
        known = self._times.get((side, port))
        if known is None:
            some = self._hbone if port == HBONE_PORT else self._others
            of = [flow for flow in some if getattr(flow, side) == port]
            known = self._times[side, port] = _times(of) if of else NEVER
        return known

    @cached_property
    def _others(self) -> tuple[Flow, ...]:
        return tuple(flow for flow in self.flows if flow.protocol == TCP and not flow.is_hbone)


def _times(flows: list[Flow]) -> Times:
    data = sorted(packet for flow in flows for packet in flow.data)
    return Times(
        sorted(time for flow in flows for time in flow.times),
        [time for time, _ in data],
        [0, *accumulate(size for _, size in data)],
    )


def _within(times: list[int], started_ns: int, ended_ns: int) -> tuple[int, int]:
    return bisect_left(times, started_ns), bisect_right(times, ended_ns)
