"""Hostile and unusual YAML: bounded, refused with a place, never a traceback."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.errors import Issue, TopologyError
from meshlab.topology import load
from meshlab.topology.nodes import MAX_CHARACTERS, Map, Scalar, Value, read_documents
from meshlab.topology.notes import Notes


def _refusal(text: str) -> str:
    with pytest.raises(TopologyError) as refused:
        load(text, "t.yaml")
    return str(refused.value)


def _issues(text: str) -> tuple[Issue, ...]:
    """Of a text that may be read or refused, but nothing else."""
    try:
        load(text, "t.yaml")
    except TopologyError as refused:
        return refused.issues
    return ()


def _value(text: str) -> Value:
    (document,) = read_documents(f"key: {text}\n", Notes("t.yaml"))
    node = document.entries["key"]
    assert isinstance(node, Scalar)
    return node.value


def test_aliases_that_multiply_are_refused_before_they_cost_anything() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert _refusal("\n".join(levels)).endswith("aliases stand for more than 10000 values")


def test_an_alias_within_its_own_anchor_is_refused() -> None:
    assert _refusal("a: &a [*a]") == "t.yaml:1:8: the alias *a is inside its own anchor"


def test_an_alias_of_nothing_is_refused() -> None:
    assert _refusal("a: *b") == "t.yaml:1:4: no anchor &b"


def test_an_anchor_ends_with_its_document() -> None:
    assert _refusal("a: &a 1\n---\nb: *a") == "t.yaml:3:4: no anchor &a"


def test_an_alias_is_what_its_anchor_is() -> None:
    text = """
        apiVersion: v1
        kind: Service
        metadata: {name: web, labels: &labels {app: web}}
        spec: {selector: *labels}
        """
    assert load(text, "t.yaml").mesh.services[0].selector == {"app": "web"}


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(bracket: str) -> None:
    assert _refusal(bracket * 50_000).endswith("nested deeper than 64")


def test_a_text_that_is_too_long_is_not_even_parsed() -> None:
    assert _refusal("[" * (MAX_CHARACTERS + 1)) == "t.yaml:1:1: 1048577 characters; a topology has at most 1048576"


def test_a_key_twice_is_refused_with_both_places() -> None:
    assert "t.yaml:3:1: the key 'kind' is already on line 2" in _refusal("apiVersion: v1\nkind: Pod\nkind: Service\n")


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("a: [1", "1:6: not YAML: "),
        ("a: b: c", "1:5: not YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "2:1: not YAML: "),
        ("a: 'open", "1:9: not YAML: "),
        ("ok: 1\nb\x07: 1", "2:2: not YAML: a character that YAML does not allow"),
        ("\x00", "1:1: not YAML: a character that YAML does not allow"),
        ("? [a]\n: b", "1:3: a key is a word, not a list"),
        ("a: !!python/object:os.system x", "1:4: the tag tag:yaml.org,2002:python/object:os.system means nothing here"),
    ],
)
def test_what_is_not_yaml_is_refused_at_its_place(text: str, issue: str) -> None:
    assert f"t.yaml:{issue}" in _refusal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-12-14", "2001-12-14"),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("~", None),
        ("", None),
        ("null", None),
        ("True", True),
        ("false", False),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!int '1'", 1),
        ("<<", "<<"),
        ("9" * 30, float("9" * 30)),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Value) -> None:
    assert _value(text) == value


def test_plain_scalars_may_hold_colons_in_a_flow_list() -> None:
    (document,) = read_documents("a: [http://b:80, c:d]", Notes("t.yaml"))
    assert document.texts("a") == ("http://b:80", "c:d")


def test_keys_and_values_know_their_places() -> None:
    (document,) = read_documents("\n\na:\n  bc: [d,\n   e]\n", Notes("t.yaml"))
    inner = document.map("a")
    assert (inner.key_places["bc"].line, inner.key_places["bc"].column) == (4, 3)
    assert [(item.place.line, item.place.column) for item in inner.items("bc")] == [(4, 8), (5, 4)]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text("-:[]{}&*!|>'\"%@`?,# \n\tab1~", max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    assert all(issue.line > 0 and issue.column > 0 for issue in _issues(text))


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_trees = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metadata", "name", "spec", "rules", "from", "ports", "containers"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    st.sampled_from(
        ["meshlab.dev/v1alpha1 Lab", "v1 Pod", "apps/v1 Deployment", "v1 Service", "v1 List", "v1 Namespace",
         "security.istio.io/v1 AuthorizationPolicy", "security.istio.io/v1 PeerAuthentication"]
    ),
    st.dictionaries(st.sampled_from(["metadata", "spec", "status", "items"]), _trees),
)  # fmt: skip
def test_a_document_of_any_shape_is_read_or_refused(kind: str, body: dict[str, object]) -> None:
    version, name = kind.split()
    document = json.dumps({"apiVersion": version, "kind": name, **body})
    assert all(issue.line == 1 and issue.message for issue in _issues(document))


def test_an_empty_mapping_under_a_missing_key_is_empty() -> None:
    (document,) = read_documents("a: 1", Notes("t.yaml"))
    assert document.map("b") == Map(document.place)


@pytest.mark.parametrize("directive", ["%YAML 1.3", "%YAML 3.0", "%YAML 1." + "9" * 5000, "%TAG ! !", "%YAML 1.2 x"])
def test_a_directive_is_yaml_12_or_an_issue_with_a_place(directive: str) -> None:
    text = f"a: b\n...\n{directive}\n---\na: b\n"
    try:
        assert read_documents(text, Notes("t.yaml"))
    except TopologyError as error:
        assert all(issue.line >= 1 and "not YAML" in issue.message for issue in error.issues)  # noqa: PT017


def test_yaml_13_is_an_issue_behind_the_document_before_it() -> None:
    with pytest.raises(TopologyError, match=r"t.yaml:2:\d+: not YAML: .*1, 3"):
        read_documents("a: b\n...\n%YAML 1.3\n---\na: b\n", Notes("t.yaml"))
