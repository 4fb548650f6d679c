"""Who saw whose certificate: read from the node proxies' access logs, with the grade that gives.

An inbound record says what client certificate the destination's proxy verified, an outbound one what server certificate
the source's proxy did. Where that proxy is ours the grade is ``peer``, else ``claim``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from meshlab.implementations import Reference
from meshlab.model import Call, SpiffeId
from meshlab.model.report import Grade
from meshlab.proofs.route import Target

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_PATIENCE_S = 2.0
"""A log is written beside the traffic: its line may come this much after the end of the call."""
_PEER_CONTROL = "{who} verified the certificate against the lab's root"
_CLAIM_CONTROL = "{who} logs the identity of each connection"

Record = Mapping[str, Any]


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
    _records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
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
                if _matches(record, call, caller, hbone) and "src.identity" in record:
                    expected = source.identity(mesh.trust_domain)
                    yield Sighting(expected, record["src.identity"], *self._grade(destination.node))
            for record in self._of(source.node, "outbound"):
                own = _matches(record, call, caller, hbone) and _port(record) == call.source_port
                if own and "dst.identity" in record:
                    expected = destination.identity(mesh.trust_domain)
                    yield Sighting(expected, record["dst.identity"], *self._grade(source.node))

    def _grade(self, node: str) -> tuple[Grade, str]:
        choice = self.lab.site.choices[node]
        who = f"ztunnel@{node} ({choice.name})"
        if isinstance(choice.proxy, Reference):
            return Grade.PEER, _PEER_CONTROL.format(who=who)
        return Grade.CLAIM, _CLAIM_CONTROL.format(who=who)

    def _of(self, node: str, direction: str) -> Sequence[Record]:
        if (node, direction) not in self._records:
            self._records[node, "inbound"], self._records[node, "outbound"] = [], []
            for record in _opened(self.lab, f"ztunnel@{node}"):
                self._records.setdefault((node, str(record.get("direction"))), []).append(record)
        return self._records[node, direction]


def _opened(lab: Lab, program: str) -> Iterator[Record]:
    yield from read_records(lab.logs(program) if program in lab.site.programs.by_name else "")


def read_records(text: str) -> Iterator[Record]:
    """The records of opened connections in a ztunnel's log."""
    for line in text.splitlines():
        if '"connection opened"' in line:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # the line on which the recorder cut the middle out


def _matches(record: Record, call: Call, caller: str, hbone: str) -> bool:
    return record.get("dst.hbone_addr") == hbone and _host(record) == caller and _in_time(record, call)


def _host(record: Record) -> str:
    return str(record.get("src.addr", "")).rpartition(":")[0].strip("[]")


def _port(record: Record) -> int:
    port = str(record.get("src.addr", "")).rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _in_time(record: Record, call: Call) -> bool:
    """Whether the record was written while the call was under way; logs count microseconds, calls nanoseconds."""
    try:
        at_ns = datetime.fromisoformat(str(record["time"])).timestamp() * 1e9
    except (KeyError, ValueError):
        return False
    return call.started_ns - 1e6 <= at_ns <= call.ended_ns + 1e6
