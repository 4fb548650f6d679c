"""One L4 connection as the destination's node proxy sees it: what both evaluators judge."""

from __future__ import annotations

from dataclasses import dataclass

from meshlab.model.identity import SpiffeId
from meshlab.model.topology import Verdict
from meshlab.model.workload import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    source: SpiffeId | None
    """Verified peer identity; ``None`` when the bytes arrived in plaintext."""
    source_ip: Address
    """Address of the TCP peer: the client pod's, when direct."""
    destination: str
    """The destination pod, ``namespace/name``."""
    destination_ip: Address
    port: int
    """Destination TCP port, 1 to 65535, after HBONE decapsulation."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and the rule that decided it, as a sentence."""

    verdict: Verdict
    rule: str

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOW
