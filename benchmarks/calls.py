"""Calls a second, proofs included, and where the time goes.

One round is some thousand calls through both node proxies, over pooled tunnels, in one window: its beacons, the calls
in batches of ``lab.calls``, the analysis, and ``prove_encrypted`` for each call. The floor is the same between two pods
out of the mesh, with ``prove_path``: what kernel, client, echo and recorder cost without a proxy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Report, cpu_s, median, processes
from meshlab.lab import Lab, open_lab
from meshlab.lab.sources import read
from meshlab.model import Call, Outcome

BATCHES = (32, 253)
FEWEST_PER_S = 400.0
_CALLS = 1012
_LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: calls}
spec:
  nodes: [node-1, node-2]
  pods:
    mesh/client: {node: node-1}
    mesh/server: {node: node-2, ports: [8080]}
    plain/client: {node: node-1}
    plain/server: {node: node-2, ports: [8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One window full of calls."""

    calls: int
    called_s: float
    whole_s: float
    """With the window's ends, the analysis and the proofs."""
    cpu_s: Mapping[str, float]
    """By program; ``client`` calls, ``proofs`` is the rest of the test's own process."""


def run(rounds: int = 5, ztunnel: str = "reference", batches: Sequence[int] = BATCHES, calls: int = _CALLS) -> Report:
    """Mesh and floor, with each size of batch, once a round."""
    made: dict[tuple[str, int], list[Round]] = {(where, size): [] for size in batches for where in ("mesh", "plain")}
    with open_lab(read(_LAB), ztunnel=ztunnel) as lab:
        pids = processes(lab.sandbox, {program.pid: name for name, program in lab.site.programs.by_name.items()})
        for where in ("mesh", "plain"):
            _call(lab, where, 64, 64)  # tunnels, caches, code that is loaded late
        for _ in range(rounds):
            for (where, size), of_kind in made.items():
                of_kind.append(measured(lab, pids, where, size, calls))
    rates = {kind: median(one.calls / one.whole_s for one in of_kind) for kind, of_kind in made.items()}
    slowest = min(rates["mesh", size] for size in batches)
    return Report(
        name="calls",
        promise=f"at least {FEWEST_PER_S:g} calls a second through both node proxies ({ztunnel}), proofs included",
        held=slowest >= FEWEST_PER_S,
        figures={
            **{f"{where}_in_batches_of_{size}_per_s": rate for (where, size), rate in rates.items()},
            **{f"floor_ratio_{size}": rates["mesh", size] / rates["plain", size] for size in batches},
        },
        lines=tuple(line for kind, of_kind in made.items() for line in _lines(*kind, rates[kind], of_kind)),
    )


def measured(lab: Lab, pids: Mapping[str, int], where: str, size: int, count: int) -> Round:
    """Make and prove ``count`` calls in one window; every one of them must hold."""
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    own = [time.process_time()]
    started = time.perf_counter()
    with lab.capture() as capture:
        called = time.perf_counter()
        own.append(time.process_time())
        made = _call(lab, where, size, count)
        called_s = time.perf_counter() - called
        own.append(time.process_time())
    if where == "mesh":
        capture.prove_encrypted(*made)
    else:
        for call in made:
            capture.prove_path(call)
    whole_s = time.perf_counter() - started
    own.append(time.process_time())
    spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    client = own[2] - own[1]
    return Round(count, called_s, whole_s, {"client": client, "proofs": own[3] - own[0] - client, **spent})


def _call(lab: Lab, where: str, size: int, count: int) -> list[Call]:
    request = lab.pod(f"{where}/client").plan_http(f"http://{where}/server:8080/benchmark")
    made: list[Call] = []
    for start in range(0, count, size):
        made += lab.calls([request] * min(size, count - start))
    if wrong := next((call for call in made if call.outcome is not Outcome.OK), None):
        raise RuntimeError(f"call {wrong.number} ended in {wrong.outcome}: {wrong.error}")
    return made


def _lines(where: str, size: int, rate: float, rounds: Sequence[Round]) -> list[str]:
    per_call = {name: median(one.cpu_s[name] / one.calls for one in rounds) * 1000 for name in rounds[0].cpu_s}
    spent = [f"{name} {ms:.2f}" for name, ms in per_call.items() if ms >= 0.005]
    only = median(one.calls / one.called_s for one in rounds)
    title = "through both node proxies" if where == "mesh" else "out of the mesh (the floor)"
    return [
        f"batches of {size:3}, {title}: {rate:.0f} calls a second with proofs, {only:.0f} without",
        f"    CPU ms a call: {sum(per_call.values()):.2f} = {', '.join(spent)}",
    ]
