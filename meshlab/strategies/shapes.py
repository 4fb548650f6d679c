"""Shapes of calls: bodies round the sizes at which buffers, records and windows end, and every way to send one."""

from __future__ import annotations

from hypothesis import strategies as st

from meshlab.model import CallShape
from meshlab.strategies.choices import Choices, drawn

_SMALL = (1, 100, 1023)
_EDGES = tuple(edge + step for edge in (16 << 10, 64 << 10) for step in (-1, 0, 1))
"""A TLS record holds 16 KiB; 64 KiB is HTTP/2's first window."""
_LARGE = tuple((1 << 20) + step for step in (-1, 0, 1))
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS", "DELETE", "POST")
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_LARGE_ONE_IN = 64


def call_shapes() -> st.SearchStrategy[CallShape]:
    """What a call sends, and how; one in 64 has a body of a megabyte."""
    return drawn(draw_shape, 5)


def draw_shape(choices: Choices) -> CallShape:
    size, seed = _size(choices), choices.number()
    body = {"body_bytes": size, "body_seed": seed if size else 0}
    if choices.one_of((False, False, True)):
        return CallShape(kind="tcp", mode=choices.one_of(("plain", "half-close")), **body)
    method = choices.one_of(_WITH_BODY if size else _WITHOUT_BODY)
    return CallShape(method=method, mode=choices.one_of(("plain", "echo-body")) if size else "plain", **body)


def _size(choices: Choices) -> int:
    if choices.one_of(range(_LARGE_ONE_IN)) == _LARGE_ONE_IN - 1:
        return choices.one_of(_LARGE)
    return choices.one_of((0, *_SMALL, *_SMALL, *_EDGES))
