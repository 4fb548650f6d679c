"""For all of meshlab's own tests: what is not run, or run on something else, does not pass for run.

* In CI a skip is a failure, unless ``[tool.meshlab] allowed_skips`` has its reason.
* A test marked ``meshlab_dataplane`` gets its lab from a fixture, so that ``--meshlab-ztunnel`` reaches it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

from meshlab.pytest_plugin import allowed_skips

_Report = TypeVar("_Report", pytest.TestReport, pytest.CollectReport)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("meshlab_dataplane") and "_meshlab_ztunnel" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(
                f"{item.nodeid} is marked meshlab_dataplane, and no lab of a fixture is in it: it runs on the reference"
            )


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
