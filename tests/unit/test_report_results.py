"""From rows to a result, and from a result to an exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from meshlab.model.report import Cell, CheckReport, Grade, Proof, Result

CELL = Cell(
    source="shop/client",
    to="shop/server",
    port=8080,
    family=4,
    expected="allow",
    oracle="allow",
    seen="allow",
    outcome="ok",
    rule="no policy selects shop/server",
    result=Result.HELD,
)
PROOF = Proof(
    id="encrypted:shop/client->shop/server:8080/4",
    kind="encrypted",
    source="shop/client",
    to="shop/server",
    port=8080,
    family=4,
    grade=Grade.WIRE,
    packets=12,
    canaries=1,
    control="4 beacons",
    result=Result.HELD,
)


def _report(*results: Result, audit: tuple[str, ...] = ()) -> CheckReport:
    cells = tuple(replace(CELL, result=result) for result in results)
    return CheckReport(topology="quickstart", implementations={}, cells=cells, audit=audit)


@pytest.mark.parametrize(
    ("results", "result", "code"),
    [
        ((Result.HELD, Result.HELD), Result.HELD, 0),
        ((Result.HELD, Result.FAILED), Result.FAILED, 1),
        ((Result.HELD, Result.CANNOT_TELL), Result.CANNOT_TELL, 4),
        ((Result.CANNOT_TELL, Result.FAILED), Result.FAILED, 1),
        ((Result.CANNOT_RUN, Result.HELD), Result.CANNOT_RUN, 3),
        ((Result.CANNOT_RUN, Result.CANNOT_TELL), Result.CANNOT_RUN, 3),
        ((), Result.CANNOT_RUN, 5),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, tuple) else None,
)
def test_the_worst_row_decides(results: tuple[Result, ...], result: Result, code: int) -> None:
    report = _report(*results)
    assert report.result is result
    assert report.exit_code == code


def test_a_proof_that_fails_fails_the_check() -> None:
    failed = replace(PROOF, result=Result.FAILED)
    assert CheckReport(topology="t", implementations={}, cells=(CELL,), proofs=(failed,)).exit_code == 1


@pytest.mark.parametrize("results", [(Result.HELD,), (Result.CANNOT_TELL,), ()])
def test_whatever_the_audit_finds_fails_the_check(results: tuple[Result, ...]) -> None:
    report = _report(*results, audit=("node-1: ztunnel exited with status 101",))
    assert (report.result, report.exit_code) == (Result.FAILED, 1)


def test_the_json_form_has_the_keys_that_scripts_rely_on() -> None:
    report = CheckReport(
        topology="quickstart",
        implementations={"node-1": "reference"},
        cells=(CELL,),
        proofs=(PROOF,),
        artifacts="out",
        timings_ms={"build": 1.5},
    )
    assert json.loads(json.dumps(report.to_json())) == {
        "schemaVersion": 1,
        "topology": "quickstart",
        "implementations": {"node-1": "reference"},
        "result": "held",
        "cells": [
            {
                "from": "shop/client",
                "to": "shop/server",
                "port": 8080,
                "family": 4,
                "expected": "allow",
                "oracle": "allow",
                "seen": "allow",
                "outcome": "ok",
                "rule": "no policy selects shop/server",
                "result": "held",
                "reason": "",
            }
        ],
        "proofs": [
            {
                "id": "encrypted:shop/client->shop/server:8080/4",
                "kind": "encrypted",
                "from": "shop/client",
                "to": "shop/server",
                "port": 8080,
                "family": 4,
                "grade": "wire",
                "packets": 12,
                "canaries": 1,
                "control": "4 beacons",
                "result": "held",
                "reason": "",
            }
        ],
        "steps": [],
        "audit": [],
        "notes": [],
        "artifacts": "out",
        "unsaved": [],
        "timings_ms": {"build": 1.5},
    }
