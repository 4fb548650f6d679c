"""Shapes of calls: bodies round the sizes at which buffers, records and windows end, and every way to send one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from meshlab.model import CallShape
from meshlab.strategies.choices import Choices, drawn

_SIZES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (104, (0, 1, 100, 1023)),
    (16, tuple((16 << 10) + step for step in (-1, 0, 1))),
    (7, tuple((64 << 10) + step for step in (-1, 0, 1))),
    (1, tuple((1 << 20) + step for step in (-1, 0, 1))),
)
"""How many of 128 calls have a body of one of these sizes. A TLS record holds 16 KiB, HTTP/2's first window 64 KiB; a
body costs each capture that sees it, and a megabyte as much as a whole set of policies with its calls."""
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS", "DELETE", "POST")
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


def call_shapes() -> st.SearchStrategy[CallShape]:
    """What a call sends, and how; one in 128 has a body of a megabyte."""
    return drawn(draw_shape, 5)


def draw_shape(choices: Choices) -> CallShape:
    size, seed = _size(choices), choices.number()
    body = CallShape(body_bytes=size, body_seed=seed if size else 0)
    if choices.one_of((False, False, True)):
        return replace(body, kind="tcp", mode=choices.one_of(("plain", "half-close")))
    method = choices.one_of(_WITH_BODY if size else _WITHOUT_BODY)
    return replace(body, method=method, mode=choices.one_of(("plain", "echo-body")) if size else "plain")


def _size(choices: Choices) -> int:
    kinds = [sizes for weight, sizes in _SIZES for _ in range(weight)]
    return choices.one_of(choices.one_of(kinds))
