"""What every pod of this node shares."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from meshlab.model.ambient import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT
from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.pool import Limits
from meshlab.ztunnel.access_log import AccessLog
from meshlab.ztunnel.state import State

ILLEGAL_PORTS = frozenset({OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT})
"""A proxy that dialled its own listeners would loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    state: State
    certificates: Certificates
    log: AccessLog
    limits: Limits = field(default_factory=Limits)
    rng: random.Random = field(default_factory=random.Random)
