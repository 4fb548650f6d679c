"""Keys of netns and names of instances have a text form, which one module each makes and reads, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

import meshlab
from meshlab.model.instance import Role

PACKAGE = Path(meshlab.__file__).parent
_CUTS = frozenset({"partition", "rpartition", "split", "rsplit", "removeprefix", "startswith", "find", "index"})


@dataclass(frozen=True)
class Form:
    home: str
    """The module that makes and reads it."""
    instead: str
    begins: str
    """A pattern of how the text begins."""
    separators: tuple[str, ...] = ()
    """At which nobody else cuts a text."""
    but: tuple[str, ...] = ()
    """Modules that cut another kind of text there."""

    def broken(self, source: str) -> Iterator[tuple[int, str]]:
        """Line and text of each expression that makes or cuts this form."""
        tree = ast.parse(source)
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if id(node) not in texts and self._is_ours(node):
                yield getattr(node, "lineno", 0), ast.unparse(node)

    def _is_ours(self, node: ast.AST) -> bool:
        match node:
            case ast.Constant(value=str(text)):
                return re.fullmatch(rf"({self.begins})[\w/#-]+", text) is not None
            case ast.JoinedStr(values=parts):
                return any(
                    isinstance(after, ast.FormattedValue) and (self._leads(before) or self._separates(before))
                    for before, after in pairwise(parts)
                )
            case ast.BinOp(left=left, op=ast.Add()):
                return self._leads(left)
            case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]):
                return name in _CUTS and (text in self.separators or re.fullmatch(self.begins, text) is not None)
            case _:
                return False

    def _separates(self, part: ast.AST) -> bool:
        return isinstance(part, ast.Constant) and part.value == "@" and "@" in self.separators

    def _leads(self, part: ast.AST) -> bool:
        """Whether it is a text that ends as this form begins."""
        return (
            isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and re.search(rf"(^|\W)({self.begins})$", part.value) is not None
        )


FORMS = {
    "netns": Form(
        home="plan/netns.py", instead="pod_netns, node_netns, proxy_netns and netns_key", begins="pod:|node:|proxy:"
    ),
    "instance": Form(
        home="model/instance.py",
        instead="InstanceId: its parts, str() and parse()",
        begins="|".join(f"{role}@" for role in get_args(Role)),
        separators=("@", "#"),
        but=("topology/images.py",),  # an image's digest
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_only_its_own_module_makes_or_cuts_the_text_form(name: str) -> None:
    form = FORMS[name]
    found = [
        f"meshlab/{place}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (place := str(path.relative_to(PACKAGE))) not in (form.home, *form.but)
        for line, text in form.broken(path.read_text())
    ]
    assert not found, f"use {form.instead} of meshlab/{form.home}:\n" + "\n".join(found)


@pytest.mark.parametrize("name", FORMS)
def test_its_own_module_does_so_which_shows_that_the_search_finds_it(name: str) -> None:
    assert list(FORMS[name].broken((PACKAGE / FORMS[name].home).read_text()))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("netns", 'site.netns[f"pod:{pod.key}"]'),
        ("netns", 'site.netns["node:" + name]'),
        ("netns", 'lab.netns("proxy:node-1")'),
        ("netns", 'key.removeprefix("pod:")'),
        ("netns", 'key.startswith("node:")'),
        ("instance", 'lab.logs(f"ztunnel@{node}")'),
        ("instance", 'lab.logs(f"logs of agent@{node}")'),
        ("instance", 'by_name["echo@node-1"]'),
        ("instance", 'f"{role}@{node}"'),
        ("instance", 'name.partition("@")'),
        ("instance", 'name.split("#", 1)'),
    ],
)
def test_a_line_that_makes_or_cuts_one_is_found(name: str, line: str) -> None:
    assert list(FORMS[name].broken(f"x = {line}"))


@pytest.mark.parametrize(
    "line",
    [
        '"""lab.netns("pod:shop/client"), or ztunnel@node-1."""',
        'x = f"no pod: {name}"',
        'x = "write ztunnel@NODE, agent@NODE or NAMESPACE/POD"',
        'x = to.rpartition(":")',
    ],
)
def test_a_line_that_only_speaks_of_one_is_not(line: str) -> None:
    assert not [found for form in FORMS.values() for found in form.broken(line)]
