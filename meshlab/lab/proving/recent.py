"""The last calls of a lab, and what the policies of that moment say of each: where to look first when a test failed."""

from __future__ import annotations

from meshlab.lab.calls.names import due_of, owner
from meshlab.model import Call, Mesh


def sentence(mesh: Mesh, call: Call) -> str:
    """``call 2: shop/intruder -> shop/server:8080 over IPv4: ok; the policies deny it (AuthorizationPolicy ...)``."""
    seen = f"{call.outcome}{f' {call.status}' if call.status else ''}{f' ({call.error})' if call.error else ''}"
    said = f"call {call.number}: {call.source} -> {call.to} over IPv{call.family}: {seen}"
    verdict, rule = _decision(mesh, call)
    return f"{said}; the policies {verdict} it ({rule})" if verdict else said


def _decision(mesh: Mesh, call: Call) -> tuple[str, str]:
    """``allow``, ``deny`` or, of a Service whose endpoints disagree, ``mixed``; empty for an outside address."""
    target = owner(mesh, call.to)
    if target is None or target.key == call.source:
        return "", ""
    told = due_of(mesh, call)
    return told.passage, told.rule
