"""From the bytes of a cell's calls to its result, and why. Pure.

An answer from the wrong place fails a cell whatever else was seen: from another pod, at another port, to a client at
another address. Then what was seen is compared with what was expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshlab.lab.calls.endings import ending
from meshlab.lab.proving.matrix import PlannedCell, missed_by_chance
from meshlab.lab.proving.shares import tally, wrong_answer, wrong_copies, wrong_shares
from meshlab.model import Call, Outcome, Way
from meshlab.model.report import Cell, Passage, Result

_NO_ANSWER = Outcome.REFUSED | Outcome.TIMEOUT | Outcome.UNREACHABLE
_BYTES_CAME_BACK = Outcome.CLOSED_LATE | Outcome.HTTP_STATUS | Outcome.WRONG_BACKEND | Outcome.CORRUPTED


@dataclass(frozen=True, slots=True)
class Arrived:
    """Connections of a cell's caller to the pods that may answer it, of all cells that lead to no others."""

    counted: int
    """By the kernel, in those pods."""
    due: int
    """Made by the caller."""


def judge(
    planned: PlannedCell,
    calls: Sequence[Call],
    arrived: Arrived | None = None,
    *,
    again: Sequence[Call] = (),
    beyond: Mapping[int, str] | None = None,
    received: Mapping[int, Mapping[str, int]] | None = None,
) -> Cell:
    """What the calls of a cell come to; the reason is a sentence wherever it did not hold.

    Args:
        again: a call that was made later, over tunnels that were open already.
        beyond: number of a call -> what its servers counted beyond what the calls made.
        received: number of a call -> pod -> on how many connections its canary came there; if not given, copies of
            requests are not looked for.
        arrived: where only programs listen that answer nobody: what the kernel counted there instead.
    """
    seen = _seen(planned, calls)
    result, reason = _result(planned, seen, calls)
    if arrived is not None and result is not Result.HELD and planned.expected == planned.oracle:
        result, reason = _unanswered(planned, result, reason, arrived)
    if result is Result.HELD and again:
        result, later = _result(replace(planned, balanced=False), _seen(planned, again), again)
        reason = reason if result is Result.HELD else f"over a tunnel that was open already: {later}"
    copies = wrong_copies(planned.due, calls, received) if planned.due.is_read and received is not None else ""
    if result is Result.HELD and copies:
        result, reason = Result.FAILED, copies
    surplus = [beyond[call.number] for call in (*calls, *again) if beyond and call.number in beyond]
    if result is Result.HELD and surplus:
        result, reason = Result.FAILED, surplus[0]
    return Cell(
        source=planned.source.key,
        to=planned.to,
        port=planned.port,
        family=planned.family,
        expected=planned.expected,
        oracle=planned.oracle,
        seen=seen,
        outcome=_outcomes(calls),
        rule=planned.rule,
        request=planned.asked,
        response=tally(calls) if planned.due.shares else "",
        result=result,
        reason=reason,
    )


def _seen(planned: PlannedCell, calls: Sequence[Call]) -> Passage:
    ends: set[Passage] = {ending(call, planned.due) for call in calls}
    if "unclear" in ends or not ends:
        return "unclear"
    return "mixed" if len(ends) > 1 else ends.pop()


def _outcomes(calls: Sequence[Call]) -> str:
    """``ok``, or ``12 ok, 8 reset`` where calls ended differently."""
    counts = Counter(str(call.outcome) for call in calls)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))


def _result(planned: PlannedCell, seen: Passage, calls: Sequence[Call]) -> tuple[Result, str]:
    if planned.expected != planned.oracle:
        return Result.FAILED, (
            f"spec.expect says {planned.expected}, the policies say {planned.oracle}, and the bytes say {seen}"
        )
    if not calls:
        return Result.CANNOT_RUN, "no call was made"
    if planned.due.is_read:
        return _of_requests(planned, calls)
    for call in calls:
        if complaint := _wrong_answer(planned, call):
            return Result.FAILED, complaint
    if planned.counted and (complaint := wrong_shares(planned.due, calls)):
        return Result.FAILED, complaint
    if planned.balanced and seen == "allow" and (left_out := _left_out(planned, calls)):
        return Result.FAILED, left_out
    if seen == planned.expected or (_need_not_answer(planned) and seen != "unclear"):
        return Result.HELD, _in_its_own_words(calls)
    return _surprise(planned, seen, calls)


