"""The last calls of a lab, and what the policies of that moment say of each: where to look first when a test failed."""

from __future__ import annotations

from meshlab.model import Call, Mesh, Pod, Service
from meshlab.oracle import connection, decide, decide_service


def sentence(mesh: Mesh, call: Call) -> str:
    """``call 2: shop/intruder -> shop/server:8080 over IPv4: ok; the policies deny it (AuthorizationPolicy ...)``."""
    seen = f"{call.outcome}{f' {call.status}' if call.status else ''}{f' ({call.error})' if call.error else ''}"
    said = f"call {call.number}: {call.source} -> {call.to} over IPv{call.family}: {seen}"
    verdict, rule = _decision(mesh, call)
    return f"{said}; the policies {verdict} it ({rule})" if verdict else said


def _decision(mesh: Mesh, call: Call) -> tuple[str, str]:
    """``allow``, ``deny`` or, of a Service whose endpoints disagree, ``mixed``; empty for an outside address."""
    source, target = mesh.pod(call.source), _target(mesh, call.to)
    if isinstance(target, Service):
        of_service = decide_service(mesh, source, target, call.port, call.family)
        return of_service.expected, of_service.rule
    if target is None or target == source:
        return "", ""
    decision = decide(mesh, connection(mesh, source, target, call.port, call.family))
    return decision.verdict.value, decision.rule


def _target(mesh: Mesh, to: str) -> Pod | Service | None:
    name = to.rpartition(":")[0]
    owners: list[Pod | Service] = [*mesh.pods, *mesh.services]
    return next((owner for owner in owners if owner.key == name), None)
