"""meshlab: a network-namespace test lab for service-mesh proxies.

Importing this package loads nothing heavy: the names below are looked up where they live when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlab.errors import MeshlabError
    from meshlab.lab import Lab, PodHandle, open_lab
    from meshlab.model import Call, Outcome, SpiffeId
    from meshlab.model.report import Grade

__version__ = "0.1.0"
__all__ = ["Call", "Grade", "Lab", "MeshlabError", "Outcome", "PodHandle", "SpiffeId", "__version__", "open_lab"]

_HOMES = {
    "Call": "meshlab.model",
    "Grade": "meshlab.model.report",
    "Lab": "meshlab.lab",
    "MeshlabError": "meshlab.errors",
    "Outcome": "meshlab.model",
    "PodHandle": "meshlab.lab",
    "SpiffeId": "meshlab.model",
    "open_lab": "meshlab.lab",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meshlab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
