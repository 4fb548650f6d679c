"""What users notice while a mesh changes: pods come, go, enter and leave it, and its programs start again.

Each row does one kind of thing again and again under ``lab.traffic``: 200 calls a second in all, 50 open connections.
Between two of them some calls are made, so that each state is seen. A row says what failed and broke, what passed in
plaintext on connections opened after the change was in effect, what older ones still carried, how many calls ended as
another identity explains them, and how long each thing took from the call until it was in effect.

``shop/heir`` may not call the server and ``shop/guest`` may; they follow each other at one address. A call of the heir
that is answered was judged as its predecessor's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.measure import Report, median
from meshlab.errors import UsageError
from meshlab.lab import Lab, open_lab
from meshlab.model import DATAPLANE_MODE

if TYPE_CHECKING:
    from meshlab.lab.calls.background import Traffic

RATE = 200.0
OPEN = 50
_BETWEEN = 20
"""Calls between two changes."""
_BLOCK = 6_000
"""After so many calls a window is read and another is opened: a window holds some ten thousand."""
_TOLD = 3
"""Sentences about a row."""
LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: living}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
    shop/guest: {node: node-1, ports: [8080], serviceAccount: guest}
    moving/client: {node: node-1, serviceAccount: client}
    moving/server: {node: node-2, ports: [8080], serviceAccount: server}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: moving}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-heirs, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/heir]}}]}]
"""
_POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec:
  nodeName: node-1
  serviceAccountName: {name}
  containers: [{{name: c, image: any, ports: [{{containerPort: 8080}}]}}]
