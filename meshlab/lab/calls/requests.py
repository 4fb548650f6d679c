"""The one builder of requests: how a call has to be made follows from what is behind its target. Pure.

    plan    what a user asks for, as it stands          pod.http, pod.tcp
    ask     the call whose end is read as a verdict     check, fuzz, replay

A port on which the built-in echo speaks first is asked in TCP, after its greeting. Every other port is asked in HTTP,
a program of a pod's own too: whatever it answers to that is an answer (``Call.answered``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.names import Target, behind, owner, routed
from meshlab.model import Mesh, Service

Kind = Literal["http", "tcp"]
TIMEOUT_S = 5.0
"""How long a call may take unless more is said, from its SYN to its last byte."""


def is_echo(mesh: Mesh, to: str) -> bool:
    """Whether only the built-in echo answers at ``to``; of an address that no pod is behind, nobody knows: False."""
    service = owner(mesh, to) if mesh.routes else None
    reached = [pod for pod, _ in behind(mesh, to)] + (routed(mesh, service) if isinstance(service, Service) else [])
    return bool(reached) and all(pod.program is None for pod in reached)


def speaks_first(mesh: Mesh, to: str) -> bool:
    """Whether an echo greets at ``to`` before it reads (``mode: server-first``)."""
    return any(
        port.server_first
        for pod, number in behind(mesh, to)
        for port in pod.ports
        if port.number == number and pod.program is None
    )


def is_read(mesh: Mesh, source: str, to: str) -> bool:
    """Whether a waypoint reads the requests of ``source`` to ``service.namespace:port``."""
    if not mesh.waypoints:
        return False
    caller = next((pod for pod in mesh.pods if pod.key == source), None)
    service = owner(mesh, to)
    if caller is None or not isinstance(service, Service) or not mesh.is_enrolled(caller):
        return False
    called = to.rpartition(":")[2]
    return any(str(port.port) == called and mesh.reads_requests(service, port) for port in service.ports)


def plan(
    mesh: Mesh,
    source: str,
    target: Target,
    kind: Kind = "http",
    *,
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    half_close: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Request:
    """A call from the pod ``source`` (``namespace/name``) to ``target``; its answer may come from any pod."""
    greeted: Literal["plain", "server-first"] = "plain"
    if kind == "tcp" and speaks_first(mesh, target.to):
        greeted = "server-first"
    return Request(
        source=source,
        to=target.to,
        family=target.family,
        address=target.address,
        port=target.port,
        kind=kind,
        mode="half-close" if half_close else greeted,
        method=method,
        path=path,
        headers=dict(headers or {}),
        body=body,
        timeout_s=timeout_s,
        echo=is_echo(mesh, target.to),
        is_read=kind == "http" and is_read(mesh, source, target.to),
    )


def ask(mesh: Mesh, source: str, target: Target, kind: Kind = "http", *, timeout_s: float = TIMEOUT_S) -> Request:
    """The call that shows whether ``source`` gets through to ``target``: only a pod behind it may answer."""
    request = plan(mesh, source, target, "tcp" if speaks_first(mesh, target.to) else kind, timeout_s=timeout_s)
    answering = frozenset(pod.key for pod, _ in behind(mesh, target.to))  # only the echo says which pod it is in
    return replace(request, expect_peer=answering) if request.echo and not request.is_read else request