def _of_requests(planned: PlannedCell, calls: Sequence[Call]) -> tuple[Result, str]:
    """Judge a cell of requests. A share must explain each call, and the numbers of a counted cell must be likely."""
    for call in calls:
        if complaint := wrong_answer(planned.due, call):
            silent = call.outcome in _NO_ANSWER and not planned.listening
            return (Result.CANNOT_TELL if silent else Result.FAILED), complaint
    if planned.counted and (complaint := wrong_shares(planned.due, calls)):
        return Result.FAILED, complaint
    if planned.balanced and (left_out := _left_out(planned, calls)):
        return Result.FAILED, left_out
    return Result.HELD, f"{len(calls)} calls" if planned.counted else ""


def _wrong_answer(planned: PlannedCell, call: Call) -> str:
    """An answer from where none may come, whatever the other calls show."""
    if call.outcome is not Outcome.OK or call.peer is None:
        return ""
    way = planned.ways.get(call.peer.pod)
    if way is None:
        return f"a call was answered by {call.peer.pod}, which is not behind {planned.to}:{planned.port}"
    if call.peer.pod not in planned.due.answering:
        return f"a call that is denied was answered by {call.peer.pod}"
    due = way.connection
    assert due is not None, "a way that a pod answers ends there"
    if call.peer.server_port != due.port:
        return f"a call arrived at port {call.peer.server_port} of {call.peer.pod}, not at {due.port}"
    if call.peer.address != due.source_ip:
        return f"the server saw the client at {call.peer.address}, not at {due.source_ip}{_past(way)}"
    return ""


def _past(way: Way) -> str:
    return f": the call goes {way.path}" if len(way.path.legs) > 1 else ""


def _left_out(planned: PlannedCell, calls: Sequence[Call]) -> str:
    """The endpoint that none of many calls reached, as a sentence; empty where each answered."""
    answered = {call.peer.pod for call in calls if call.peer is not None}
    missing = sorted(planned.ways.keys() - answered)
    if not answered or not missing:
        return ""
    chance = missed_by_chance(len(planned.due.ways))
    return (
        f"none of {len(calls)} fresh connections reached {missing[0]}, and nothing prefers another endpoint"
        f" (a random choice leaves one out with a probability of {chance:.1e})"
    )


def _unanswered(planned: PlannedCell, result: Result, reason: str, arrived: Arrived) -> tuple[Result, str]:
    """What is known of a call to a program that answers nobody: whether the kernel counted its connection there."""
    counted = (
        f"the program answers nobody, not even its own pod, and {arrived.counted} connections of {planned.source.key} "
        f"reached it ({arrived.due} were made)"
    )
    if planned.expected == "allow" and arrived.counted >= arrived.due:
        return Result.HELD, counted
    return result, f"{reason}; {counted}"


def _need_not_answer(planned: PlannedCell) -> bool:
    return not planned.listening and planned.expected != "deny"


def _in_its_own_words(calls: Sequence[Call]) -> str:
    """What a program of a pod's own has answered, where that is not simply the answer that was asked for."""
    others = [call for call in calls if call.answered and call.outcome is not Outcome.OK]
    return f"the pod's own program answered ({_detail(others[0])})" if others else ""


def _detail(call: Call) -> str:
    return f"{call.outcome}{f', {call.error}' if call.error else ''}"


def _surprise(planned: PlannedCell, seen: Passage, calls: Sequence[Call]) -> tuple[Result, str]:
    """``seen`` is not what was expected, and row and oracle agree."""
    if seen == "unclear":
        return _unclear(planned, calls)
    if planned.expected == "mixed":
        side = "was answered, by endpoints that allow it" if seen == "allow" else "was refused"
        return Result.CANNOT_TELL, f"each of {len(calls)} calls {side}, so the others may never have been picked"
    if planned.expected == "deny":
        answer = next(call for call in calls if call.answered)
        return Result.FAILED, f"a call that is denied was answered ({_detail(answer)})"
    refused = next(call for call in calls if ending(call, planned.due) == "deny")
    return Result.FAILED, f"a call that is allowed was refused{f' ({refused.error})' if refused.error else ''}"


def _unclear(planned: PlannedCell, calls: Sequence[Call]) -> tuple[Result, str]:
    call = next(call for call in calls if ending(call, planned.due) == "unclear")
    detail = _detail(call)
    if call.outcome in _BYTES_CAME_BACK:
        return Result.FAILED, f"bytes came back, though not the ones asked for ({detail})"
    if planned.expected == "allow":
        return Result.FAILED, f"a call that is allowed got no answer ({detail})"
    return Result.CANNOT_TELL, f"neither a refusal nor an answer ({detail}), which does not show that a policy decided"
