"""Named steps that building, changing, calling and closing pass, so that a test can act *at* one, not after a while.

The hook does nothing unless a test hands one in.
"""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[str], None]

STEPS = (
    "after unshare",
    "before the first fork",
    "nodes built",
    "programs started",
    "leaving",
    "left",
    "mid-batch",
    "pods built",
    "released",
    "enrolling",
    "enrolled",
    "links open",
    "ready",
    "mid-call",
    "mid-teardown",
)


def no_step(_: str) -> None:
    """The hook that does nothing."""
