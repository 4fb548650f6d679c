"""Who saw whose certificate: read from the node proxies' access logs, with the grade that gives.

An inbound record says what client certificate the destination's proxy verified, an outbound one what server certificate
the source's proxy did. Where that proxy is ours the grade is ``peer``, else ``claim``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from meshlab.implementations import Reference
from meshlab.model import Call, SpiffeId
from meshlab.model.report import Grade
from meshlab.proofs.route import Target

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_PATIENCE_S = 2.0
"""A log is written beside the traffic: its line may come after the answer."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One end of a call, as the other end's proxy saw it."""

    about: SpiffeId
    """Who should have been there."""
    identity: str
    """Who was."""
    grade: Grade
    control: str


def sightings(lab: Lab, call: Call, targets: Sequence[Target]) -> list[Sighting]:
    """What the proxies at both ends say of the identities of ``call``; waits a moment for their lines."""
    deadline = time.monotonic() + _PATIENCE_S
    after = -1
    while True:
        found = list(_look(lab, call, targets))
        if found or time.monotonic() > deadline:
            return found
        answer, _ = lab.captures.recorder.ask("position", after=after, timeout_s=0.02)
        after = answer["position"]


def _look(lab: Lab, call: Call, targets: Sequence[Target]) -> Iterator[Sighting]:
    mesh = lab.mesh
    source = mesh.pod(call.source)
    reached = [target for target in targets if call.peer is None or target.pod == call.peer.pod]
    for target in reached:
        destination = mesh.pod(target.pod)
        address = destination.address(call.family)
        hbone = f"{address}:{target.port}" if call.family == 4 else f"[{address}]:{target.port}"
        caller = str(source.address(call.family))
        for record in _records(lab, destination.node, "inbound"):
            if _matches(record, call, caller, hbone) and "src.identity" in record:
                grade = _grade(lab, destination.node)
                yield Sighting(source.identity(mesh.trust_domain), record["src.identity"], *grade)
        for record in _records(lab, source.node, "outbound"):
            if _matches(record, call, caller, hbone) and _port(record) == call.source_port:
                seen = record.get("dst.identity")
                if seen:
                    yield Sighting(destination.identity(mesh.trust_domain), seen, *_grade(lab, source.node))


def _matches(record: Mapping[str, Any], call: Call, caller: str, hbone: str) -> bool:
    return record.get("dst.hbone_addr") == hbone and _host(record) == caller and _in_time(record, call)


def _grade(lab: Lab, node: str) -> tuple[Grade, str]:
    choice = lab.site.choices[node]
    ours = isinstance(choice.proxy, Reference)
    who = f"ztunnel@{node} ({choice.name})"
    if ours:
        return Grade.PEER, f"{who} verified the certificate against the lab's root"
    return Grade.CLAIM, f"{who} logs the identity of each connection"


def _records(lab: Lab, node: str, direction: str) -> Iterator[Mapping[str, Any]]:
    name = f"ztunnel@{node}"
    if name not in lab.site.programs.by_name:
        return
    for line in lab.logs(name).splitlines():
        if '"access"' not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("direction") == direction and record.get("message") == "connection opened":
            yield record


def _host(record: Mapping[str, Any]) -> str:
    return str(record.get("src.addr", "")).rpartition(":")[0].strip("[]")


def _port(record: Mapping[str, Any]) -> int:
    port = str(record.get("src.addr", "")).rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _in_time(record: Mapping[str, Any], call: Call) -> bool:
    """Whether the record was written while the call was under way; logs count microseconds, calls nanoseconds."""
    try:
        at_ns = datetime.fromisoformat(str(record["time"])).timestamp() * 1e9
    except (KeyError, ValueError):
        return False
    return call.started_ns - 1e6 <= at_ns <= call.ended_ns + 1e9 * _PATIENCE_S
