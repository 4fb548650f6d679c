"""Writes what became of each test where the tests about the plug-in read it; and a host that can hold no lab."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    entry = {
        "test": report.nodeid.partition("::")[2],
        "when": report.when,
        "outcome": report.outcome,
        "text": report.longreprtext,
        "meshlab": "\n".join(text for title, text in report.sections if title == "meshlab"),
        "properties": dict(report.user_properties),
    }
    with (HERE / "reports.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.fixture
def _host_that_is_not_ready(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, and whether CI is running, are the parameters."""
    from meshlab.errors import HostNotReadyError
    from meshlab.kernel.sandbox import Sandbox

    reason, ci = request.param

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise HostNotReadyError(reason)

    monkeypatch.setattr(Sandbox, "start", refuse)
    monkeypatch.setenv("CI", ci)
