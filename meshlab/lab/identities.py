"""Who saw whose certificate: read from the node proxies' access logs, with the grade that gives.

An inbound record says what client certificate the destination's proxy verified, an outbound one what server certificate
the source's proxy did. Where that proxy is ours the grade is ``peer``, else ``claim``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshlab.implementations import Reference
from meshlab.model import Call, SpiffeId
from meshlab.model.report import Grade
from meshlab.proofs.access_log import Opened, read_opened
from meshlab.proofs.route import Target

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_PATIENCE_S = 2.0
"""A log is written beside the traffic: its line may come this much after the end of the call."""
_PEER_CONTROL = "{who} verified the certificate against the lab's root"
_CLAIM_CONTROL = "{who} logs the identity of each connection"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One end of a call, as the other end's proxy saw it."""

    about: SpiffeId
    """Who should have been there."""
    identity: str
    """Who was."""
    grade: Grade
    control: str


@dataclass(slots=True)
class AccessLogs:
    """The access logs of a lab's node proxies, read when they are needed and again when a line is missing."""

    lab: Lab
    _records: dict[tuple[str, str], list[Opened]] = field(default_factory=dict)
    """Node and direction -> its records of opened connections."""

    def sightings(self, call: Call, targets: Sequence[Target]) -> list[Sighting]:
        """What the proxies at both ends say of the identities of ``call``; waits for lines that may still come."""
        deadline_ns = call.ended_ns + _PATIENCE_S * 10**9
        after = -1
        while True:
            found = list(self._look(call, targets))
            if found or time.clock_gettime_ns(time.CLOCK_REALTIME) > deadline_ns:
                return found
            self._records.clear()
            answer, _ = self.lab.captures.recorder.ask("position", after=after, timeout_s=0.02)
            after = answer["position"]

    def _look(self, call: Call, targets: Sequence[Target]) -> Iterator[Sighting]:
        mesh = self.lab.mesh
        source = mesh.pod(call.source)
        caller = str(source.address(call.family))
        for target in targets:
            if call.peer is not None and target.pod != call.peer.pod:
                continue
            destination = mesh.pod(target.pod)
            address = destination.address(call.family)
            hbone = f"{address}:{target.port}" if call.family == 4 else f"[{address}]:{target.port}"
            for record in self._of(destination.node, "inbound"):
                if _matches(record, call, caller, hbone) and record.source_identity:
                    expected = source.identity(mesh.trust_domain)
                    yield Sighting(expected, record.source_identity, *self._grade(destination.node))
            for record in self._of(source.node, "outbound"):
                own = _matches(record, call, caller, hbone) and record.source_port == call.source_port
                if own and record.destination_identity:
                    expected = destination.identity(mesh.trust_domain)
                    yield Sighting(expected, record.destination_identity, *self._grade(source.node))

    def _grade(self, node: str) -> tuple[Grade, str]:
        choice = self.lab.site.choices[node]
        who = f"ztunnel@{node} ({choice.name})"
        if isinstance(choice.proxy, Reference):
            return Grade.PEER, _PEER_CONTROL.format(who=who)
        return Grade.CLAIM, _CLAIM_CONTROL.format(who=who)

    def _of(self, node: str, direction: str) -> Sequence[Opened]:
        if (node, direction) not in self._records:
            self._records[node, "inbound"], self._records[node, "outbound"] = [], []
            for record in _opened(self.lab, f"ztunnel@{node}"):
                self._records.setdefault((node, record.direction), []).append(record)
        return self._records[node, direction]


def _opened(lab: Lab, program: str) -> Iterator[Opened]:
    yield from read_opened(lab.logs(program) if program in lab.site.programs.by_name else "")


def _matches(record: Opened, call: Call, caller: str, hbone: str) -> bool:
    return record.hbone == hbone and record.source == caller and _in_time(record, call)


def _in_time(record: Opened, call: Call) -> bool:
    """Whether the record was written while the call was under way; logs count microseconds, calls nanoseconds."""
    at_ns = record.at_ns
    return at_ns is not None and call.started_ns - 1e6 <= at_ns <= call.ended_ns + 1e6
