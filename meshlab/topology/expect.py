"""Rows of ``spec.expect``: each must name a cell of the matrix, else nothing would ever contradict it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meshlab.model import FAMILIES, Expectation, Family, Mesh, Pod, Service, Verdict
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes, did_you_mean, listed, shown
from meshlab.topology.shapes import is_port_text

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Ends:
    """Whom a row can name, by name: a file may have as many rows as pods."""

    mesh: Mesh
    pods: Mapping[str, Pod]
    services: Mapping[str, Service]
    _ports: dict[str, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, mesh: Mesh) -> Ends:
        return cls(mesh, {pod.key: pod for pod in mesh.pods}, {service.key: service for service in mesh.services})

    def have(self, name: str, numbers: Iterable[int], port: str) -> bool:
        """Whether ``port`` is among the ``numbers`` of the pod or Service called ``name``."""
        if name not in self._ports:
            self._ports[name] = frozenset(numbers)
        return is_port_text(port) and int(port) in self._ports[name]


def expectations(rows: tuple[Map, ...], ends: Ends, notes: Notes) -> tuple[Expectation, ...]:
    """The rows that hold; every other is an issue."""
    known: dict[tuple[str, str, Family], int] = {}
    expect = []
    for row in rows:
        expectation = _row(row, ends, notes)
        if expectation is not None:
            _refuse_second(row, expectation, known, notes)
            expect.append(expectation)
    return tuple(expect)


def _row(row: Map, ends: Ends, notes: Notes) -> Expectation | None:
    if any(key not in row for key in ("from", "to", "verdict")):
        return None  # already noted by the table
    family = row.value("family")
    expectation = Expectation(
        source=row.text("from"),
        to=row.text("to"),
        verdict=Verdict(row.text("verdict")),
        family=family if family in FAMILIES else None,  # type: ignore[arg-type]  # a literal, by the test
    )
    found = faults(expectation, ends)
    for key, fault in found:
        notes.refuse(row.at(key), fault)
    return None if found else expectation


def faults(row: Expectation, ends: Ends) -> list[tuple[str, str]]:
    """Why ``row`` is no call of the mesh, each with the key at fault."""
    found = (("from", _source_fault(row, ends)), ("to", _destination_fault(row, ends)))
    return [(key, fault) for key, fault in found if fault]


def _refuse_second(row: Map, new: Expectation, known: dict[tuple[str, str, Family], int], notes: Notes) -> None:
    for family in (new.family,) if new.family else FAMILIES:
        line = known.setdefault((new.source, new.to, family), row.place.line)
        if line != row.place.line:
            notes.refuse(row.place, f"{new.source} to {new.to} over IPv{family} is already on line {line}")
            return


def _source_fault(row: Expectation, ends: Ends) -> str:
    if row.source in ends.pods:
        return ""
    return f"no pod {shown(row.source)} ({listed(ends.pods)}).{did_you_mean(row.source, ends.pods)}"


def _destination_fault(row: Expectation, ends: Ends) -> str:
    name, _, port = row.to.rpartition(":")
    if "/" in name:
        return _pod_fault(row, name, port, ends)
    return _service_fault(row, name, port, ends)


def _pod_fault(row: Expectation, name: str, port: str, ends: Ends) -> str:
    if name not in ends.pods:
        choices = listed(_ends(pod) for pod in ends.pods.values() if pod.ports)
        return f"no pod {shown(name)} ({choices}).{did_you_mean(name, ends.pods)}"
    if name == row.source:
        return f"'{name}' to itself is no cell: a pod's call to its own address is never captured"
    ports = ends.pods[name].ports
    if not ends.have(name, (number.number for number in ports), port):
        return f"pod '{name}' declares no port {_not_among(port, [number.number for number in ports])}"
    return ""


def _service_fault(row: Expectation, name: str, port: str, ends: Ends) -> str:
    if name not in ends.services:
        known = f"({listed(ends.services)})" if ends.services else "(there is none)"
        hint = did_you_mean(name, (*ends.services, *ends.pods))
        return f"{shown(row.to)} is neither NAMESPACE/POD:PORT nor SERVICE.NAMESPACE:PORT of a Service {known}.{hint}"
    service = ends.services[name]
    if not ends.have(name, (number.port for number in service.ports), port):
        return f"Service '{name}' has no port {_not_among(port, [number.port for number in service.ports])}"
    if not any(service.address(family) for family in ((row.family,) if row.family else FAMILIES)):
        over = f" over IPv{row.family}" if row.family else ""
        return f"Service '{name}' has no address to call{over}"
    return _caller_fault(row, service, ends)


def _not_among(port: str, numbers: list[int]) -> str:
    return f"{port[:_SHOWN]} ({', '.join(map(str, numbers[:_SHOWN])) or 'it has none'})"


def _caller_fault(row: Expectation, service: Service, ends: Ends) -> str:
    caller = ends.pods.get(row.source)
    if caller is not None and not ends.mesh.is_enrolled(caller):
        return (
            f"only pods of the mesh call Services, and '{row.source}' is not in it: '{service.key}' is no cell for it"
        )
    return ""


def _ends(pod: Pod) -> str:
    return f"{pod.key}:{'|'.join(str(port.number) for port in pod.ports)}"