"""
_PAIRS = (
    ("shop/client", "http://server.shop:8080/"),
    ("shop/client", "tcp://shop/server:8080"),
)
_MOVING = (
    ("moving/client", "tcp://shop/server:8080"),
    ("shop/client", "tcp://moving/server:8080"),
    ("moving/client", "tcp://moving/server:8080"),
)
_GUESTS = (
    ("shop/guest", "http://server.shop:8080/"),
    ("shop/heir", "http://server.shop:8080/"),
    ("shop/client", "tcp://shop/guest:8080"),
    ("shop/client", "tcp://shop/heir:8080"),
)
_NODES = ("node-1", "node-2")

Change = Callable[[], object]
Turn = Callable[[Lab, int], Iterator[Change]]
"""The changes of one turn, of which each is made when the one before was seen by some calls."""


def _enrolment(lab: Lab, _: int) -> Iterator[Change]:
    yield lab.pod("moving/server").enrol
    yield lab.pod("moving/server").release


def _enrolment_of_a_client(lab: Lab, _: int) -> Iterator[Change]:
    yield lab.pod("moving/client").enrol
    yield lab.pod("moving/client").release


def _recreation(lab: Lab, _: int) -> Iterator[Change]:
    pod = next(pod for pod in lab.mesh.pods if pod.key in ("shop/guest", "shop/heir"))
    yield lambda: lab.delete(_POD.format(name=pod.name))
    yield lambda: lab.apply(_POD.format(name=pod.name))


def _succession(lab: Lab, _: int) -> Iterator[Change]:
    pod = next(pod for pod in lab.mesh.pods if pod.key in ("shop/guest", "shop/heir"))
    heir = "heir" if pod.name == "guest" else "guest"
    status = f"status: {{podIPs: [{{ip: {pod.ipv4}}}, {{ip: '{pod.ipv6}'}}]}}\n"
    yield lambda: lab.delete(_POD.format(name=pod.name))
    yield lambda: lab.apply(_POD.format(name=heir) + status)


def _label_of_a_namespace(lab: Lab, turn: int) -> Iterator[Change]:
    yield lambda: lab.namespace("moving").label({DATAPLANE_MODE: None if turn % 2 else "ambient"})


def _restart_of_a_ztunnel(lab: Lab, turn: int) -> Iterator[Change]:
    yield lab.instance(f"ztunnel@{_NODES[turn % 2]}").restart


def _upgrade_of_a_ztunnel(lab: Lab, turn: int) -> Iterator[Change]:
    yield lab.instance(f"ztunnel@{_NODES[turn % 2]}").upgrade


def _restart_of_an_agent(lab: Lab, turn: int) -> Iterator[Change]:
    yield lab.instance(f"agent@{_NODES[turn % 2]}").restart


def _restart_of_the_control_plane(lab: Lab, _: int) -> Iterator[Change]:
    yield lab.instance("control-plane").restart


def _reboot_of_a_node(lab: Lab, turn: int) -> Iterator[Change]:
    yield lab.node(_NODES[turn % 2]).reboot


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of change."""

    turn: Turn
    times: int
    pairs: tuple[tuple[str, str], ...] = _PAIRS

    @property
    def open(self) -> int:
        """Connections for each pair."""
        return max(1, OPEN // len(self.pairs))


KINDS: Mapping[str, Kind] = {
    "enrolment": Kind(_enrolment, 25, _PAIRS + _MOVING),
    "enrolment-of-a-client": Kind(_enrolment_of_a_client, 25, _PAIRS + _MOVING),
    "recreation": Kind(_recreation, 25, _PAIRS + _GUESTS),
    "succession": Kind(_succession, 25, _PAIRS + _GUESTS),
    "namespace": Kind(_label_of_a_namespace, 20, _PAIRS + _MOVING),
    "ztunnel-restart": Kind(_restart_of_a_ztunnel, 20),
    "ztunnel-upgrade": Kind(_upgrade_of_a_ztunnel, 20),
    "agent-restart": Kind(_restart_of_an_agent, 20),
    "control-plane-restart": Kind(_restart_of_the_control_plane, 20),
    "reboot": Kind(_reboot_of_a_node, 5, _PAIRS + _GUESTS),
}


@dataclass(slots=True)
class Row:
    """What came of one kind of change."""

    name: str
    calls: int = 0
    failed_new: int = 0
    broken_open: int = 0
    in_plaintext: int = 0
    kept_plaintext: int = 0
    wrong_identity: int = 0
    took_ms: list[float] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """Sentences about what failed, of each block the first few."""

    @property
    def held(self) -> bool:
        return bool(self.took_ms) and not self.in_plaintext and not self.wrong_identity

    def add(self, traffic: Traffic) -> None:
        """Add what a block of traffic, which has stopped, has seen."""
        answered = [failure for failure in traffic.failures if failure.call.answered]
        self.calls += traffic.calls_made
        self.failed_new += traffic.failed_new
        self.broken_open += traffic.broken_open
        self.in_plaintext += traffic.in_plaintext
        self.kept_plaintext += traffic.kept_plaintext
        # No row changes a policy: who was answered although its identity is denied was taken for somebody else.
        self.wrong_identity += max(traffic.wrong_identity, len(answered))
        blind = [proof.reason for proof in traffic.proofs if proof.id == "in-plaintext" and proof.result != "held"]
        self.words += [*traffic.leaks[:_TOLD], *map(str, answered[:_TOLD]), *map(str, traffic.failures[:_TOLD]), *blind]

    def line(self) -> str:
        numbers = (self.calls, self.failed_new, self.broken_open, self.in_plaintext, self.kept_plaintext)
        cells = "".join(f"{number:9}" for number in (*numbers, self.wrong_identity))
        return f"{self.name:22}{len(self.took_ms):4}{cells}{median(self.took_ms):9.1f}{max(self.took_ms):9.1f}"


_COLUMNS = ("calls", "failed", "broken", "plain", "kept", "wrong", "median", "worst")
_HEAD = f"{'':22}{'n':>4}{''.join(f'{name:>9}' for name in _COLUMNS)} ms"


def run(rounds: int = 1, ztunnel: str = "reference", rows: Sequence[str] = (), times: int | None = None) -> Report:
    """Every kind of change, or those of ``rows``.

    Args:
        rounds: how often all of it is done; each row has a lab of its own.
        times: turns of each kind in a round; as many as each has, if not given.

    Raises:
        UsageError: there is no such row.
    """
    if unknown := [name for name in rows if name not in KINDS]:
        raise UsageError(f"no row '{unknown[0]}' (there are {', '.join(KINDS)})")
    found = {name: Row(name) for name in rows or KINDS}
    for _ in range(rounds):
        for name, row in found.items():
            with open_lab(LAB, ztunnel=ztunnel) as lab:
                _go_on(lab, KINDS[name], times or KINDS[name].times, row)
            print(f"living: {row.line()}", file=sys.stderr)
    figures = {f"{name}_{what}": value for name, row in found.items() for what, value in _figures(row).items()}
    return Report(
        name="living",
        promise="no byte in plaintext, and no call with a wrong identity, once a change is in effect",
        held=all(row.held for row in found.values()),
        figures=figures,
        lines=(
            f"{RATE:g} calls a second, {OPEN} open connections, {ztunnel}",
            _HEAD,
            *chain.from_iterable(
                (row.line(), *(f"    {word}" for word in row.words[:_TOLD])) for row in found.values()
            ),
        ),
    )


def _figures(row: Row) -> dict[str, float]:
    return {
        "failed_new": row.failed_new,
        "broken_open": row.broken_open,
        "in_plaintext_bytes": row.in_plaintext,
        "kept_plaintext_bytes": row.kept_plaintext,
        "wrong_identity": row.wrong_identity,
        "median_ms": median(row.took_ms),
        "worst_ms": max(row.took_ms),
    }


def _go_on(lab: Lab, kind: Kind, times: int, row: Row) -> None:
    """Take all turns of a kind, with a new block of traffic now and then."""
    turns = iter(range(times))
    while (turn := next(turns, None)) is not None:
        with lab.traffic(kind.pairs, rate=RATE, open=kind.open) as traffic:
            while turn is not None:
                _take(kind.turn(lab, turn), traffic, row)
                turn = next(turns, None) if traffic.calls_made < _BLOCK else None
        row.add(traffic)


def _take(changes: Iterator[Change], traffic: Traffic, row: Row) -> None:
    for change in changes:
        started = time.perf_counter()
        change()
        row.took_ms.append((time.perf_counter() - started) * 1000)
        _see(traffic)


def _see(traffic: Traffic) -> None:
    made = traffic.calls_made
    traffic.wait_for(lambda: traffic.calls_made >= made + _BETWEEN)
