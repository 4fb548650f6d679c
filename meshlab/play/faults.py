"""Says what went wrong with a call. Campaigns and played files judge their calls here alike; nothing is raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshlab.apps import language
from meshlab.lab import Lab
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.endings import ending
from meshlab.lab.calls.names import due_of
from meshlab.lab.proving.capture import Capture
from meshlab.lab.proving.shares import wrong_answer, wrong_shares
from meshlab.model import Call, CallShape, Expected, Mesh, Verdict, Way
from meshlab.model.report import Result

_PLAIN = CallShape()


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that should not be so."""

    kind: str
    """``verdict``, ``in-clear``, ``identity``, ``open``, ``traffic``, ``accepted``, ``rejected`` or ``lost``."""
    text: str
    """A sentence, with the deciding rule where there is one."""
    source: str = ""
    to: str = ""
    family: int = 0
    seen: str = ""
    number: int = 0
    """The call's number in its lab."""
    stage: int = 0
    """Its place among the stages of an example, or among the steps of a file."""
    expect: Verdict | None = None
    """Of a wrong verdict: what the policies say."""
    shape: CallShape = _PLAIN
    """Of a wrong verdict: what the call sent."""


def shaped(lab: Lab, plain: Request, shape: CallShape) -> Request:
    """``plain`` as ``shape`` has it; a port that speaks first is listened to, whatever it says."""
    request = replace(plain, body=shape.body())
    if lab.speaks_first(plain.to):
        return replace(request, kind="tcp", mode="server-first")
    if shape.kind == "tcp":
        return replace(request, kind="tcp", mode=shape.mode, is_read=False)
    headers = {**plain.headers, **dict(shape.headers)}
    return replace(request, mode=shape.mode, method=shape.method, path=shape.path, headers=headers)


def fault(mesh: Mesh, call: Call, *, allowed: bool, arrived: str) -> str:
    """How ``call`` did not end as it should have; empty where it did.

    Of a request that a waypoint reads more is known than whether it is allowed: which pod may answer, or with which
    status the waypoint does, what the server has to see of it, and what of the answer comes back.

    Args:
        arrived: what reached a server and should not have, in words (``lab.proving.arrivals.arrived``); else empty.
    """
    detail = f"{call.outcome}{f' ({call.error})' if call.error else ''}"
    due = due_of(mesh, call) if allowed or mesh.waypoints else Expected((), "")  # then only its end counts
    if due.shares and call.request is not None and (complaint := wrong_answer(due, call)):
        return complaint
    end = ending(call, due)
    if allowed:
        if end != "allow":
            return detail
        way = _way(due, call)
        if way is not None and way.connection is not None and call.peer is not None:
            seen, expected = call.peer, way.connection
            if seen.address != expected.source_ip and way.path.leaves_its_pod:
                return f"the server saw the client at {seen.address}, not {expected.source_ip}"
            if seen.server_port != expected.port:
                return f"it arrived at port {seen.server_port}, not {expected.port}"
        return arrived
    if end != "deny":
        return detail
    return f"{detail}, and {arrived}" if arrived else ""


def miscounted(mesh: Mesh, calls: Sequence[Call]) -> str:
    """What equal calls came to too seldom or too often to be chance, as half a sentence; empty where nothing is."""
    first = calls[0]
    if first.request is None:
        return ""
    common = tuple(pair for pair in first.request.headers if not pair[0].startswith(language.OWN_HEADERS))
    due = due_of(mesh, replace(first, request=replace(first.request, headers=common)))  # without its own canary
    return "" if due.is_certain else wrong_shares(due, calls)


def _way(due: Expected, call: Call) -> Way | None:
    """The way to the pod that answered."""
    return next((way for way in due.ways if call.peer is not None and way.path.server.pod == call.peer.pod), None)


def in_clear(capture: Capture, calls: Sequence[Call]) -> tuple[list[Wrong], str]:
    """Return what was in plaintext of calls between enrolled pods, and why that could not be told, if it could not."""
    if not calls:
        return [], ""
    proofs = [(call, proof) for call, proof in zip(calls, capture.encrypted(calls), strict=True)]
    wrong = [
        _in_clear(call, f"{named(call)}: {proof.reason}") for call, proof in proofs if proof.result is Result.FAILED
    ]
    everywhere = [proof for proof in capture.nothing_in_clear(calls) if proof.result is Result.FAILED]
    if everywhere and not wrong:
        wrong = [_in_clear(calls[0], f"{everywhere[0].id}: {everywhere[0].reason}")]
    doubts = [proof.reason for _, proof in proofs if proof.result is Result.CANNOT_TELL]
    return wrong, doubts[0] if doubts else ""


def named(call: Call, shape: CallShape = _PLAIN) -> str:
    """Who called whom, for a sentence; where ``shape`` has headers, also what it asked for."""
    asked = ", ".join(f"{name}: {value}" for name, value in shape.headers)
    return (
        f"{call.source} -> {call.to} over IPv{call.family}{f' ({shape.method} {shape.path}, {asked})' if asked else ''}"
    )


def is_tunnelled(mesh: Mesh, call: Call) -> bool:
    """Whether the call leaves its pod, and is carried by HBONE wherever it may go."""
    paths = due_of(mesh, call).paths
    return bool(paths) and all(path.leaves_its_pod and path.is_hbone for path in paths)


def _in_clear(call: Call, text: str) -> Wrong:
    return Wrong("in-clear", text, call.source, call.to, call.family, "in clear", call.number)
