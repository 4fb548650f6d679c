"""A failure as one small text file, ``NAME.meshlab.yaml``; and the canonical form of any topology file. Pure.

The file is a topology as any other: pods, manifests, ``spec.steps`` with what each call should come to. How it was
found stands in comments only, so that it runs the same on whatever data plane it is given.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from meshlab.errors import Issue, TopologyError
from meshlab.model import Topology
from meshlab.topology import dump, load

SUFFIX = ".meshlab.yaml"
_WIDTH = 120
_SETTLES = 4
_BLANKS = re.compile(r"[ \t]+$", re.MULTILINE)


def written(topology: Topology, comments: Sequence[str]) -> str:
    """``topology`` in canonical form under its comments, which may have several lines each."""
    lines = [_printable(line) for comment in comments for line in comment.splitlines()]
    head = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return formatted(f"{head}{dump(topology)}", "<bug file>")


def _printable(line: str) -> str:
    """YAML takes no control character, also not in a comment; a proxy's last words may be coloured."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def name_of(topology: Topology, kind: str) -> str:
    """A name that is the same for the same failure."""
    digest = hashlib.sha256(dump(topology).encode()).hexdigest()[:8]
    return f"{topology.name}-{kind}-{digest}{SUFFIX}"


def formatted(text: str, source: str) -> str:
    """``text`` in canonical form: indentation, line width and separators; comments, order and quotes stay.

    Raises:
        TopologyError: ``text`` is no topology.
    """
    topology = load(text, source)
    for _ in range(_SETTLES):
        once = _emitted(text, source)
        if once == text:
            break
        text = once
    if load(text, source) != topology:
        raise TopologyError([Issue(source, 1, 1, "its canonical form would mean something else: left as it is")])
    return text


def _emitted(text: str, source: str) -> str:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=2, offset=0)
    out = io.StringIO()
    try:
        yaml.dump_all(list(yaml.load_all(text)), out)
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # also what the library trips over
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TopologyError([Issue(source, 1, 1, f"cannot be written in canonical form: {line}")]) from error
    return _BLANKS.sub("", out.getvalue()).rstrip("\n") + "\n"
