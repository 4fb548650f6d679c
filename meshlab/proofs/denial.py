"""Denied: nothing of a call reached a server, by the servers' own count, and a twin shows that it could have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from meshlab.model import Call, Outcome, Path
from meshlab.model.report import Grade, Proof
from meshlab.proofs.arrivals import Arrivals, Copied, Late, kernel_connections, reached, unexplained
from meshlab.proofs.draft import Draft
from meshlab.proofs.links import Wiring
from meshlab.proofs.route import hops, passed, routes
from meshlab.proofs.window import Window

_DENIES = 400
"""An HTTP status from which on a request is denied."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A call that was allowed where another was denied."""

    call: Call
    paths: Sequence[Path]
    """Those that it may have taken."""


def denied(
    window: Window,
    wiring: Wiring,
    call: Call,
    paths: Sequence[Path],
    arrivals: Arrivals,
    *,
    twin: Twin | None = None,
    instead: str = "",
    calls: Sequence[Call] = (),
    statuses: Collection[int] = (),
    late: Late | None = None,
    copied: Copied | None = None,
) -> Proof:
    """Nothing of the call reached a server, where a twin's bytes did, which shows that they could have.

    Judged by what the servers counted, connections as well as bytes: a call that has sent nothing must not even have
    been connected.

    Args:
        paths: those that the call may have taken; of a Service whose endpoints disagree, those that end in a denial.
        arrivals: what the servers counted since before the call.
        twin: a call of another pod to the same place, which was allowed.
        instead: where everybody is denied, the control that stands for the twin, as a phrase.
        calls: the calls of the window, whose connections are not taken for this call's.
        late: which of them reached a server that answered too late.
        statuses: with which a waypoint may answer a request that it denies.
        copied: where copies of those calls may have gone.
    """
    shown = f"call {twin.call.number} of {twin.call.source} was allowed" if twin else instead
    control = f"{shown}; {window.control}" if shown and window.control else ""
    draft = Draft.of("denied", call, Grade.WIRE, control, 1)
    denied_by_status = call.peer is None and call.status in {status for status in statuses if status >= _DENIES}
    if call.answered and not denied_by_status:
        return draft.failed("it was answered")
    if opposite := _arrived(wiring, call, paths, arrivals, calls, late, copied):
        return draft.failed(f"{opposite} (the caller saw: {call.outcome})")
    if doubt := _uncounted(call, paths, arrivals):
        return draft.cannot_tell(doubt)
    if call.outcome not in Outcome.REFUSED and not denied_by_status:
        return draft.cannot_tell(f"it ended in {call.outcome}, which is no refusal")
    if twin and (problem := _twin_problem(call, paths, twin, arrivals, wiring, same_caller=bool(statuses))):
        return draft.cannot_tell(problem)
    if window.blind:
        return draft.cannot_tell(window.blind)
    packets = sum(passed(window, hop, call) for hop in hops(routes(wiring, call, paths)))
    if not packets:
        return draft.cannot_tell("no packet of it was seen: nothing says that it was refused where it was sent to")
    told = f"HTTP {call.status}" if denied_by_status else str(call.outcome)
    return draft.held(packets, f"{told}, no connection and 0 bytes at the server")


def _arrived(
    wiring: Wiring,
    call: Call,
    paths: Sequence[Path],
    arrivals: Arrivals,
    calls: Sequence[Call],
    late: Late | None,
    copied: Copied | None,
) -> str:
    """What of the call reached a server, or seems to have; empty where nothing did."""
    found = unexplained(arrivals, wiring, call, paths, calls, late, copied)
    if found:
        return f"{found[0]}" + (f", and {len(found) - 1} more" if len(found) > 1 else "")
    if call.number in arrivals.canaries:
        return "its canary reached a server"
    connections = kernel_connections(arrivals, wiring, call, paths)
    if connections and not any(_same_way(call, other) and other.answered for other in calls):
        return f"{connections} connections from its client reached the program there, by the kernel's count"
    return ""


def _uncounted(call: Call, paths: Sequence[Path], arrivals: Arrivals) -> str:
    """Why nobody can say what the servers received of the call; empty where they can."""
    if not paths:
        return f"no pod stands behind {call.to}, so nothing could have arrived"
    if silent := arrivals.uncounted(path.server for path in paths):
        return f"nothing counts what {silent[0].pod}:{silent[0].port} receives"
    if call.started_ns < arrivals.since_ns:
        return "it was made before the window, since which is counted"
    if call.started_ns <= arrivals.forgotten_until_ns:
        return "the echo has forgotten connections of that time: prove in a window of fewer calls"
    return ""


def _same_way(call: Call, other: Call) -> bool:
    return (call.source, call.to, call.family) == (other.source, other.to, other.family) and call != other


def _twin_problem(
    call: Call, paths: Sequence[Path], twin: Twin, arrivals: Arrivals, wiring: Wiring, *, same_caller: bool
) -> str:
    """Why a twin shows nothing; empty where it does.

    Args:
        same_caller: whether it may be of the same caller, who asked for something else.
    """
    other = twin.call
    name = f"call {other.number} of {other.source}"
    same = {path.server for path in paths} & {path.server for path in twin.paths}
    if not same or other.family != call.family or (other.source == call.source and not same_caller):
        return f"call {other.number} ({other.source} -> {other.to} ipv{other.family}) is no twin of it"
    if not other.answered:
        return f"its twin, {name}, ended in {other.outcome}: then no refusal says anything"
    if not reached(arrivals, wiring, other, twin.paths):
        return f"the bytes of its twin, {name}, were not seen at the server either"
    return ""
