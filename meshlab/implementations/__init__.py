"""What can be plugged in as a node proxy, and how it is launched. Pure: the lab starts what is described here."""

from meshlab.implementations.choice import Choice
from meshlab.implementations.protocol import (
    API_VERSION,
    DEFAULT_UDS,
    HttpGet,
    Implementation,
    Launch,
    NodeProxy,
    NodeSlot,
)
from meshlab.implementations.resolve import available, resolve
from meshlab.implementations.ztunnel import PRISTINE, WAYPOINT_ENTRY, Binary, Reference, environment

__all__ = [
    "API_VERSION",
    "DEFAULT_UDS",
    "PRISTINE",
    "WAYPOINT_ENTRY",
    "Binary",
    "Choice",
    "HttpGet",
    "Implementation",
    "Launch",
    "NodeProxy",
    "NodeSlot",
    "Reference",
    "available",
    "environment",
    "resolve",
]
