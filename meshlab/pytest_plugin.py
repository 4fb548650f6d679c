"""The pytest plug-in: fixtures ``lab`` and ``lab_factory``, the marker, the options. Loading it loads nothing heavy.

    @pytest.mark.meshlab("two-nodes")          a shipped name, a path (from the test's folder), or YAML text
    def test_it(lab): ...

``lab`` is fresh for each test. ``lab_factory`` is a function that gives context managers, so ``@given`` accepts it.
When a test fails, captures, logs, rules and configuration are saved and the report names their folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

_OPTIONS = {
    "ztunnel": "node proxy: reference, none, an entry point's name, or [NAME=]PATH; repeat to run every test on each",
    "topology": "topology of tests whose marker names none: a shipped name or a path",
    "artifacts": "folder for what failed tests leave (default: meshlab-artifacts)",
    "mutant": "run on a deliberately broken part, to see that your tests notice (`meshlab impls` lists them)",
    "variant": "run on an unusual but right reference (`meshlab impls` lists them)",
}
_MANY = frozenset({"ztunnel"})
_LABS: pytest.StashKey[list[Any]] = pytest.StashKey()
"""The labs that a test has open."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("meshlab", "meshlab: a lab for service-mesh proxies")
    for name, text in _OPTIONS.items():
        group.addoption(f"--meshlab-{name}", action="append" if name in _MANY else "store", default=None, help=text)
        if name in _MANY:
            parser.addini(f"meshlab_{name}", text, type="linelist", default=[])
        else:
            parser.addini(f"meshlab_{name}", text, type="string", default="")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "meshlab(topology, *, ztunnel=None, ready_timeout_s=None): the lab of this test")
    config.addinivalue_line("markers", "meshlab_dataplane: this test holds for any right data plane")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "_meshlab_ztunnel" in metafunc.fixturenames:
        chosen = _option(metafunc.config, "ztunnel") or [None]
        ids = [_label(text) if text else "topology" for text in chosen]
        metafunc.parametrize(
            "_meshlab_ztunnel", chosen, ids=ids if len(chosen) > 1 else None, indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def _meshlab_ztunnel(request: pytest.FixtureRequest) -> str | None:
    """The node proxy this run is for; ``None``: what the topology says."""
    chosen = _option(request.config, "ztunnel") or [None]
    value: str | None = getattr(request, "param", chosen[0])
    return value


@pytest.fixture(scope="session")
def lab_factory(request: pytest.FixtureRequest, _meshlab_ztunnel: str | None) -> LabFactory:
    """``lab_factory(topology)``: a context manager that builds a lab and closes it again."""

    def factory(topology: str | None = None, **settings: Any) -> AbstractContextManager[Lab]:
        return _open(request.config, topology, Path.cwd(), _meshlab_ztunnel, settings)

    return factory


@pytest.fixture
def lab(
    request: pytest.FixtureRequest, _meshlab_ztunnel: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A running lab, fresh for this test, of the topology that the test's ``meshlab`` marker names."""
    marker = request.node.get_closest_marker("meshlab")
    topology = marker.args[0] if marker and marker.args else None
    settings = dict(marker.kwargs) if marker else {}
    settings["binds"] = (str(tmp_path_factory.getbasetemp()), *settings.get("binds", ()))
    with _open(request.config, topology, request.path.parent, _meshlab_ztunnel, settings) as running:
        request.node.stash.setdefault(_LABS, []).append(running)
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A part of the lab that ended during the test fails this test, by name, not only its teardown."""
    result = yield
    for running in pyfuncitem.stash.get(_LABS, []):
        running.audit()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for running in item.stash.get(_LABS, []):
            report.sections.append(("meshlab", _save(item, running)))
    return report


def pytest_unconfigure() -> None:
    import sys

    if "meshlab.kernel.forkserver" in sys.modules:
        sys.modules["meshlab.kernel.forkserver"].ForkServer.close_shared()


@contextmanager
def _open(
    config: pytest.Config, topology: str | None, folder: Path, ztunnel: str | None, settings: dict[str, Any]
) -> Iterator[Lab]:
    """A lab for a test; where this machine cannot hold one, the test is skipped with the fix, or fails under CI."""
    from meshlab.errors import HostNotReadyError
    from meshlab.lab import open_lab
    from meshlab.lab.sources import read

    wanted = topology or _option(config, "topology") or "quickstart"
    settings.setdefault("ztunnel", ztunnel)
    for name in ("mutant", "variant"):
        settings.setdefault(name, _option(config, name) or None)
    with ExitStack() as stack:
        try:
            running = stack.enter_context(open_lab(read(wanted, folder), **settings))
        except HostNotReadyError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        yield running


def _option(config: pytest.Config, name: str) -> Any:
    """Command line, then ``MESHLAB_NAME``, then the ini file."""
    given = config.getoption(f"--meshlab-{name}")
    if given:
        return given
    from_env = os.environ.get(f"MESHLAB_{name.upper()}")
    if from_env:
        return from_env.split(os.pathsep) if name in _MANY else from_env
    return config.getini(f"meshlab_{name}")


def _label(ztunnel: str) -> str:
    name, equals, _ = ztunnel.partition("=")
    return name if equals and "/" not in name else ztunnel.rsplit("/", 1)[-1]


def _save(item: pytest.Item, running: Lab) -> str:
    name = re.sub(r"[^\w.-]+", "-", item.nodeid).strip("-")
    folder = Path(_option(item.config, "artifacts") or "meshlab-artifacts") / name
    try:
        running.save(folder)
    except Exception as error:  # the test's own failure must stay the headline
        return f"what the lab saw could not be saved: {type(error).__name__}: {error}"
    return f"captures, logs, rules and configuration of this lab: {folder}\nagain: pytest '{item.nodeid}'"
