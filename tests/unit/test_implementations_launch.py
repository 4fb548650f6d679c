"""What a ztunnel is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshlab.errors import UsageError
from meshlab.implementations import Binary, Choice, HttpGet, Implementation, Launch, NodeSlot, Reference, environment

SLOT = NodeSlot(
    node="node-1",
    xds_address="100.64.0.1:15012",
    ca_root_pem="-----BEGIN",
    token="secret",  # noqa: S106
    instance_ip="100.64.1.2",
)
BINARY = Binary("istio", Path("/opt/ztunnel"))


def test_a_binary_is_run_as_istio_runs_it() -> None:
    launch = BINARY.launch(SLOT)
    assert launch.argv == ("/opt/ztunnel", "proxy", "ztunnel")
    assert launch.entry is None


def test_the_reference_is_a_warm_python_program() -> None:
    launch = Reference().launch(SLOT)
    assert launch.entry == "meshlab.ztunnel.main:main"
    assert launch.argv == ()


def test_a_mutant_of_the_reference_is_only_another_entry() -> None:
    mutant = Reference(entry="m:main").launch(SLOT)
    assert replace(mutant, entry=None) == replace(Reference().launch(SLOT), entry=None)


def test_reference_and_binary_read_the_same_environment() -> None:
    assert BINARY.launch(SLOT).env == Reference().launch(SLOT).env


@pytest.mark.parametrize("name", ["XDS_ROOT_CA", "CA_ROOT_CA", "AUTH_TOKEN"])
def test_roots_and_token_are_literals_and_never_a_file(name: str) -> None:
    assert environment(SLOT)[name] in (SLOT.ca_root_pem, SLOT.token)
    assert BINARY.launch(SLOT).files == {}


def test_the_node_is_named_so_that_certificates_come_before_the_first_call() -> None:
    assert environment(SLOT)["NODE_NAME"] == "node-1"


def test_the_proxy_is_not_told_that_it_is_a_pod() -> None:
    assert not environment(SLOT).keys() & {"POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"}


def test_access_lines_are_logged_as_json() -> None:
    env = environment(SLOT)
    assert env["LOG_FORMAT"] == "json"
    assert "access=debug" in env["RUST_LOG"].split(",")
    assert BINARY.launch(SLOT).access_log == "istio-json"


# --- what a plug-in asks for and nobody does -------------------------------------------------------------------------

FULL = Reference().describe().features


class Plugin:
    """A plug-in that says what it is given."""

    api_version = 1

    def __init__(self, launch: object = None, described: object = None) -> None:
        self._launch = Launch(argv=("/bin/true",)) if launch is None else launch
        self._described = Implementation(name="plug", version="1") if described is None else described

    def describe(self) -> Any:
        return self._said(self._described)

    def launch(self, slot: NodeSlot) -> Any:
        assert slot == SLOT
        return self._said(self._launch)

    @staticmethod
    def _said(what: object) -> object:
        if isinstance(what, Exception):
            raise what
        return what


def _launched(plugin: Plugin) -> Launch:
    return Choice("plug", plugin).launch(SLOT)


@pytest.mark.parametrize("proxy", [Reference(), BINARY])
def test_what_comes_with_meshlab_asks_for_nothing_that_is_not_done(proxy: Reference | Binary) -> None:
    assert Choice("own", proxy).launch(SLOT) == proxy.launch(SLOT)


def test_a_plug_in_that_asks_for_what_is_done_is_launched() -> None:
    launch = Launch(entry="plug.main:main", access_log="istio-json", env={"A": "b"})
    described = Implementation(name="plug", version="1", features=FULL, claims=frozenset({"identity"}))
    assert _launched(Plugin(launch, described)) == launch


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (Launch(argv=("x",), files={"/etc/x": ""}), "ztunnel 'plug', files: the lab writes no files for a proxy"),
        (
            Launch(argv=("x",), ready=HttpGet(port=1, path="/")),
            "ztunnel 'plug', ready: the lab asks no readiness probe",
        ),
        (Launch(argv=("x",), keylog="/tmp/keys"), "ztunnel 'plug', keylog: the lab reads no such file"),  # noqa: S108
        (Launch(argv=("x",), access_log="w3c"), "access_log: the lab reads 'istio-json', not 'w3c'"),  # type: ignore[arg-type]
        (Launch(), "argv and entry: exactly one"),
        (Launch(argv=("x",), entry="a:b"), "argv and entry: exactly one"),
        ({"argv": "x"}, "launch() gave dict, not Launch"),
        (RuntimeError("no such slot"), "launch() failed: RuntimeError: no such slot"),
    ],
)
def test_a_launch_that_asks_for_what_nobody_does_is_refused_by_name(launch: object, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        _launched(Plugin(launch))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (Implementation(name="x", version="", roles=("waypoint",)), "roles: 'ztunnel' is not among them (waypoint)"),
        (Implementation(name="x", version="", features=FULL - {"ipv6"}), "features: without ipv6"),
        (Implementation(name="x", version="", features=FULL | {"l7"}), "features: there is no 'l7'"),
        (Implementation(name="x", version="", claims=frozenset({"path"})), "claims: there is no 'path' (identity)"),
        (KeyError("name"), "describe() failed: KeyError: 'name'"),
        (None.__class__, "describe() gave type, not Implementation"),
    ],
)
def test_a_description_that_nobody_acts_on_is_refused_by_name(described: object, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        _launched(Plugin(described=described))
    assert said in str(refused.value)


def test_nothing_is_described_as_nothing() -> None:
    assert Choice("none", None).describe() == Implementation(name="none", version="", roles=())
