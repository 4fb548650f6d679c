"""Who calls whom in a check, and what should come of it. Pure; ``judging`` says what did.

Cells are every ordered pair of different pods on each port that the destination declares, and every pod of the mesh to
each port of every Service, by VIP; each in both families. A pod that calls a Service which it backs itself may be
picked: that path is captured, unlike a call to its own address, so it is judged like any other endpoint, but it never
leaves the pod, and so no packet of it can serve as a control (``hairpin``).

Where a waypoint reads the requests to a Service port, each request that ``questions`` chooses has a cell of its own.
Where a rule decides at random, one of its cells makes enough calls to show a share that is too large or too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from meshlab.errors import UsageError
from meshlab.lab.calls.names import behind
from meshlab.lab.proving.questions import questions, written
from meshlab.model import (
    FAMILIES,
    Address,
    Expectation,
    Expected,
    Family,
    HttpRequest,
    Mesh,
    Pod,
    PodPort,
    Service,
    Topology,
    Verdict,
    Way,
)
from meshlab.model.report import Passage
from meshlab.oracle import expected

CALLS_IF_MIXED = 20
LEAST_CALLS_IF_BALANCED = 40
LEAST_CALLS_IF_RANDOM = 200
MOST_CALLS_IF_RANDOM = 2000
MISSED_BY_CHANCE = 1e-6
"""How likely a random choice may at most leave out an endpoint, so that a right proxy fails."""
BULK_BYTES = (1 << 20) + 17
"""More than a mebibyte, and no multiple of any buffer's size."""
Places = Set[tuple[str, int, Family]]
"""(pod, port, family)"""


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell before its calls are made."""

    source: Pod
    destination: Pod | Service
    address: Address
    """What is dialled: the pod's address or the VIP."""
    port: int
    family: Family
    expected: Passage
    """The row of ``spec.expect`` that names the cell, else what the oracle says."""
    due: Expected
    """What the oracle says, path by path."""
    silent: tuple[str, ...] = ()
    """Pods of these in which nobody listens there. If there are some, any mesh may refuse the call."""
    bulk: bool = False
    """Whether the cell also carries ``BULK_BYTES`` each way."""
    balanced: bool = False
    """Whether the cell is called so often that each of its endpoints must answer."""
    request: HttpRequest | None = None
    """The HTTP request that is sent; ``None`` where no waypoint reads requests."""
    counted: bool = False
    """Whether the cell makes enough calls to measure the shares of its outcomes."""

    @property
    def to(self) -> str:
        return self.destination.key

    @property
    def oracle(self) -> Passage:
        return self.due.passage

    @property
    def rule(self) -> str:
        if not self.silent:
            return self.due.rule
        where = f"nobody listens there over IPv{self.family} (in {', '.join(self.silent)})"
        return f"{self.due.rule}; but {where}, so that a refusal says nothing of the mesh"

    @property
    def listening(self) -> bool:
        return not self.silent

    @property
    def hbone(self) -> bool:
        """Whether every path of the cell is carried by HBONE from end to end."""
        return bool(self.due.ways) and all(path.is_hbone for path in self.due.paths)

    @cached_property
    def ways(self) -> Mapping[str, Way]:
        """By the pod that may answer."""
        return {way.path.server.pod: way for way in self.due.ways}

    @property
    def asked(self) -> str:
        """The request, in a few words; empty where nobody reads it."""
        return "" if self.request is None else written(self.request)

    @property
    def name(self) -> str:
        return f"{self.source.key}->{self.to}:{self.port}/{self.family}{f' {self.asked}' if self.asked else ''}"

    @property
    def calls(self) -> int:
        """How often it is called: more than once where the answer depends on which endpoint is picked."""
        if self.counted:
            return calls_to_count(self.due)
        if self.balanced:
            return calls_to_reach_all(len(self.due.ways))
        if self.request is not None:
            return 1
        return CALLS_IF_MIXED if self.oracle == "mixed" else 1

    @property
    def hairpin(self) -> bool:
        return any(not path.leaves_its_pod for path in self.due.paths)

    @property
    def servers(self) -> frozenset[PodPort]:
        """Where the cell's calls may arrive, or might if nobody refused them."""
        return frozenset(path.server for way in self.due.ways for path in way.kept_from or (way.path,))

    @property
    def denying(self) -> frozenset[PodPort]:
        """Those of them that deny the caller."""
        denied = [way for way in self.due.ways if way.verdict is Verdict.DENY and not way.too_late]
        return frozenset(path.server for way in denied for path in way.kept_from or (way.path,))


@dataclass(frozen=True, slots=True)
class Control:
    """What shows that a denied cell's bytes could have arrived."""

    twin: PlannedCell | None
    """An allowed cell of another pod that can only arrive where the denied one could have. ``None``: it is denied to
    everyone, so the server's own loopback call stands for it."""
    elsewhere: PlannedCell | None = None
    """Beside the loopback call: an allowed cell on another port of the same destination."""


