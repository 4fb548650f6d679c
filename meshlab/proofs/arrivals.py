"""What the servers' side counted: the other half of "no byte arrived", which no capture of a link can show.

An echo keeps each connection that it accepted (client, times, bytes) and every canary in them. At a program of a pod's
own the kernel counts connections by client and port, behind all redirection. ``unexplained`` gives what reached a
denied call's targets and is no other call's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from meshlab.model import Address, Call, Path, PodPort
from meshlab.proofs.links import Wiring

Kernel = Mapping[tuple[PodPort, Address], int]
"""(pod and port, client's address) -> connections."""
Late = Mapping[int, Collection[PodPort]]
"""Number of a call -> the servers of which one got its request, and answered too late."""
Copied = Mapping[int, Sequence[PodPort]]
"""Number of a call -> where copies of it may have gone."""
_LATE_NS = 10**9
"""A connection from an address that is no pod's is held against the calls of the second before it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One connection that an echo accepted."""

    pod: str
    port: int
    client: Address
    client_port: int
    opened_ns: int
    last_ns: int
    bytes: int

    def __str__(self) -> str:
        return f"a connection from {self.client} with {self.bytes} bytes reached {self.pod}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What was counted from ``since_ns`` on."""

    since_ns: int
    connections: tuple[Arrival, ...] = ()
    canaries: frozenset[int] = frozenset()
    """Numbers of the calls whose whole canary some echo received."""
    received: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """The same: number of a call -> pod -> on how many connections."""
    forgotten_until_ns: int = 0
    """The echoes' record is bounded: of what came until this moment, some is forgotten."""
    echoes: frozenset[PodPort] = frozenset()
    """Where a built-in echo listens, and counts."""
    programs: frozenset[str] = frozenset()
    """Pods that run programs of their own, where the kernel counts connections."""
    kernel: Kernel = field(default_factory=dict)
    """What it counted there."""

    def uncounted(self, targets: Iterable[PodPort]) -> list[PodPort]:
        """The targets at which nobody counts."""
        return [target for target in targets if target not in self.echoes and target.pod not in self.programs]

    def of(self, target: PodPort) -> Sequence[Arrival]:
        """What reached ``target``."""
        return self._by_target.get(target, ())

    @cached_property
    def _by_target(self) -> dict[PodPort, list[Arrival]]:
        found: dict[PodPort, list[Arrival]] = defaultdict(list)
        for arrival in self.connections:
            found[PodPort(arrival.pod, arrival.port)].append(arrival)
        return found


def unexplained(
    arrivals: Arrivals,
    wiring: Wiring,
    call: Call,
    paths: Iterable[Path],
    calls: Sequence[Call],
    late: Late | None = None,
    copied: Copied | None = None,
) -> list[Arrival]:
    """Return what reached the servers of ``paths`` as ``call`` would since it began, or from an address of no pod.

    A server sees the pod at which the last leg starts: the client itself, or the waypoint.

    Args:
        calls: the other calls of the window. Each that was answered explains one connection in its time.
        late: by number, those that were not, and reached one of some servers all the same.
        copied: where copies of them may have gone: each explains one connection more, from then on.
    """
    pods = frozenset(address for site in wiring.sites.values() for address in site.addresses)
    found = []
    for path in paths:
        own = wiring.sites[path.legs[-1].source].addresses
        seen = [one for one in arrivals.of(path.server) if one.last_ns >= call.started_ns]
        mine = [one for one in seen if one.client.packed in own and one.client.version == call.family]
        if mine:
            left = _without(mine, _explaining(calls, call, path.server, own, late or {}))
            found += _without(left, _copied(calls, call, path.server, copied or {}), _LATE_NS)
        found += [one for one in seen if _is_a_stranger(one, pods) and one.opened_ns <= call.ended_ns + _LATE_NS]
    return found


def surplus(arrivals: Arrivals, wiring: Wiring, calls: Sequence[Call], clients: Iterable[str]) -> dict[int, Arrival]:
    """Return, by number of a call, a connection beyond those that calls made: each makes one, at one server.

    One that no call of its pod explains is held against the latest of that pod's calls that had begun by then.

    Args:
        calls: all calls of the time.
        clients: the pods whose connections are all made by calls: those that run no program of their own.
    """
    owners = {address: pod for pod in clients for address in wiring.sites[pod].addresses}
    seen: dict[tuple[str, PodPort], list[Arrival]] = defaultdict(list)
    for one in arrivals.connections:
        if one.opened_ns >= arrivals.since_ns and (pod := owners.get(one.client.packed)) is not None:
            seen[pod, PodPort(one.pod, one.port)].append(one)
    by_source: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_source[call.source].append(call)
    found = {}
    for (pod, target), mine in seen.items():
        for one in _without(mine, [call for call in by_source[pod] if _may_explain(call, target)]):
            begun = [call for call in by_source[pod] if call.started_ns <= one.opened_ns and not call.refused]
            if begun:
                found[max(begun, key=lambda call: call.started_ns).number] = one
    return found


def _may_explain(call: Call, target: PodPort) -> bool:
    """Whether a connection at ``target`` may be the call's: it was answered there, or nobody knows how far it came."""
    if call.peer is None:
        return not call.refused
    return (call.peer.pod, call.peer.server_port) == (target.pod, target.port)


def reached(arrivals: Arrivals, wiring: Wiring, call: Call, paths: Sequence[Path]) -> bool:
    """Whether bytes of ``call`` were counted at a server of one of ``paths``."""
    within = (
        one.client.packed in wiring.sites[path.legs[-1].source].addresses
        and one.bytes
        and call.started_ns <= one.opened_ns <= call.ended_ns
        for path in paths
        for one in arrivals.of(path.server)
    )
    return any(within) or bool(kernel_connections(arrivals, wiring, call, paths))


def kernel_connections(arrivals: Arrivals, wiring: Wiring, call: Call, paths: Iterable[Path]) -> int:
    """Connections to programs of pods' own, as those of ``call`` would be, in the whole window."""
    seen_as = {path.server: wiring.sites[path.legs[-1].source].addresses for path in paths}
    return sum(
        count
        for (target, client), count in arrivals.kernel.items()
        if client.packed in seen_as.get(target, ()) and client.version == call.family
    )


def _explaining(calls: Sequence[Call], call: Call, target: PodPort, own: frozenset[bytes], late: Late) -> list[Call]:
    """The other calls that ``target`` answered, and saw come from one of ``own``, in the family of ``call``; and those
    whose answer was too late."""
    others = [other for other in calls if other.number != call.number and other.family == call.family]
    return [
        other
        for other in others
        if target in late.get(other.number, ())
        or (
            other.answered
            and other.peer is not None
            and (other.peer.pod, other.peer.server_port) == (target.pod, target.port)
            and other.peer.address.packed in own
        )
    ]


def _copied(calls: Sequence[Call], call: Call, target: PodPort, copied: Copied) -> list[Call]:
    """The other calls in the family of ``call`` of which a copy may have gone to ``target``; one for each copy."""
    return [
        other
        for other in calls
        if other.number != call.number and other.family == call.family
        for place in copied.get(other.number, ())
        if place == target
    ]


def _without(mine: list[Arrival], answered: list[Call], late_ns: int = 0) -> list[Arrival]:
    """Those that no answered call explains, by its end or so much later; each explains one."""
    left = sorted(mine, key=lambda one: one.opened_ns)
    for other in sorted(answered, key=lambda other: other.ended_ns):
        explained = next((one for one in left if other.started_ns <= one.opened_ns <= other.ended_ns + late_ns), None)
        if explained is not None:
            left.remove(explained)
    return left


def _is_a_stranger(arrival: Arrival, pods: frozenset[bytes]) -> bool:
    return not arrival.client.is_loopback and arrival.client.packed not in pods
