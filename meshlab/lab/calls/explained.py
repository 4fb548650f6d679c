"""Whether the meshes that were in effect during a call explain how it ended. Pure.

A change takes time, and meanwhile a proxy may act by the mesh before it or by the mesh after it. So a call is right if
one of them allows it and it was answered, or if one of them denies it and it was refused. Where a pod is not there in
one of them, or is another pod of the same name, no answer is right as well; and so is an answer of the pod that has its
address instead. Of a Service's endpoints that is not so: a caller may expect that none is picked that goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meshlab.lab.calls.endings import is_waypoints
from meshlab.lab.calls.names import behind, owner
from meshlab.model import Call, Family, Mesh, Outcome, Pod, Service
from meshlab.model.route import NO_HTTP
from meshlab.oracle import expected

_NO_ANSWER = Outcome.TIMEOUT | Outcome.UNREACHABLE | Outcome.CLOSED_LATE
NotListening = frozenset[tuple[str, int, Family]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call comes to."""

    failure: str = ""
    """Why no mesh explains it, as a sentence; empty where one does."""
    wrong_identity: bool = False
    """Another pod answered than may."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What one mesh says of a call."""

    verdict: Literal["allow", "deny", "mixed", "absent"]
    rule: str
    answering: frozenset[str] = frozenset()
    """The pods that may answer."""
    waypoints_own: bool = False
    """Whether the answer is one that the waypoint may give by itself."""

    @property
    def allows(self) -> bool:
        return self.verdict in {"allow", "mixed"}


def explain(call: Call, meshes: Sequence[Mesh], not_listening: NotListening = frozenset()) -> Explanation:
    """Judge ``call`` by the meshes of its time.

    Args:
        not_listening: (pod, port, family) where nobody listens: a call there is refused by any mesh.
    """
    said = [_say(mesh, call) for mesh in meshes]
    if any(one.waypoints_own for one in said):
        return Explanation()
    if call.answered:
        return _answered(call, said)
    verdicts = {one.verdict for one in said}
    absent = "absent" in verdicts or _was_replaced(call, meshes)
    if call.refused and (absent or verdicts & {"deny", "mixed"} or _nobody_listens(call, meshes, not_listening)):
        return Explanation()
    if call.outcome in _NO_ANSWER and absent:
        return Explanation()
    if call.outcome is Outcome.CLOSED_LATE and verdicts >= {"allow", "deny"}:
        return Explanation()  # a policy that denies it came into effect in the middle of the answer
    return Explanation(_sentence(call, said))


def _answered(call: Call, said: Sequence[_Said]) -> Explanation:
    allowing = [one for one in said if one.allows or (one.verdict == "absent" and one.answering)]
    answering = frozenset(pod for one in allowing for pod in one.answering)
    if not allowing:
        return Explanation(_sentence(call, said))
    if call.peer is not None and call.peer.pod not in answering:
        who = f"answered by {call.peer.pod}, not by {' or '.join(sorted(answering))}"
        return Explanation(f"{_sentence(call, said)}; {who}", wrong_identity=True)
    return Explanation()


def _say(mesh: Mesh, call: Call) -> _Said:
    source = next((pod for pod in mesh.pods if pod.key == call.source), None)
    if source is None:
        return _Said("absent", f"{call.source} is not there")
    target = owner(mesh, call.to)
    if target is None or target.address(call.family) != call.destination_ip:
        return _elsewhere(mesh, source, call)
    if isinstance(target, Service) and not mesh.is_enrolled(source):
        return _Said("absent", f"nobody carries a Service's address for {source.key}, which is not in the mesh")
    if target == source:
        return _Said("allow", "a pod may call itself", frozenset({source.key}))
    due = expected(mesh, source, target, call.port, call.family, call.request or NO_HTTP, call.started_ns / 1e9)
    return _Said(due.passage, due.rule, due.answering, is_waypoints(call, due))


def _elsewhere(mesh: Mesh, source: Pod, call: Call) -> _Said:
    """What a mesh says where ``call.to`` is not at the address that was called: a pod that has it now may answer.

    A call whose SYN met nobody is answered by whoever has come to the address when Linux sends the next one.
    """
    rule = f"{call.to} is not at {call.destination_ip}"
    now = next((pod for pod in mesh.pods if pod.address(call.family) == call.destination_ip), None)
    if now is None:
        return _Said("absent", rule)
    due = expected(mesh, source, now, call.port, call.family, call.request or NO_HTTP)
    return _Said("absent", f"{rule}, {now.key} is: {due.rule}", due.answering)


def _was_replaced(call: Call, meshes: Sequence[Mesh]) -> bool:
    """Whether the source or the destination went meanwhile, and another pod of its name came."""
    ends = {call.source, call.to.rpartition(":")[0]}
    pods = {(pod.key, pod.incarnation) for mesh in meshes for pod in mesh.pods if pod.key in ends}
    return len(pods) > len({key for key, _ in pods})


def _nobody_listens(call: Call, meshes: Sequence[Mesh], not_listening: NotListening) -> bool:
    reached = ((pod.key, port, call.family) for mesh in meshes for pod, port in behind(mesh, call.to))
    return bool(not_listening) and any(place in not_listening for place in reached)


def _sentence(call: Call, said: Sequence[_Said]) -> str:
    detail = f"{f' {call.status}' if call.status else ''}{f' ({call.error})' if call.error else ''}"
    rules = dict.fromkeys(f"{one.verdict} ({one.rule})" for one in said)
    return f"{call!r}{detail}, and the policies of that time say {', then '.join(rules) or 'nothing'}"
