"""Rows of ``spec.expect``: each must name a cell of the matrix, else nothing would ever contradict it."""

from __future__ import annotations

from meshlab.model import FAMILIES, Expectation, Family, Mesh, Pod, Service, Verdict
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes, did_you_mean, listed


def expectations(rows: tuple[Map, ...], mesh: Mesh, notes: Notes) -> tuple[Expectation, ...]:
    """The rows that hold; every other is an issue."""
    known: dict[tuple[str, str, Family], int] = {}
    expect = []
    for row in rows:
        expectation = _row(row, mesh, notes)
        if expectation is not None:
            _refuse_second(row, expectation, known, notes)
            expect.append(expectation)
    return tuple(expect)


def _row(row: Map, mesh: Mesh, notes: Notes) -> Expectation | None:
    if any(key not in row for key in ("from", "to", "verdict")):
        return None  # already noted by the table
    family = row.value("family")
    expectation = Expectation(
        source=row.text("from"),
        to=row.text("to"),
        verdict=Verdict(row.text("verdict")),
        family=family if family in FAMILIES else None,  # type: ignore[arg-type]  # a literal, by the test
    )
    found = faults(expectation, mesh)
    for key, fault in found:
        notes.refuse(row.at(key), fault)
    return None if found else expectation


def faults(row: Expectation, mesh: Mesh) -> list[tuple[str, str]]:
    """Why ``row`` is no call of the mesh, each with the key at fault."""
    found = (("from", _source_fault(row, mesh)), ("to", _destination_fault(row, mesh)))
    return [(key, fault) for key, fault in found if fault]


def _refuse_second(row: Map, new: Expectation, known: dict[tuple[str, str, Family], int], notes: Notes) -> None:
    for family in (new.family,) if new.family else FAMILIES:
        line = known.setdefault((new.source, new.to, family), row.place.line)
        if line != row.place.line:
            notes.refuse(row.place, f"{new.source} to {new.to} over IPv{family} is already on line {line}")
            return


def _source_fault(row: Expectation, mesh: Mesh) -> str:
    pods = [pod.key for pod in mesh.pods]
    if row.source in pods:
        return ""
    return f"no pod '{row.source}' ({listed(pods)}).{did_you_mean(row.source, pods)}"


def _destination_fault(row: Expectation, mesh: Mesh) -> str:
    name, _, port = row.to.rpartition(":")
    if "/" in name:
        return _pod_fault(row, name, port, mesh)
    return _service_fault(row, name, port, mesh)


def _pod_fault(row: Expectation, name: str, port: str, mesh: Mesh) -> str:
    pods = {pod.key: pod for pod in mesh.pods}
    if name not in pods:
        choices = sorted(_ends(pods[key]) for key in pods if pods[key].ports)
        return f"no pod '{name}' ({', '.join(choices)}).{did_you_mean(name, pods)}"
    if name == row.source:
        return f"'{name}' to itself is no cell: a pod's call to its own address is never captured"
    ports = [str(number.number) for number in pods[name].ports]
    if port not in ports:
        return f"pod '{name}' declares no port {port} ({', '.join(ports) or 'it has none'})"
    return ""


def _service_fault(row: Expectation, name: str, port: str, mesh: Mesh) -> str:
    services = {service.key: service for service in mesh.services}
    if name not in services:
        known = f"({listed(services)})" if services else "(there is none)"
        hint = did_you_mean(name, (*services, *(pod.key for pod in mesh.pods)))
        return f"'{row.to}' is neither NAMESPACE/POD:PORT nor SERVICE.NAMESPACE:PORT of a Service {known}.{hint}"
    service = services[name]
    ports = [str(number.port) for number in service.ports]
    if port not in ports:
        return f"Service '{name}' has no port {port} ({', '.join(ports) or 'it has none'})"
    if not any(service.address(family) for family in ((row.family,) if row.family else FAMILIES)):
        over = f" over IPv{row.family}" if row.family else ""
        return f"Service '{name}' has no address to call{over}"
    return _caller_fault(row, service, mesh)


def _caller_fault(row: Expectation, service: Service, mesh: Mesh) -> str:
    callers = [pod for pod in mesh.pods if pod.key == row.source]
    if callers and not mesh.is_enrolled(callers[0]):
        return (
            f"only pods of the mesh call Services, and '{row.source}' is not in it: '{service.key}' is no cell for it"
        )
    return ""


def _ends(pod: Pod) -> str:
    return f"{pod.key}:{'|'.join(str(port.number) for port in pod.ports)}"
