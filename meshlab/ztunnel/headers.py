"""Headers of a CONNECT and of its 200: for telemetry, never for a decision.

Source: https://www.w3.org/TR/baggage/, https://www.rfc-editor.org/rfc/rfc7239, https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import random

from meshlab.ztunnel.state import Workload


def baggage(workload: Workload) -> str:
    """What a workload says of itself."""
    pairs = {
        "k8s.cluster.name": workload.cluster,
        "k8s.namespace.name": workload.namespace,
        f"k8s.{workload.kind}.name": workload.workload_name,
        "service.name": workload.canonical_name,
        "service.version": workload.canonical_revision,
    }
    return ",".join(f"{name}={value}" for name, value in pairs.items() if value)


def connect_headers(source: Workload, client: str, service: str, rng: random.Random) -> dict[str, str]:
    """Of a CONNECT for ``client`` (``ip:port``), which dialled ``service`` (a host name, or empty)."""
    return {
        "baggage": baggage(source),
        "forwarded": f'for="{client}"' + (f";host={service}" if service else ""),
        "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-00",
    }