def cells(topology: Topology, not_listening: Places = frozenset()) -> list[PlannedCell]:
    """Every cell of the matrix, in the order of the file.

    One allowed pair of each family is ``bulk``. Of each rule with a random outcome one cell is ``counted``. Of each
    Service port with several endpoints, which nothing prefers to one another, one allowed caller on each node is
    ``balanced`` in each family.

    Args:
        not_listening: where nobody listens, as a running lab knows it (``lab.not_listening``).

    Raises:
        UsageError: a row of ``spec.expect`` names no cell, so nothing would ever contradict it.
    """
    mesh = topology.mesh
    planned = [_expect(cell, topology.expect) for cell in _told_apart(_all_cells(mesh, not_listening))]
    for row in topology.expect:
        if not any(_names(row, cell) for cell in planned):
            raise UsageError(_names_nothing(row, mesh))
    bulk = {id(cell) for family in FAMILIES if (cell := _carries_bulk(planned, family))}
    balanced = _balanced(mesh, planned)
    counted = _counted(planned)
    return [
        replace(cell, bulk=id(cell) in bulk, balanced=id(cell) in balanced, counted=id(cell) in counted)
        for cell in planned
    ]


def rarely(due: Expected) -> float:
    """The probability below which a number of calls is no chance: of all that may become of them, too few and too many,
    at most ``MISSED_BY_CHANCE`` in all."""
    return MISSED_BY_CHANCE / (2 * len(due.chances))


def calls_to_count(due: Expected) -> int:
    """How many calls a check makes, so that each share of what is expected shows, and its size as well."""
    return min(MOST_CALLS_IF_RANDOM, max(LEAST_CALLS_IF_RANDOM, least_to_count(due)))


def least_to_count(due: Expected) -> int:
    """How many calls show each share of what is expected: the smallest is missed by all more rarely than ``rarely``.

    Of a share of 5 % beside one of 95 % this is 297: 0.95^297 = 2.4e-7.
    """
    least = float(min(due.chances))
    return math.ceil(math.log(rarely(due)) / math.log(1 - least)) if least < 1 else 1


def unasked(mesh: Mesh) -> list[str]:
    """What the cells of requests leave out, and why, each as a sentence."""
    return [
        sentence
        for service in mesh.services
        for port in service.ports
        if mesh.reads_requests(service, port)
        for sentence in questions(mesh, service, port).unasked
    ]


def calls_to_reach_all(endpoints: int) -> int:
    """How many calls leave out one of so many endpoints, chosen at random, less often than ``MISSED_BY_CHANCE``.

    One of k endpoints is left out of n calls with probability (1 - 1/k)^n; one or another of them with at most k times
    that. For two endpoints and 40 calls this is 2 * 0.5^40 = 1.8e-12.
    """
    if endpoints < 2:
        return 1
    enough = math.log(MISSED_BY_CHANCE / endpoints) / math.log(1 - 1 / endpoints)
    return max(LEAST_CALLS_IF_BALANCED, math.ceil(enough))


def missed_by_chance(endpoints: int) -> float:
    """The probability that a random choice fails a ``balanced`` cell of so many endpoints."""
    return endpoints * (1 - 1 / endpoints) ** calls_to_reach_all(endpoints)


def cell_of(
    mesh: Mesh, source: str, to: str, family: Family, not_listening: Places = frozenset()
) -> PlannedCell | None:
    """The cell of one call, such as a step's; ``None`` where there is none, as of a Service without that family."""
    wanted = (source, to, family)
    possible = _all_cells(mesh, not_listening)
    return next((cell for cell in possible if (cell.source.key, f"{cell.to}:{cell.port}", cell.family) == wanted), None)


def control_for(denied: PlannedCell, planned: Sequence[PlannedCell]) -> Control:
    """The control of ``denied``: the allowed cell that is most like it, or what stands for one where there is none."""
    allowed = [
        cell
        for cell in planned
        if cell.oracle == "allow" and cell.family == denied.family
        if (cell.source, cell.asked) != (denied.source, denied.asked)
        if cell.source != denied.source or cell.to == denied.to
        if cell.listening and not cell.hairpin
    ]
    twins = [cell for cell in allowed if cell.servers and cell.servers <= denied.denying]
    if twins:
        return Control(min(twins, key=lambda twin: _unlike(twin, denied)))
    elsewhere = [cell for cell in allowed if cell.to == denied.to]
    return Control(None, min(elsewhere, key=lambda cell: _unlike(cell, denied), default=None))


def _all_cells(mesh: Mesh, not_listening: Places) -> Iterator[PlannedCell]:
    for cell in (*_pod_cells(mesh), *_service_cells(mesh)):
        reached = behind(mesh, f"{cell.to}:{cell.port}")
        silent = tuple(pod.key for pod, port in reached if (pod.key, port, cell.family) in not_listening)
        yield replace(cell, silent=silent) if silent else cell


