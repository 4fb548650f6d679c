"""Decides from how a call ended whether it got through. Pure.

a server answered                                     allow
the connection was reset or closed                    deny
a status that the waypoint may answer with            deny from 400 on, else allow
bytes that are no HTTP, sent to a port that is read   deny, unless the right bytes came back
anything else                                         unclear
"""

from __future__ import annotations

from typing import Literal

from meshlab.model import Call, Expected, Outcome

Ending = Literal["allow", "deny", "unclear"]


def is_waypoints(call: Call, due: Expected) -> bool:
    """Whether the answer may be the waypoint's own: it has a status that one may give, and no echo says its name."""
    if call.request is None and due.is_read:
        return not call.ok
    return call.peer is None and call.status in due.statuses


def ending(call: Call, due: Expected) -> Ending:
    """Whether the call got through.

    Args:
        due: what should have come of it.
    """
    if is_waypoints(call, due):
        return "deny" if call.status is None or call.status >= 400 else "allow"
    if call.answered:
        return "allow"
    return "deny" if call.outcome in Outcome.REFUSED else "unclear"
