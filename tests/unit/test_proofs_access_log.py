"""A ztunnel's access log is a stranger's text: what is no record is skipped, and nothing in it is a traceback."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlab.proofs.access_log import Opened, read_opened

RECORD = {
    "time": "2026-08-01T12:00:00.000001Z",
    "message": "connection opened",
    "direction": "inbound",
    "src.addr": "[fd00::1]:40404",
    "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
    "dst.hbone_addr": "10.0.0.2:8080",
}


def _read(*lines: str) -> list[Opened]:
    return list(read_opened("\n".join(lines)))


def _with(**fields: Any) -> Opened:
    (record,) = _read(json.dumps({**RECORD, **fields}))
    return record


def test_a_record_is_read_into_its_parts() -> None:
    record = _with()
    assert (record.direction, record.source, record.source_port) == ("inbound", "fd00::1", 40404)
    assert (record.hbone, record.destination, record.destination_port) == ("10.0.0.2:8080", "10.0.0.2", 8080)
    assert (record.source_identity, record.destination_identity) == (RECORD["src.identity"], "")
    assert record.at_ns == pytest.approx(1785585600000001000, abs=1000)


OTHER_LINES = [
    '["connection opened"]',
    '"connection opened"',
    '{"message": ["connection opened"]}',
    '{"message": "connection complete", "error": "\\"connection opened\\""}',
    "[" * 50_000 + '"connection opened"',
    '{"a":' * 10_000 + '"connection opened"',
    '{"message": "connection opened", "n": ' + "9" * 5000 + "}",
    '{"message": "connection opened"',
    json.dumps({**RECORD, "padding": "x" * 100_000}),
]


@pytest.mark.parametrize("line", OTHER_LINES, ids=range(len(OTHER_LINES)))
def test_a_line_that_is_no_record_is_skipped_and_the_next_is_read(line: str) -> None:
    assert len(_read(line, json.dumps(RECORD))) == 1


ODD = [None, 7, 1e400, True, [], ["10.0.0.1:1"], {"a": 1}, "", "x", ":", "[", "1:" + "9" * 5000, "1:+5", "1:\u0665"]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("name", ["direction", "src.addr", "dst.hbone_addr", "time"])
def test_a_field_with_an_odd_value_matches_nothing(name: str, value: object) -> None:
    record = _with(**{name: value})
    assert (record.source_port, record.destination_port) in {(40404, 8080), (0, 8080), (40404, 0)}
    assert record.at_ns is None or name != "time"


@pytest.mark.parametrize(
    "time", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "0001-01-01", "9" * 5000], ids=range(4)
)
def test_a_time_that_no_clock_shows_is_none_or_a_number(time: str) -> None:
    assert _with(time=time).at_ns is None or time[0] in "90"


@pytest.mark.parametrize("value", [None, 7, [], {}, "a\nb", "\x1b[31m", "\ud800", "x" * 5000], ids=range(8))
def test_an_identity_that_cannot_be_shown_is_still_a_wrong_one(value: object) -> None:
    seen = _with(**{"src.identity": value}).source_identity
    assert seen.startswith("no ")
    assert seen.isprintable()
    assert len(seen) < 1000
