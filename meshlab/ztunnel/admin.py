"""What a ztunnel says of itself on its admin port.

Source: https://istio.io/latest/docs/ambient/usage/troubleshoot-ztunnel/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from meshlab.model import SpiffeId
from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.status import Page
from meshlab.ztunnel.state import State


def config_dump(state: State, certificates: Certificates) -> Page:
    """Everything that was received and is kept, by its resource names, and the state of each certificate."""

    def page() -> tuple[int, str]:
        dump: dict[str, Any] = {
            "certificates": [{"identity": str(who), "state": how} for who, how in certificates.states().items()],
            "policies": plain(state.policies),
            "services": plain(state.services),
            "workloads": plain(state.workloads),
        }
        return 200, json.dumps(dump, indent=2)

    return page


def plain(value: object) -> Any:
    """``value`` as JSON has it: dataclasses and mappings as objects, sorted; addresses and identities as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case Mapping():
            return {str(key): plain(value[key]) for key in sorted(value)}
        case tuple() | list():
            return [plain(item) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, SpiffeId):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            return str(value)
