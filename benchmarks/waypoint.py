"""What a waypoint costs, and how soon it does what it is told.

    direct     client, server: two pods out of the mesh, the kernel's floor
    ztunnel    client, ztunnel, ztunnel, server
    waypoint   client, ztunnel, waypoint, ztunnel, server: its requests are read

The three are called in turn, so that what the machine does otherwise meets all of them. Then a route is changed again
and again: each change is applied, and the next call has to be answered by the new one.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

from benchmarks.measure import Report, median, processes, pss_mib
from meshlab.errors import UsageError
from meshlab.lab import Lab, open_lab
from meshlab.lab.calls.attempt import Request
from meshlab.lab.sources import read
from meshlab.model import Call

ROUNDS = 5
CHANGES = 1000
_ONE_BY_ONE = 100
_AT_ONCE = 128
_FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: waypoint-cost}
spec:
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
    plain/client: {node: node-1}
    plain/server: {node: node-2, ports: [8080]}
  waypoints:
    shop/gate: {node: node-2}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
_ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: shop}
spec: {hosts: [server], http: [{directResponse: {status: %d}}]}
"""
_PATHS = {
    "direct": ("plain/client", "http://plain%2Fserver:8080/"),
    "ztunnel": ("shop/client", "http://shop%2Fserver:8080/"),
    "waypoint": ("shop/client", "http://server.shop/"),
}


def run(rounds: int = ROUNDS, changes: int = CHANGES, ztunnel: str = "reference") -> Report:
    """Both waypoints, one after the other."""
    figures: dict[str, float] = {}
    lines: list[str] = []
    stale = 0
    for waypoint in ("envoy", "reference"):
        try:
            with open_lab(read(_FILE), waypoint=waypoint, ztunnel=ztunnel) as lab:
                _cost(lab, waypoint, rounds, figures, lines)
                stale += _changes(lab, waypoint, changes, figures, lines)
        except UsageError as error:
            lines.append(f"{waypoint}: not measured: {error}")
    promise = f"in {changes} changes of a route no call is answered by the old one after apply has returned"
    return Report("waypoint", promise, stale == 0 and bool(figures), figures, tuple(lines))


def _cost(lab: Lab, waypoint: str, rounds: int, figures: dict[str, float], lines: list[str]) -> None:
    took: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for path in _PATHS:
        lab.calls([_plan(lab, path)] * 8)  # tunnels open
    for _ in range(rounds):
        for path in _PATHS:
            took[path] += [_ms(lab.calls([_plan(lab, path)])[0]) for _ in range(_ONE_BY_ONE)]
        for path in _PATHS:
            calls = lab.calls([_plan(lab, path)] * _AT_ONCE)
            last, first = max(call.ended_ns for call in calls), min(call.started_ns for call in calls)
            rates[path].append(_AT_ONCE / ((last - first) / 1e9))
    for path in _PATHS:
        p50, p99 = median(took[path]), statistics.quantiles(took[path], n=100)[98]
        rate = median(rates[path])
        floor_p50, floor_rate = median(took["direct"]), median(rates["direct"])
        figures |= {f"{waypoint}_{path}_p50_ratio": p50 / floor_p50, f"{waypoint}_{path}_rate_ratio": rate / floor_rate}
        lines.append(
            f"{waypoint:9} {path:8} p50 {p50:6.2f} ms ({p50 / floor_p50:4.1f} x direct), p99 {p99:6.2f} ms,"
            f" {rate:6.0f} calls/s ({rate / floor_rate:4.2f} x direct)"
        )
    pids = processes(lab.sandbox, {program.pid: name for name, program in lab.site.programs.by_name.items()})
    mib = {name: pss_mib(pid) for name, pid in pids.items()}
    lines.append(f"{waypoint:9} memory   " + ", ".join(f"{name} {size:.0f} MiB" for name, size in sorted(mib.items())))


def _changes(lab: Lab, waypoint: str, changes: int, figures: dict[str, float], lines: list[str]) -> int:
    """Returns how many calls were answered by an old route."""
    ms, stale = [], 0
    plan = _plan(lab, "waypoint")
    for number in range(changes):
        status = 201 + number % 2
        started = time.monotonic()
        lab.apply(_ROUTE % status)
        stale += lab.calls([plan])[0].status != status
        ms.append((time.monotonic() - started) * 1000)
    figures[f"{waypoint}_apply_to_answer_ms"] = median(ms)
    lines.append(f"{waypoint:9} changes  {changes}, {stale} stale; from apply to its first answer {median(ms):.1f} ms")
    return stale


def _plan(lab: Lab, path: str) -> Request:
    pod, url = _PATHS[path]
    return lab.pod(pod).plan_http(url)


def _ms(call: Call) -> float:
    return (call.ended_ns - call.started_ns) / 1e6
