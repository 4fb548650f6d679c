"""What a ztunnel says of itself on its admin port.

Source: https://istio.io/latest/docs/ambient/usage/troubleshoot-ztunnel/
"""

from __future__ import annotations

import json
from typing import Any

from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.status import Page
from meshlab.ztunnel.state import State


def config_dump(state: State, certificates: Certificates) -> Page:
    """What was received, by its names, and the state of each certificate."""

    def page() -> tuple[int, str]:
        dump: dict[str, Any] = {
            "certificates": [{"identity": str(who), "state": how} for who, how in certificates.states().items()],
            "policies": sorted(state.policies),
            "services": sorted(state.services),
            "workloads": sorted(state.workloads),
        }
        return 200, json.dumps(dump, indent=2)

    return page
