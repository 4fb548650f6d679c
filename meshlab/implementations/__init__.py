"""What can be plugged in as a node proxy, and how it is launched. Pure: the lab starts what is described here."""

from meshlab.implementations.choice import Choice, WaypointChoice
from meshlab.implementations.protocol import (
    API_VERSION,
    DEFAULT_UDS,
    HttpGet,
    Implementation,
    Launch,
    NodeProxy,
    NodeSlot,
    WaypointProxy,
    WaypointSlot,
)
from meshlab.implementations.resolve import available, installed_envoy, resolve, resolve_waypoint
from meshlab.implementations.waypoint import EnvoyWaypoint, ReferenceWaypoint
from meshlab.implementations.ztunnel import Binary, Reference, environment

PRISTINE = (Reference(), ReferenceWaypoint())
"""What of ours is as it stands, and so is believed where it says what certificate it has verified."""

__all__ = [
    "API_VERSION",
    "DEFAULT_UDS",
    "PRISTINE",
    "Binary",
    "Choice",
    "EnvoyWaypoint",
    "HttpGet",
    "Implementation",
    "Launch",
    "NodeProxy",
    "NodeSlot",
    "Reference",
    "ReferenceWaypoint",
    "WaypointChoice",
    "WaypointProxy",
    "WaypointSlot",
    "available",
    "environment",
    "installed_envoy",
    "resolve",
    "resolve_waypoint",
]
