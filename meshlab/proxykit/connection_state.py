"""The states of one HBONE connection.

    state         begins when                          a new stream of ours    streams that are open
    handshaking   the socket is connected              is refused              there are none
    open          the peer's certificate is accepted   is opened               go on
    draining      a GOAWAY was sent or received,       is refused              go on
                  or its pool has given it up
    lost          either end closed, or it broke       is refused              have been reset

The states follow each other in this order. Each may be followed by ``lost``, which is never left.
"""

from __future__ import annotations

from enum import Enum


class ConnectionState(Enum):
    HANDSHAKING = "handshaking"
    OPEN = "open"
    DRAINING = "draining"
    LOST = "lost"


MAY_FOLLOW = {
    ConnectionState.HANDSHAKING: {ConnectionState.OPEN, ConnectionState.LOST},
    ConnectionState.OPEN: {ConnectionState.DRAINING, ConnectionState.LOST},
    ConnectionState.DRAINING: {ConnectionState.LOST},
    ConnectionState.LOST: set[ConnectionState](),
}
ESTABLISHED = frozenset({ConnectionState.OPEN, ConnectionState.DRAINING})
