"""Whatever a public verb is given, what comes out is an error of meshlab's, or what its documentation names."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import meshlab
from meshlab import Call, Capture, Grade, Lab, MeshlabError, Outcome, PodHandle, SpiffeId, open_lab
from meshlab.errors import DeadlineError, UsageError

ODD: tuple[Any, ...] = (
    None,
    "",
    "nope",
    "nope/nope",
    "nope:1",
    "\0",
    "é",
    "x" * 5000,
    b"\0",
    -1,
    0,
    5,
    10**9,
    1e300,
    True,
)
ODD += (float("nan"), [], [None], ["nope"], {}, {"": ""}, {"a": 1}, (), object(), Path("nope"), str, lambda: None)
NOT_CALLED = {"close", "open", "save"}
"""They end the lab or the window, or write files; tried apart."""
SLOW = {"apply", "delete", "replace", "push_raw", "restart_control_plane"}
"""They wait for the mesh where they are given something to do."""


@pytest.fixture(scope="module")
def lab(lab_factory: Callable[..., AbstractContextManager[Lab]]) -> Iterator[Lab]:
    with lab_factory("two-nodes", ztunnel="reference") as running:
        yield running


@pytest.fixture(scope="module")
def call(lab: Lab) -> Call:
    return lab.pod("shop/client").http("http://server:8080/")


def _public(kind: type) -> list[str]:
    functions = (name for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_"))
    return sorted(set(functions) - NOT_CALLED - SLOW)


def _try(verb: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException | None:
    """What came out, if it was an error."""
    try:
        result = verb(*args, **kwargs)
        if isinstance(result, Iterator):
            list(itertools.islice(result, 1))
        if isinstance(result, AbstractContextManager):
            with result:
                pass
    except BaseException as error:
        return error
    return None


def _right(hint: Any, call: Call, name: str) -> Any:
    """A value that suits a parameter, so that the others can be tried."""
    known = {"url": "http://server:8080/", "address": "server:8080", "argv": "true", "to": "shop/server:8080"}
    known |= {"key": "shop/client", "pod": "shop/client", "program": "control-plane", "keys": "shop/client"}
    by_type = {Call: call, SpiffeId: SpiffeId("cluster.local", "shop", "client"), Grade: Grade.PEER}
    if name in known:
        return known[name]
    return [call] if get_args(hint) == (Call,) and get_origin(hint) is not None else by_type.get(hint, "x")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (Lab, PodHandle, Capture) for name in _public(kind)], ids=str
)
def test_odd_arguments_are_refused_in_meshlab_s_words(lab: Lab, call: Call, kind: type, name: str) -> None:
    with lab.capture() as capture:
        pass
    verb = getattr({Lab: lab, PodHandle: lab.pod("shop/client"), Capture: capture}[kind], name)
    hints = get_type_hints(inspect.unwrap(verb))
    parameters = list(inspect.signature(verb).parameters.values())
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    for odd, parameter in itertools.product(ODD, parameters):
        positional = [odd if p is parameter else _right(hints.get(p.name), call, p.name) for p in needed]
        keyword = {} if parameter in needed else {parameter.name: odd}
        error = _try(verb, *positional, **keyword)
        assert error is None or isinstance(error, MeshlabError), (name, parameter.name, odd, repr(error))


@pytest.mark.parametrize("name", sorted(SLOW))
def test_verbs_that_change_the_mesh_refuse_another_type_before_they_begin(lab: Lab, name: str) -> None:
    before = lab.mesh
    for odd in (None, 1, b"x", [None], object()):
        error = _try(getattr(lab, name), *[odd] * (3 if name == "push_raw" else 1), timeout_s=-1)
        assert isinstance(error, UsageError), (name, odd, error)
    assert lab.mesh == before


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:20])
def test_a_lab_opens_from_nothing_odd(odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(_try(open_lab, odd), MeshlabError)


@pytest.mark.parametrize("name", ["ztunnel", "mutant", "variant", "ready_timeout_s", "step", "entries", "ztunel"])
def test_odd_settings_are_refused(name: str) -> None:
    for odd in (*(value for value in ODD if not callable(value)), object()):
        if odd in (None, "", {}, True, 0, 5) and name != "ztunel":
            continue  # these say nothing, or are right
        error = _try(open_lab, "two-nodes", **{name: odd})
        assert isinstance(error, MeshlabError), (name, odd, error)


def test_a_misspelt_setting_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ztunnel'"), open_lab("two-nodes", ztunel="reference"):  # type: ignore[call-arg]
        pass


def test_any_callable_can_be_told_of_the_steps() -> None:
    steps: list[str] = []
    with open_lab("two-nodes", step=functools.partial(steps.append)):
        pass
    assert "ready" in steps


# --- what each row of the kind says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (lambda lab: lab.pod("shop/clinet"), "no pod 'shop/clinet' in this lab"),
        (lambda lab: lab.pod("shop/clinet"), "Did you mean 'shop/client'?"),
        (lambda lab: lab.rules("shop/sevrer"), "no pod 'shop/sevrer' in this lab"),
        (lambda lab: lab.netns("pod:shop/clinet"), "Did you mean 'pod:shop/client'?"),
        (lambda lab: lab.logs("ztunnel@node-9"), "no program 'ztunnel@node-9' in this lab"),
        (lambda lab: lab.logs("ztunnel@node-9"), "Did you mean 'ztunnel@node-"),
        (lambda lab: lab.pod("shop/client").exec(), "exec() needs a command"),
        (lambda lab: lab.pod("shop/client").exec("sleep", 1), "exec(): 'argv' must be text, not 1"),
        (lambda lab: lab.pod("shop/client").exec("a\0b"), "has a NUL character"),
        (lambda lab: lab.pod("shop/client").exec("true", env={"A=B": "c"}), "no variable of an environment"),
        (lambda lab: lab.pod("shop/client").http("http://server:0/"), "the port must be 1 to 65535, not 0"),
        (lambda lab: lab.pod("shop/client").tcp("server:99999"), "the port must be 1 to 65535, not 99999"),
        (lambda lab: lab.pod("shop/client").http("http://server/", family=5), "'family' must be 4 or 6 or None, not 5"),
        (lambda lab: lab.pod("shop/client").http("http://server/", method="GET /"), "the method must be one word"),
        (lambda lab: lab.pod("shop/client").http("http://server/", headers={"a": "b\r\nc: d"}), "without line breaks"),
        (lambda lab: lab.pod("shop/client").http("http://server/", headers={"a": "Ω"}), "must be Latin-1"),
        (lambda lab: lab.pod("shop/client").http("http://server/", timeout_s=0), "'timeout_s' must be more than 0"),
    ],
)
def test_the_words_name_the_value_and_the_choices(lab: Lab, verb: Callable[[Lab], Any], said: str) -> None:
    error = _try(verb, lab)
    assert isinstance(error, UsageError)
    assert said in str(error)


def test_a_command_that_does_not_end_is_an_error_of_meshlab_s_and_of_python_s(lab: Lab) -> None:
    with pytest.raises(DeadlineError, match=r"still ran after 0\.2 s") as late:
        lab.pod("shop/client").exec("sleep", "100", timeout_s=0.2)
    assert isinstance(late.value, TimeoutError)


def test_an_ipv4_address_in_ipv6_s_clothes_is_judged_as_ipv4(lab: Lab) -> None:
    server, intruder = lab.pods("shop/server", "shop/intruder")
    mapped = IPv6Address(f"::ffff:{server.ipv4}")
    call = intruder.http(f"http://[{mapped}]:8080/")
    assert (call.to, call.family, call.refused) == ("shop/server:8080", 4, True)
    assert "the policies deny it (AuthorizationPolicy shop/no-intruders denies" in lab.told(1)[0]


def test_no_last_calls_are_none_at_all(lab: Lab, call: Call) -> None:
    assert call.number
    assert lab.told(0) == lab.told(-1) == []
    assert len(lab.told(1)) == 1


def test_a_folder_that_cannot_be_written_is_an_error_of_meshlab_s(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeshlabError, match=r"not saved: .*Not a directory"):
        lab.save(tmp_path / "file" / "folder")
    assert lab.save(str(tmp_path / "folder")) == tmp_path / "folder"


# --- the names of the package ----------------------------------------------------------------------------------------


def test_every_name_of_the_package_is_there_and_an_unknown_one_is_python_s_own_error() -> None:
    assert [name for name in meshlab.__all__ if not hasattr(meshlab, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = meshlab.nope


@pytest.mark.parametrize("uri", ["", "nope", "spiffe://a/ns/b/sa/", "\0"])
def test_what_is_no_identity_is_a_value_error_as_documented(uri: str) -> None:
    with pytest.raises(ValueError, match="spiffe://TRUST-DOMAIN"):
        SpiffeId.parse(uri)


def test_a_call_says_whether_it_was_answered_or_refused(call: Call) -> None:
    assert (call.ok, call.refused) == (True, False)
    for outcome in (Outcome.RESET, Outcome.CLOSED, Outcome.CONNECT_REFUSED):
        assert replace(call, outcome=outcome).refused
    assert not replace(call, outcome=Outcome.TIMEOUT).refused
    assert not replace(call, outcome=Outcome.TIMEOUT).ok