def _told_apart(planned: Iterable[PlannedCell]) -> Iterator[PlannedCell]:
    """Leave out cells that differ from an earlier one in the caller only.

    Every caller makes the plain request. Any other request is made by one caller for each rule that decides about it.
    """
    seen: set[tuple[object, ...]] = set()
    for cell in planned:
        kind = (cell.to, cell.port, cell.family, cell.asked, cell.due.rule)
        if _is_plain(cell) or kind not in seen:
            yield cell
        seen.add(kind)


def _pod_cells(mesh: Mesh) -> Iterator[PlannedCell]:
    for source in mesh.pods:
        if source.gateway:
            continue  # nobody calls from there
        for destination in mesh.pods:
            if destination.key == source.key:
                continue
            for port in sorted({port.number for port in destination.ports}):
                for family in FAMILIES:
                    yield _cell(mesh, source, destination, port, family, destination.address(family))


def _service_cells(mesh: Mesh) -> Iterator[PlannedCell]:
    asked = {
        (service.key, port.port): questions(mesh, service, port).requests if mesh.reads_requests(service, port) else ()
        for service in mesh.services
        for port in service.ports
    }
    for source in filter(mesh.is_enrolled, mesh.pods):
        for service in mesh.services:
            for port in () if mesh.is_of_waypoint(service) else service.ports:
                for family in FAMILIES:
                    address = service.address(family)
                    if address is not None:
                        for request in asked[service.key, port.port] or (None,):
                            yield _cell(mesh, source, service, port.port, family, address, request)


def _cell(
    mesh: Mesh,
    source: Pod,
    destination: Pod | Service,
    port: int,
    family: Family,
    address: Address,
    request: HttpRequest | None = None,
) -> PlannedCell:
    due = expected(mesh, source, destination, port, family, request)
    return PlannedCell(
        source=source,
        destination=destination,
        address=address,
        port=port,
        family=family,
        expected=due.passage,
        due=due,
        request=request,
    )


def _expect(cell: PlannedCell, rows: Sequence[Expectation]) -> PlannedCell:
    row = next((row for row in rows if _names(row, cell)), None) if _is_plain(cell) else None
    return cell if row is None else replace(cell, expected=row.verdict.value)


def _is_plain(cell: PlannedCell) -> bool:
    """Whether a row that names no request speaks of it."""
    return cell.request is None or cell.request == HttpRequest(authority=cell.request.authority)


def _names(row: Expectation, cell: PlannedCell) -> bool:
    return (
        row.source == cell.source.key
        and row.to == f"{cell.to}:{cell.port}"
        and (row.family is None or row.family == cell.family)
    )


def _names_nothing(row: Expectation, mesh: Mesh) -> str:
    to = row.to.rpartition(":")[0]
    if row.source == to:
        why = "a pod's call to its own address is never captured"
    elif "/" not in to and not any(pod.key == row.source and mesh.is_enrolled(pod) for pod in mesh.pods):
        why = "only pods of the mesh call Services, and the caller is not in it"
    else:
        why = "no such pod, port or address of that family"
    return f"spec.expect: the row from {row.source} to {row.to} names no cell of the matrix: {why}"


def _carries_bulk(planned: Sequence[PlannedCell], family: Family) -> PlannedCell | None:
    """The first allowed cell between two pods of ``family``; if there is one, through both proxies of two nodes."""
    pairs = [
        cell
        for cell in planned
        if cell.family == family and cell.expected == cell.oracle == "allow" and isinstance(cell.destination, Pod)
        if cell.listening
    ]
    return min(pairs, key=lambda cell: (not cell.hbone, not _crosses_nodes(cell)), default=None)


def _balanced(mesh: Mesh, planned: Sequence[PlannedCell]) -> set[int]:
    """Of each Service port and family, the first allowed cell from each node, where several echoes may answer."""
    first: dict[tuple[str, int, int, str], PlannedCell] = {}
    for cell in planned:
        echoes = all(mesh.pod(key).program is None for key in cell.ways)
        if cell.oracle == "allow" and len(cell.due.ways) > 1 and echoes and cell.listening and cell.due.is_certain:
            first.setdefault((cell.to, cell.port, cell.family, cell.source.node), cell)
    return {id(cell) for cell in first.values()}


def _counted(planned: Sequence[PlannedCell]) -> set[int]:
    """Return the first cell, in each family, of each rule that decides at random."""
    first: dict[tuple[str, int, int, str], PlannedCell] = {}
    for cell in planned:
        if not cell.due.is_certain and cell.listening:
            first.setdefault((cell.to, cell.port, cell.family, cell.due.rule), cell)
    return {id(cell) for cell in first.values()}


def _crosses_nodes(cell: PlannedCell) -> bool:
    return isinstance(cell.destination, Pod) and cell.destination.node != cell.source.node


def _unlike(twin: PlannedCell, denied: PlannedCell) -> tuple[bool, bool, bool, bool]:
    """Less is more alike: the same address, then the same way of travelling, another caller, the same node."""
    return (
        twin.to != denied.to,
        twin.hbone != denied.hbone,
        twin.source == denied.source,
        twin.source.node != denied.source.node,
    )
