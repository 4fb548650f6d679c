"""Requests of every channel: what is read is what was written, and what is not one of them is refused in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from meshlab.agent import requests as agent
from meshlab.apps import echo_requests as echo
from meshlab.controlplane import requests as plane
from meshlab.kernel import netd_requests as netd
from meshlab.kernel import recorder_requests as recorder
from meshlab.kernel.messages import read, written

CHANNELS: Mapping[str, Mapping[str, Any]] = {
    "netd": netd.REQUESTS,
    "recorder": recorder.REQUESTS,
    "agent": agent.REQUESTS,
    "control plane": plane.REQUESTS,
    "echo": echo.REQUESTS,
}
KINDS = [pytest.param(known, known[op], id=f"{channel}: {op}") for channel, known in CHANNELS.items() for op in known]


@pytest.mark.parametrize(("known", "kind"), KINDS)
def test_a_request_is_read_as_it_was_written(known: Mapping[str, Any], kind: Any) -> None:
    request = kind(**{name: [name] for name in kind._fields if name != "op"})
    travelled = json.loads(json.dumps({"id": 7, "no field of it": 1, **written(request)}))
    assert travelled["op"] == request.op
    found = read(known, travelled)
    assert type(found) is kind
    assert found == request


@pytest.mark.parametrize(("known", "kind"), KINDS)
def test_a_field_without_default_that_is_missing_is_named(known: Mapping[str, Any], kind: Any) -> None:
    given = {name: name for name in kind._fields if name not in kind._field_defaults}
    read(known, {"op": kind._field_defaults["op"], **given})
    for name in given:
        rest = {other: value for other, value in given.items() if other != name}
        with pytest.raises(KeyError, match=name):
            read(known, {"op": kind._field_defaults["op"], **rest})


def test_an_unknown_operation_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no operation 'dance'; there are listen, leave, received"):
        read(echo.REQUESTS, {"op": "dance"})
    with pytest.raises(KeyError, match="op"):
        read(echo.REQUESTS, {})
