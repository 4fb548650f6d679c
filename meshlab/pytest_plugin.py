"""The pytest plug-in: fixtures ``lab`` and ``lab_factory``, two markers, the options. Loading it loads nothing heavy.

    @pytest.mark.meshlab("two-nodes")          a shipped name, a path (from the test's folder), or YAML text
    def test_it(lab): ...

``lab`` is fresh for each test, or with ``--meshlab-reuse`` proven as good. ``lab_factory`` gives context managers, so
``@given`` accepts it and a fixture of yours can share one lab. What a lab saw is saved where a test fails, and nowhere
else; the report names the folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from meshlab.errors import AuditError, HostNotReadyError, LabLostError, MeshlabError, UsageError

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.pool import Opened, Pool


class LabFactory(Protocol):
    """What ``lab_factory`` is; ``settings`` are the fields of ``meshlab.lab.settings.Settings``."""

    def __call__(self, topology: str | Path | None = None, **settings: Any) -> AbstractContextManager[Lab]: ...


OPTIONS = {
    "ztunnel": "node proxy: reference, none, an entry point's name, or [NAME=]PATH; repeat it to run tests on each",
    "waypoint": "what runs as waypoints: reference, envoy, none, an entry point's name, or [NAME=]PATH of an Envoy",
    "topology": "topology of labs that name none: a shipped name or a path (default: quickstart)",
    "artifacts": "folder for what failed tests leave (default: meshlab-artifacts)",
    "mutant": "break a part on purpose, to see that your tests notice (`meshlab impls` lists them)",
    "variant": "use an unusual but right part (`meshlab impls` lists them)",
    "reuse": "so many used labs, at most, wait in each worker for a further test, proven as good as new (default: 0)",
}
_REPEATABLE = "ztunnel"
_RUNNING: pytest.StashKey[pytest.Item] = pytest.StashKey()
_FIXTURES: pytest.StashKey[list[str]] = pytest.StashKey()
"""Names of the fixtures that are being set up, the innermost last."""
_OPEN: pytest.StashKey[list[_Opening]] = pytest.StashKey()
"""The labs that this process has open."""
_POOL: pytest.StashKey[Pool] = pytest.StashKey()
"""Labs that wait for their next test."""
_GIVEN: pytest.StashKey[list[Lab]] = pytest.StashKey()
"""Labs that a test has given back before it has ended."""
_SAVED: pytest.StashKey[list[tuple[Path, str]]] = pytest.StashKey()
"""Folders that the labs of a test left, with what its report says of each."""


# --- options ---------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("meshlab", "meshlab: a lab for service-mesh proxies")
    for name, text in OPTIONS.items():
        action = "append" if name == _REPEATABLE else "store"
        group.addoption(f"--meshlab-{name}", action=action, metavar=name.upper(), help=text)
        if name == _REPEATABLE:
            parser.addini(f"meshlab_{name}", text, type="linelist", default=[])
        else:
            parser.addini(f"meshlab_{name}", text, type="string", default="")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "meshlab(topology, **settings): what the fixture lab is; e.g. ztunnel=, ready_timeout_s="
    )
    config.addinivalue_line("markers", "meshlab_dataplane: this test holds for any right data plane")
    config.stash[_OPEN] = []
    config.stash[_FIXTURES] = []
    try:
        for text in _ztunnels(config):
            _name(text)
        if waypoint := _waypoint(config):
            from meshlab.implementations import resolve_waypoint

            resolve_waypoint(waypoint)
        mutant, variant = (next(iter(asked(config, option)[0]), None) for option in ("mutant", "variant"))
        if mutant or variant:
            from meshlab.testing.registry import accept

            accept(mutant, variant)
        _most(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    if (pool := config.stash.get(_POOL, None)) is not None:
        pool.close()
    forkserver = sys.modules.get("meshlab.kernel.forkserver")
    if forkserver is not None:
        forkserver.ForkServer.close_shared()


def asked(config: pytest.Config, name: str) -> tuple[list[str], Path]:
    """What an option says, and where its relative paths start: command line, ``MESHLAB_NAME``, then the ini file."""
    given = config.getoption(f"--meshlab-{name}") or os.environ.get(f"MESHLAB_{name.upper()}")
    folder = config.invocation_params.dir
    if not given:
        given = config.getini(f"meshlab_{name}")
        folder = config.inipath.parent if config.inipath else config.rootpath
    if isinstance(given, str):
        given = given.split(os.pathsep) if name == _REPEATABLE else [given]
    return [text for text in given if text], folder


def _ztunnels(config: pytest.Config) -> list[str]:
    return _proxies(config, "ztunnel")


def _waypoint(config: pytest.Config) -> str | None:
    """As asked for; ``None``: what the topology says."""
    return next(iter(_proxies(config, "waypoint")), None)


def _proxies(config: pytest.Config, option: str) -> list[str]:
    """What an option of proxies says, with absolute paths, so that a test may change its folder."""
    texts, folder = asked(config, option)
    found = []
    for text in texts:
        label, equals, path = text.partition("=") if "/" not in text.partition("=")[0] else ("", "", text)
        found.append(f"{label}{equals}{folder / Path(path).expanduser()}" if "/" in path else text)
    return found


def _most(config: pytest.Config) -> int:
    """How many used labs are kept.

    Raises:
        UsageError: what the option says is no number.
    """
    text = next(iter(asked(config, "reuse")[0]), "0")
    if not text.isdecimal():
        raise UsageError(f"--meshlab-reuse is a number of labs, such as 2, and not '{text}'")
    return int(text)


def _pool(config: pytest.Config) -> Pool:
    from meshlab.lab.pool import Pool

    return config.stash.setdefault(_POOL, Pool(_most(config)))


def _name(ztunnel: str) -> str:
    from meshlab.implementations import resolve

    return resolve(ztunnel).name


# --- fixtures --------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test on each ztunnel that was asked for; not those whose marker names one of their own."""
    marker = metafunc.definition.get_closest_marker("meshlab")
    chosen = _ztunnels(metafunc.config)
    if len(chosen) < 2 or "_meshlab_ztunnel" not in metafunc.fixturenames or (marker and "ztunnel" in marker.kwargs):
        return
    names = [_name(text) for text in chosen]
    ids = [text if names.count(name) > 1 else name for name, text in zip(names, chosen, strict=True)]
    metafunc.parametrize("_meshlab_ztunnel", chosen, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def _meshlab_ztunnel(request: pytest.FixtureRequest) -> str | None:
    """The node proxy this run is for; ``None``: what the topology says."""
    chosen: str | None = getattr(request, "param", None) or next(iter(_ztunnels(request.config)), None)
    return chosen


@pytest.fixture(scope="session")
def lab_factory(
    request: pytest.FixtureRequest, _meshlab_ztunnel: str | None, tmp_path_factory: pytest.TempPathFactory
) -> LabFactory:
    """``with lab_factory("two-nodes") as lab:`` a running lab, for as long as the block lasts.

    A relative path starts at the folder of the file that calls this. Further arguments are those of the marker.
    """
    basetemp = str(tmp_path_factory.getbasetemp())

    def factory(topology: str | Path | None = None, **settings: Any) -> AbstractContextManager[Lab]:
        caller = Path(sys._getframe(1).f_code.co_filename).parent  # a session fixture has no test's folder
        return _Opening(request.config, topology, caller, settings, _meshlab_ztunnel, basetemp)

    return factory


@pytest.fixture
def lab(
    request: pytest.FixtureRequest, _meshlab_ztunnel: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A running lab, fresh for this test, of the topology that the test's ``meshlab`` marker names."""
    marker = request.node.get_closest_marker("meshlab")
    args, settings = (marker.args, dict(marker.kwargs)) if marker else ((), {})
    topology = args[0] if args else settings.pop("topology", None)
    basetemp = str(tmp_path_factory.getbasetemp())
    opening = _Opening(request.config, topology, request.path.parent, settings, _meshlab_ztunnel, basetemp)
    try:
        with opening as running:
            yield running
    except MeshlabError as error:
        raise _failed(str(error)) from None


class _Opening:
    """A lab as a context manager that pytest knows of: so that it is audited, and saved where its test fails."""

    def __init__(
        self,
        config: pytest.Config,
        topology: str | Path | None,
        folder: Path,
        settings: dict[str, Any],
        ztunnel: str | None,
        basetemp: str,
    ) -> None:
        self.opened_by: str | None = None
        """The fixture that opened it, by name; ``None``: a test itself."""
        self.spoiled = False
        """A test that used it has failed: no other one gets it."""
        self._config = config
        self._topology = topology
        self._folder = folder
        self._settings = settings
        self._settings.setdefault("ztunnel", ztunnel)
        self._settings.setdefault("waypoint", _waypoint(config))
        self._settings["binds"] = (basetemp, *settings.get("binds", ()))
        self._told: set[str] = set()
        """Lines of the audit that a test has already failed with."""

    def __enter__(self) -> Lab:
        __tracebackhide__ = True
        try:
            self._opened = self._prepared()
            self.lab: Lab = self._opened.lab
        except HostNotReadyError as error:
            raise _not_here(self._config, str(error)) from None
        except MeshlabError as error:
            raise error.with_traceback(None) from None  # what it says has the place; our own frames are a wall
        opened = self._config.stash[_OPEN]
        self.opened_by = self._config.stash[_FIXTURES][-1] if self._config.stash[_FIXTURES] else None
        if self.opened_by is None and all(other.opened_by for other in opened):
            _discard(self._config.stash[_RUNNING])  # of an earlier example of a property, or an error that was expected
        opened.append(self)
        return self.lab

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        __tracebackhide__ = True
        self._config.stash[_OPEN].remove(self)
        if isinstance(error, (Exception, pytest.fail.Exception)):
            self.save(self._config.stash[_RUNNING])
        if error is None and not self.spoiled and _pool(self._config).give(self._opened):
            self._config.stash[_RUNNING].stash.setdefault(_GIVEN, []).append(self.lab)
            return None
        try:
            return self._opened.manager.__exit__(kind, error, traceback)
        except AuditError as found:
            news = self._news(str(found))
            if not news:
                return None
            raise AuditError(news) from None

    def audit(self) -> str:
        """What is not as it should be and was not told before."""
        try:
            self.lab.audit()
        except (AuditError, LabLostError) as error:
            return self._news(str(error))
        return ""

    def save(self, item: pytest.Item) -> None:
        """Save what the lab saw, for the report of ``item``."""
        from meshlab.report.failures import save_failure

        saved = item.stash.setdefault(_SAVED, [])
        names, start = asked(item.config, "artifacts")
        folder = start / next(iter(names), "meshlab-artifacts")
        saved.append(save_failure(self.lab, folder, item.nodeid, len(saved) + 1))

    def _prepared(self) -> Opened:
        from meshlab.lab.sources import read

        for name in ("mutant", "variant"):
            self._settings.setdefault(name, next(iter(asked(self._config, name)[0]), None))
        topology, folder = self._topology, self._folder
        if topology is None:
            names, folder = asked(self._config, "topology")
            topology = next(iter(names), "quickstart")
        return _pool(self._config).take(read(str(topology), folder), self._settings)

    def _news(self, found: str) -> str:
        lines = [line for line in found.splitlines() if line not in self._told]
        self._told.update(lines)
        return "\n".join(lines)


def _failed(message: str) -> BaseException:
    """A failure whose message has the place and the fix; where meshlab noticed it helps nobody."""
    return pytest.fail.Exception(message, pytrace=False)


def _not_here(config: pytest.Config, reason: str) -> BaseException:
    """A skip with the fix; under ``CI=true`` a failure, since a skip there is a test that nobody ever runs."""
    if os.environ.get("CI") == "true" and not any(allowed in reason for allowed in allowed_skips(config)):
        return _failed(f"a lab cannot run here, and CI=true: {reason}")
    return pytest.skip.Exception(reason)


def allowed_skips(config: pytest.Config) -> list[str]:
    """Parts of reasons for which a test may be skipped under ``CI=true``: ``[tool.meshlab]`` in pyproject.toml."""
    import tomllib

    path = config.rootpath / "pyproject.toml"
    if not path.is_file():
        return []
    allowed: list[str] = (
        tomllib.loads(path.read_text("utf-8")).get("tool", {}).get("meshlab", {}).get("allowed_skips", [])
    )
    return allowed


# --- a test's end ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[_RUNNING] = item
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    names = request.config.stash[_FIXTURES]
    names.append(fixturedef.argname)
    try:
        return (yield)
    finally:
        names.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A part of the lab that ended during the test fails this test, by name, and not only its teardown."""
    try:
        result = yield
    except BaseException as failure:
        if found := _audit(item):
            failure.add_note(f"the lab's audit found: {found}")
        raise
    if found := _audit(item):
        raise _failed(f"the lab's audit found: {found}")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None:
        _spoil(item)
    if not report.failed:
        _discard(item)
        return report
    for opening in _used(item):
        opening.save(item)
    saved = item.stash.get(_SAVED, [])
    if saved:
        report.sections.append(("meshlab", "\n".join([*(text for _, text in saved), f"again: {_again(item)}"])))
        report.user_properties += [("meshlab_artifacts", str(folder)) for folder, _ in saved]
        saved.clear()
    return report


def _used(item: pytest.Item) -> list[_Opening]:
    """The open labs of a test: its own, and those that its fixtures opened."""
    names = (None, *getattr(item, "fixturenames", ()))
    return [opening for opening in item.config.stash[_OPEN] if opening.opened_by in names]


def _spoil(item: pytest.Item) -> None:
    """No other test gets a lab that this one has used."""
    for opening in _used(item):
        opening.spoiled = True
    for lab in item.stash.get(_GIVEN, []):
        _pool(item.config).throw_away(lab)


def _audit(item: pytest.Item) -> str:
    return "\n".join(filter(None, (opening.audit() for opening in _used(item))))


def _discard(item: pytest.Item) -> None:
    for folder, _ in item.stash.get(_SAVED, []):
        shutil.rmtree(folder, ignore_errors=True)
    item.stash[_SAVED] = []


def _again(item: pytest.Item) -> str:
    """The line that runs this test again, with the options that are not in a file."""
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    words = ["pytest", "::".join([path, *item.nodeid.split("::")[1:]])]
    for name in OPTIONS:
        given = item.config.getoption(f"--meshlab-{name}") or os.environ.get(f"MESHLAB_{name.upper()}")
        if given and name != "artifacts":
            words += [f"--meshlab-{name}={text}" for text in asked(item.config, name)[0]]
    return shlex.join(words)
