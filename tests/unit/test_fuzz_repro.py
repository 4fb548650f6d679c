"""A test that is made from a file is Python whatever stands in the file or its name, and has its text."""

from __future__ import annotations

import ast

import pytest

from meshlab.play.repro import pytest_file

TEXTS = ["kind: Lab\n", 'a: """\n', "a: \\n \\\n", "a: 1\r\nb: 2\r\n", 'ends with a quote"', "\0001", "{name} {text}\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["bug.meshlab.yaml", 'a"""b.yaml', "back\\slash.yaml", "1.yaml", "{0}.yaml", "---"])
def test_any_text_and_name_give_a_test_with_that_text(text: str, name: str) -> None:
    file, source = pytest_file(text, name)
    tree = ast.parse(source)
    [topology] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    [test] = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert topology.removesuffix("\n") == text.removesuffix("\n")
    assert (f"{test}.py", test.isidentifier()) == (file, True)
    assert name in (ast.get_docstring(tree) or "")
