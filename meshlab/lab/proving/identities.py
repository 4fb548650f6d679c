"""Who saw whose certificate: read from the node proxies' access logs as they grow, with the grade that gives.

An inbound record says what client certificate the destination's proxy verified, an outbound one what server
certificate the source's proxy did. Where that proxy is the reference as it stands the grade is ``peer``, else
``claim``: a mutant is made of the reference, and nobody vouches for what it writes.

The recorder keeps the last 4 MiB of a log. The records of a window are fetched between its batches of calls, so that no
window is too long for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from meshlab.implementations import PRISTINE
from meshlab.kernel.recorder_requests import Position, ReadLogsSince
from meshlab.lab.view import ViewForProofs
from meshlab.model import Call, InstanceId, Mesh, Path, Pod, SpiffeId
from meshlab.model.report import Grade
from meshlab.proofs.access_log import Opened, read_opened
from meshlab.proofs.identities import End, Sighting

_PATIENCE_S = 2.0
"""A log is written beside the traffic: its line may come this much after the end of the call."""
_PEER_CONTROL = "{who} verified the certificate against the lab's root"
_CLAIM_CONTROL = "{who} logs the identity of each connection"


@dataclass(slots=True)
class AccessLogs:
    """The access logs of a lab's node proxies from ``begin`` on."""

    lab: ViewForProofs
    lost_bytes: int = 0
    """How much was printed and gone before it could be fetched."""
    _places: dict[InstanceId, int] = field(default_factory=dict)
    """Node proxy -> up to where its log was fetched."""
    _unread: dict[InstanceId, list[str]] = field(default_factory=dict)
    """Node proxy -> the text that was fetched and not yet read."""
    _records: dict[tuple[InstanceId, str, str], list[Opened]] = field(default_factory=dict)
    """Node proxy, direction and authority -> its records of opened connections."""

    def begin(self) -> None:
        """Read from here on."""
        self._places = dict.fromkeys(self.lab.site.launched, _END)
        self._fetch()
        self._unread.clear()
        self.lost_bytes = 0

    def follow(self) -> None:
        """Fetch what was printed since the last time."""
        self._fetch()

    def sightings(self, call: Call, paths: Sequence[Path]) -> list[Sighting]:
        """What the proxies at both ends say of the identities of ``call``; waits for lines that may still come."""
        deadline_ns = call.ended_ns + int(_PATIENCE_S * 1e9)
        ends = {end for end, who in self.expected(call, paths).items() if who} if self._all_log() else set[End]()
        after = -1
        while True:
            found = list(self._look(call, paths))
            if (found and ends <= {one.end for one in found}) or time.clock_gettime_ns(
                time.CLOCK_REALTIME
            ) > deadline_ns:
                return found
            answer, _ = self.lab.captures.recorder.ask(Position(after, 0.02))
            after = answer["position"]
            self._fetch()

    def how(self) -> str:
        """How an identity could be had, or be had at a better grade, as half a sentence."""
        if self.lost_bytes:
            return (
                f"{self.lost_bytes} bytes of the access logs were gone before they were read: make fewer calls at once"
            )
        if not any(self._records.values()):
            return "no node proxy has logged a connection: it has to log 'connection opened' (scope access) as JSON"
        if all(choice.proxy in PRISTINE for choice in self.lab.site.launched.values()):
            return "every proxy of its path is a reference, and none logged this call"
        return "put a reference ztunnel at one end: nodes: [node-1, {name: node-2, ztunnel: reference}]"

    def _all_log(self) -> bool:
        """Whether every proxy of the lab says that it logs both ends of what it carries."""
        return all("identity" in choice.describe().claims for choice in self.lab.site.launched.values())

    def expected(self, call: Call, paths: Sequence[Path]) -> dict[End, frozenset[SpiffeId]]:
        """The identities that each end of ``call``'s legs should have."""
        mesh = self._mesh(call)
        taken = _taken(call, paths)
        between = {leg.destination for path in taken for leg in path.legs[:-1]}
        return {
            "client": frozenset({mesh.pod(call.source).identity(mesh.trust_domain)}),
            "waypoint": frozenset(mesh.pod(key).identity(mesh.trust_domain) for key in between),
            "server": frozenset(mesh.pod(path.server.pod).identity(mesh.trust_domain) for path in taken),
        }

    def _mesh(self, call: Call) -> Mesh:
        """The mesh that was in effect when ``call`` began."""
        meshes = self.lab.history.between(call.started_ns, call.started_ns)
        return meshes[0] if meshes else self.lab.mesh

    def _look(self, call: Call, paths: Sequence[Path]) -> Iterator[Sighting]:
        mesh = self._mesh(call)
        for path in _taken(call, paths):
            ends: list[End] = ["client", *["waypoint" for _ in path.legs[1:]], "server"]  # type: ignore[list-item]
            for place, leg in enumerate(path.legs):
                source, destination = mesh.pod(leg.source), mesh.pod(leg.destination)
                caller = str(source.address(call.family))
                asked = call.destination_ip if destination.gateway else destination.address(call.family)
                hbone = f"{asked}:{leg.port}" if call.family == 4 else f"[{asked}]:{leg.port}"
                for instance, record in self._of(_proxy_of(destination), "inbound", hbone):
                    if _matches(record, call, caller) and record.source_identity:
                        yield Sighting(ends[place], record.source_identity, *self._grade(instance))
                for instance, record in self._of(_proxy_of(source), "outbound", hbone):
                    own = bool(place) or record.source_port == call.source_port
                    if own and _matches(record, call, caller) and record.destination_identity:
                        yield Sighting(ends[place + 1], record.destination_identity, *self._grade(instance))

    def _grade(self, instance: InstanceId) -> tuple[Grade, str]:
        choice = self.lab.site.launched[instance]
        who = f"{instance} ({choice.name})"
        if choice.proxy in PRISTINE:
            return Grade.PEER, _PEER_CONTROL.format(who=who)
        return Grade.CLAIM, _CLAIM_CONTROL.format(who=who)

    def _of(self, node: str, direction: str, hbone: str) -> Iterator[tuple[InstanceId, Opened]]:
        """The records of every generation of the node's proxy."""
        for instance in [known for known in self.lab.site.launched if known.place == node]:
            for record in read_opened("".join(self._unread.pop(instance, []))):
                self._records.setdefault((instance, record.direction, record.hbone), []).append(record)
            for record in self._records.get((instance, direction, hbone), ()):
                yield instance, record

    def _fetch(self) -> None:
        """Also of a proxy that was started since the last time: of that one from its beginning."""
        places = {instance: self._places.get(instance, 0) for instance in self.lab.site.launched}
        if not places:
            return
        asked = {str(instance): place for instance, place in places.items()}
        answer, _ = self.lab.captures.recorder.ask(ReadLogsSince(asked))
        for instance in places:
            log = answer["logs"][str(instance)]
            self._places[instance] = log["next"]
            self._unread.setdefault(instance, []).append(log["text"])
            self.lost_bytes += log["lost"]


def _taken(call: Call, paths: Sequence[Path]) -> list[Path]:
    """To the pod that answered; where none did, all that the call may have taken."""
    return [path for path in paths if call.peer is None or path.server.pod == call.peer.pod]


def _proxy_of(pod: Pod) -> str:
    """Where the proxy runs that speaks for a pod: a waypoint's pod speaks for itself."""
    return pod.key if pod.gateway else pod.node


_END = 1 << 62
"""A place behind the end of every log."""


def _matches(record: Opened, call: Call, caller: str) -> bool:
    return record.source == caller and _in_time(record, call)


def _in_time(record: Opened, call: Call) -> bool:
    """Whether the record was written while the call was under way; logs count microseconds, calls nanoseconds."""
    at_ns = record.at_ns
    return at_ns is not None and call.started_ns - 1e6 <= at_ns <= call.ended_ns + 1e6
