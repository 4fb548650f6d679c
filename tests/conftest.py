"""For all of meshlab's own tests: in CI a skip is a failure, unless ``[tool.meshlab] allowed_skips`` has its reason."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

from meshlab.pytest_plugin import allowed_skips

_Report = TypeVar("_Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return report if hasattr(report, "wasxfail") else _no_skip_in_ci(report, item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skip_in_ci((yield), collector.config)


def _no_skip_in_ci(report: _Report, config: pytest.Config) -> _Report:
    if not report.skipped or os.environ.get("CI") != "true":
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(allowed in reason for allowed in allowed_skips(config)):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, for a reason that pyproject.toml does not allow there: {reason}"
    return report
