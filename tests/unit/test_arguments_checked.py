"""Arguments of public verbs are held to their annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

from meshlab.errors import UsageError
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.settings import LabSettings, Settings, settings_of


@checks_arguments
class Verbs:
    def call(
        self,
        url: str = "",
        *,
        family: Literal[4, 6] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 5.0,
        last: int = 1,
    ) -> str:
        return url

    def run(self, *argv: str) -> tuple[str, ...]:
        return argv

    def many(self, requests: Sequence[int]) -> int:
        return len(requests)

    def save(self, folder: Path | str) -> str:
        return str(folder)

    @contextmanager
    def window(self, name: str) -> Iterator[str]:
        yield name

    @property
    def size(self) -> int:
        return 1

    def _inner(self, what: str) -> object:
        return what


VERBS: Any = Verbs()


def test_what_fits_comes_through() -> None:
    assert VERBS.call("x", family=6, headers={"a": "b"}, body=b"", timeout_s=1, last=-1) == "x"
    assert VERBS.run("a", "b") == ("a", "b")
    assert VERBS.run() == ()
    assert VERBS.many([1, 2]) == VERBS.many((1, 2)) == 2
    assert VERBS.save(Path("x")) == "x"
    assert VERBS.size == 1
    with VERBS.window("w") as name:
        assert name == "w"


@pytest.mark.parametrize(
    ("verb", "args", "said"),
    [
        ("call", {"url": None}, "call(): 'url' must be text, not None"),
        ("call", {"url": b"x"}, "call(): 'url' must be text, not b'x'"),
        ("call", {"family": 5}, "call(): 'family' must be 4 or 6 or None, not 5"),
        ("call", {"family": 4.0}, "call(): 'family' must be 4 or 6 or None, not 4.0"),
        ("call", {"headers": {"a": 1}}, "call(): 'headers' must be a mapping of text to text or None, not {'a': 1}"),
        ("call", {"headers": "a: b"}, "call(): 'headers' must be a mapping of text to text or None, not 'a: b'"),
        ("call", {"body": "x"}, "call(): 'body' must be bytes, not 'x'"),
        ("call", {"last": True}, "call(): 'last' must be a whole number, not True"),
        ("many", {"requests": [1, "x"]}, "many(): 'requests' must be a sequence of a whole number, not [1, 'x']"),
        ("many", {"requests": "12"}, "many(): 'requests' must be a sequence of a whole number, not '12'"),
        ("save", {"folder": 1}, "save(): 'folder' must be a Path or text, not 1"),
        ("window", {"name": 1}, "window(): 'name' must be text, not 1"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(verb: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        getattr(VERBS, verb)(**args)
    assert str(refused.value) == said


def test_each_of_many_arguments_is_looked_at() -> None:
    with pytest.raises(UsageError, match="'argv' must be text, not 1"):
        VERBS.run("sleep", 1)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 10**9, 10**400])
def test_a_duration_is_more_than_nothing_and_at_most_a_day(seconds: float) -> None:
    with pytest.raises(UsageError, match="'timeout_s' must be more than 0 and at most 86400 seconds"):
        VERBS.call(timeout_s=seconds)


def test_a_missing_or_unknown_argument_is_python_s_own_error() -> None:
    with pytest.raises(TypeError):
        VERBS.window()
    with pytest.raises(TypeError):
        VERBS.call(colour="red")


def test_what_is_not_public_is_left_alone() -> None:
    assert VERBS._inner(1) == 1


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_keyword_arguments_of_a_lab_are_its_settings() -> None:
    assert [*LabSettings.__annotations__] == [field.name for field in fields(Settings)]
    assert get_type_hints(LabSettings) == get_type_hints(Settings)


def test_a_misspelt_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"a lab has no setting 'ztunel' \(after_nack, .*\)\. Did you mean 'ztunnel'\?"
    ):
        settings_of({"ztunel": "reference"})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ready_timeout_s", "5"),
        ("ready_timeout_s", -1),
        ("ztunnel", 1),
        ("record", "yes"),
        ("binds", "folder"),
        ("step", 1),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"'{name}' must be "):
        settings_of({name: value})  # type: ignore[misc]


def test_what_a_verb_returns_may_be_known_to_type_checkers_only() -> None:
    @checks_arguments
    class Handle:
        def label(self, name: str) -> "OnlyForTypeCheckers":  # type: ignore[name-defined]  # noqa: F821, UP037
            return name

    assert Handle().label("a") == "a"
    with pytest.raises(UsageError, match=r"label\(\): 'name' must be text"):
        Handle().label(1)  # type: ignore[arg-type]
