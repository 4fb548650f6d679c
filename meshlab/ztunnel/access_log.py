"""The access log: one JSON line for each connection that is over, with Istio's field names; absent values are left out.

Source: https://istio.io/latest/docs/ambient/usage/troubleshoot-ztunnel/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from meshlab.model import SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.ztunnel.state import Workload

Direction = Literal["inbound", "outbound"]


@dataclass(slots=True, kw_only=True)
class Record:
    """What is known of one connection; filled in as it becomes known."""

    direction: Direction
    source: Target
    source_workload: Workload | None = None
    source_identity: SpiffeId | None = None
    destination: Target
    """On the wire: the peer's 15008 for a tunnel."""
    hbone_target: str = ""
    """The authority of the CONNECT."""
    service: str = ""
    """Its host name."""
    service_name: str = ""
    service_namespace: str = ""
    destination_workload: Workload | None = None
    destination_identity: SpiffeId | None = None
    flag: str = "-"
    """Why it failed, as ``response_flags`` of Istio's metrics says it; ``-``: it did not."""
    counted: bool = False
    """The metrics know that it was opened."""
    started_s: float = field(default_factory=time.monotonic)

    def fields(self) -> dict[str, str]:
        pairs = {
            "src.addr": str_of(self.source),
            **_who("src", self.source_workload, self.source_identity),
            "dst.addr": str_of(self.destination),
            "dst.hbone_addr": self.hbone_target,
            "dst.service": self.service,
            **_who("dst", self.destination_workload, self.destination_identity),
            "direction": self.direction,
        }
        return {name: value for name, value in pairs.items() if value}


def _who(prefix: str, workload: Workload | None, identity: SpiffeId | None) -> dict[str, str]:
    return {
        f"{prefix}.workload": workload.name if workload else "",
        f"{prefix}.namespace": workload.namespace if workload else "",
        f"{prefix}.identity": str(identity) if identity else "",
        f"{prefix}.cluster": workload.cluster if workload else "",
    }


def str_of(target: Target) -> str:
    return f"[{target.address}]:{target.port}" if target.address.version == 6 else f"{target.address}:{target.port}"


class AccessLog:
    """Writes lines. ``opened`` is ztunnel's debug level, and may be off."""

    def __init__(self, write: Callable[[str], object], *, log_opened: bool) -> None:
        self._write = write
        self._log_opened = log_opened

    def opened(self, record: Record) -> None:
        if self._log_opened:
            self._line("debug", "connection opened", record.fields())

    def complete(self, record: Record, *, sent: int = 0, received: int = 0, error: str = "") -> None:
        """The connection is over. ``sent`` is what the pod's own app sent, ``received`` what it got."""
        ended = {
            "bytes_sent": sent,
            "bytes_recv": received,
            "duration": f"{int((time.monotonic() - record.started_s) * 1000)}ms",
            **({"error": error} if error else {}),
        }
        self._line("error" if error else "info", "connection complete", {**record.fields(), **ended})

    def failed(self, record: Record, error: str) -> None:
        """It ended before anything was known of it but its addresses."""
        self._line("warn", "connection failed", {**record.fields(), "error": error})

    def warn(self, message: str) -> None:
        """Say something that is of no one connection."""
        self._line("warn", message, {}, scope="state")

    def _line(
        self, level: str, message: str, fields: dict[str, object] | dict[str, str], scope: str = "access"
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {"level": level, "time": now, "scope": scope, "message": message, **fields}
        self._write(json.dumps(line, separators=(",", ":")) + "\n")
