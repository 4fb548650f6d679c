"""The topologies that come with meshlab: their rows say what the oracle says, and say enough."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from meshlab.lab import sources
from meshlab.model import FAMILIES, Family, Topology, Verdict
from meshlab.oracle import expected
from meshlab.topology import load, read

FOLDER = Path(__file__).parents[2] / "topologies"
SHIPPED = sorted(FOLDER.glob("*.yaml"))

shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


class Cell(NamedTuple):
    source: str
    to: str
    family: Family
    verdicts: frozenset[Verdict]
    """Of each endpoint; one where ``to`` is a pod."""


def _load(path: Path) -> Topology:
    return load(path.read_text(), path.name)


def _cells(topology: Topology) -> list[Cell]:
    """Every ordered pair of different pods, and every pod of the mesh to every Service port."""
    return [*_pod_cells(topology), *_service_cells(topology)]


def _pod_cells(topology: Topology) -> Iterator[Cell]:
    mesh = topology.mesh
    for source in (pod for pod in mesh.pods if not pod.gateway):
        for destination in mesh.pods:
            for port in destination.ports if destination is not source else ():
                for family in FAMILIES:
                    ways = expected(mesh, source, destination, port.number, family).ways
                    verdicts = frozenset(way.verdict for way in ways)
                    yield Cell(source.key, f"{destination.key}:{port.number}", family, verdicts)


def _service_cells(topology: Topology) -> Iterator[Cell]:
    mesh = topology.mesh
    for source in filter(mesh.is_enrolled, mesh.pods):
        for service in mesh.services:
            for port in () if mesh.is_of_waypoint(service) else service.ports:
                for family in FAMILIES:
                    ways = expected(mesh, source, service, port.port, family).ways
                    verdicts = frozenset(way.verdict for way in ways)
                    yield Cell(source.key, f"{service.key}:{port.port}", family, verdicts)


def _rows(topology: Topology) -> dict[tuple[str, str, Family], Verdict]:
    return {
        (row.source, row.to, family): row.verdict
        for row in topology.expect
        for family in ((row.family,) if row.family else FAMILIES)
    }


def _denied(cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.verdicts == {Verdict.DENY}]


def test_three_topologies_are_shipped() -> None:
    assert {"policies", "quickstart", "two-nodes"} <= {path.stem for path in SHIPPED}


def test_those_in_a_folder_have_it_in_their_name() -> None:
    names = {path: name for name, path in sources.shipped().items()}
    assert {names[path] for path in SHIPPED} == {path.stem for path in SHIPPED}
    assert sources.find("pitfalls/node-reboots") == FOLDER / "pitfalls" / "node-reboots.yaml"


@shipped
def test_everything_in_it_can_be_run(path: Path) -> None:
    reading = read(path.read_text(), path.name)
    inert = [issue for issue in reading.inert if "spec.listeners[0].name" not in issue.message]  # Kubernetes wants it
    assert (reading.unrunnable, inert) == ((), [])
    assert reading.topology.name == path.stem


@shipped
def test_its_rows_say_what_the_oracle_says(path: Path) -> None:
    topology = _load(path)
    rows = _rows(topology)
    cells = {(cell.source, cell.to, cell.family): cell.verdicts for cell in _cells(topology)}
    assert {key: {verdict} for key, verdict in rows.items()} == {key: set(cells[key]) for key in rows}


@shipped
def test_every_denied_cell_has_a_row_and_an_allowed_twin(path: Path) -> None:
    """Between pods: what a Service denies follows from its endpoints. Round a waypoint one row stands for all."""
    topology = _load(path)
    rows, cells = _rows(topology), _cells(topology)
    denied_to = {to for (_, to, _), verdict in rows.items() if verdict is Verdict.DENY}
    for cell in _denied(list(_pod_cells(topology))):
        if len(topology.mesh.waypoints) > 1 and denied_to:
            continue
        assert rows.get(cell[:3]) is Verdict.DENY, f"no row for {cell}"
        allowed = [c for c in cells if (c.to, c.family) == (cell.to, cell.family) and c.verdicts == {Verdict.ALLOW}]
        assert not allowed or any(rows.get(twin[:3]) is Verdict.ALLOW for twin in allowed), (
            f"no row for a twin of {cell}"
        )


@shipped
def test_no_service_is_a_matter_of_luck(path: Path) -> None:
    assert [cell for cell in _cells(_load(path)) if len(cell.verdicts) != 1] == []


def test_the_quickstart_has_something_of_everything_and_can_be_read() -> None:
    text = (FOLDER / "quickstart.yaml").read_text()
    topology = load(text, "quickstart.yaml")
    cells = _cells(topology)
    outside = [pod for pod in topology.mesh.pods if not topology.mesh.is_enrolled(pod)]
    assert len(topology.nodes) == 2
    assert len(cells) >= 36
    assert len(_denied(cells)) >= 8
    assert any(pod.service_account != "default" for pod in outside)
    assert len(text.splitlines()) <= 70


def test_the_policies_use_every_l4_field() -> None:
    topology = _load(FOLDER / "policies.yaml")
    rules = [rule for policy in topology.mesh.authorization_policies for rule in policy.rules]
    sources = [source for rule in rules for source in rule.sources]
    operations = [operation for rule in rules for operation in rule.operations]
    positive = ("principals", "namespaces", "service_accounts", "ip_blocks")
    fields = (*positive, *(f"not_{name}" for name in positive))
    unused = [name for name in fields if not any(getattr(source, name) for source in sources)]
    unused += [name for name in ("ports", "not_ports") if not any(getattr(operation, name) for operation in operations)]
    assert unused == []
    assert {condition.key for rule in rules for condition in rule.conditions} == {
        "source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port",
    }  # fmt: skip


def test_addresses_in_the_policies_are_those_of_pods() -> None:
    """They are written out, so a pod that moves in the file must not leave a policy about nobody."""
    topology = _load(FOLDER / "policies.yaml")
    addresses = {str(address) for pod in topology.mesh.pods for address in (pod.ipv4, pod.ipv6)}
    rules = [rule for policy in topology.mesh.authorization_policies for rule in policy.rules]
    named = [block for rule in rules for source in rule.sources for block in source.not_ip_blocks]
    named += [
        value
        for rule in rules
        for condition in rule.conditions
        for value in (*condition.values, *condition.not_values)
        if condition.key in ("source.ip", "destination.ip")
    ]
    assert len(named) == 6
    assert set(named) <= addresses


@pytest.mark.parametrize(
    ("change", "to"), [("action: DENY", "action: ALLOW"), ("verdict: allow", "verdict: deny")], ids=["policy", "row"]
)
def test_a_change_of_the_first_policy_or_row_shows_in_the_table(change: str, to: str) -> None:
    text = (FOLDER / "policies.yaml").read_text()
    topology = load(text.replace(change, to, 1), "changed.yaml")
    rows = _rows(topology)
    verdicts = {cell[:3]: cell.verdicts for cell in _cells(topology)}
    assert [key for key, verdict in rows.items() if verdicts[key] != {verdict}]


def test_names_and_ports_of_the_policies_do_not_matter() -> None:
    text = (FOLDER / "policies.yaml").read_text()
    cells = _cells(load(text, "policies.yaml"))
    words = {word for cell in cells for end in cell[:2] for word in re.split(r"[/.:]", end)}
    ports = {word: str(20000 + number) for number, word in enumerate(sorted(words)) if word.isdigit()}
    renamed = ports | {word: f"q{number:05x}" for number, word in enumerate(sorted(words)) if word.isidentifier()}
    pattern = "|".join(rf"(?<![\w.]){re.escape(word)}(?!\w)" for word in sorted(renamed, key=len, reverse=True))
    again = _cells(load(re.sub(pattern, lambda match: renamed[match[0]], text), "renamed.yaml"))
    assert Counter((c.family, c.verdicts) for c in again) == Counter((c.family, c.verdicts) for c in cells)
    assert not words & {word for cell in again for end in cell[:2] for word in re.split(r"[/.:]", end)}
