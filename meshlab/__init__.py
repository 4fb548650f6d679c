"""meshlab: a network-namespace test lab for service-mesh proxies.

Importing this package loads nothing heavy: the names below are looked up where they live when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshlab.version import __version__

if TYPE_CHECKING:
    from meshlab.errors import (
        AuditError,
        CannotTellError,
        ConnectionEndedError,
        DeadlineError,
        EvidenceError,
        HostNotReadyError,
        KernelRefusedError,
        LabError,
        LabLostError,
        MeshlabError,
        NotAcknowledgedError,
        NotEnrolledError,
        ProofError,
        ProofFailedError,
        ProtocolError,
        RejectedError,
        TopologyError,
        UsageError,
    )
    from meshlab.kernel.execute import Completed
    from meshlab.lab import Capture, Lab, LabSettings, PodHandle, Settings, open_lab
    from meshlab.lab.calls.background import Traffic
    from meshlab.lab.calls.connections import OpenConnection
    from meshlab.model import Call, Outcome, SpiffeId
    from meshlab.model.report import Grade, Proof, Result
    from meshlab.pki.tokens import TokenIssuer

__all__ = [
    "AuditError",
    "Call",
    "CannotTellError",
    "Capture",
    "Completed",
    "ConnectionEndedError",
    "DeadlineError",
    "EvidenceError",
    "Grade",
    "HostNotReadyError",
    "KernelRefusedError",
    "Lab",
    "LabError",
    "LabLostError",
    "LabSettings",
    "MeshlabError",
    "NotAcknowledgedError",
    "NotEnrolledError",
    "OpenConnection",
    "Outcome",
    "PodHandle",
    "Proof",
    "ProofError",
    "ProofFailedError",
    "ProtocolError",
    "RejectedError",
    "Result",
    "Settings",
    "SpiffeId",
    "TokenIssuer",
    "TopologyError",
    "Traffic",
    "UsageError",
    "__version__",
    "open_lab",
]

_HOMES = {
    "AuditError": "meshlab.errors",
    "Call": "meshlab.model",
    "CannotTellError": "meshlab.errors",
    "Capture": "meshlab.lab",
    "Completed": "meshlab.kernel.execute",
    "ConnectionEndedError": "meshlab.errors",
    "DeadlineError": "meshlab.errors",
    "EvidenceError": "meshlab.errors",
    "Grade": "meshlab.model.report",
    "HostNotReadyError": "meshlab.errors",
    "KernelRefusedError": "meshlab.errors",
    "Lab": "meshlab.lab",
    "LabError": "meshlab.errors",
    "LabLostError": "meshlab.errors",
    "LabSettings": "meshlab.lab",
    "MeshlabError": "meshlab.errors",
    "NotAcknowledgedError": "meshlab.errors",
    "NotEnrolledError": "meshlab.errors",
    "OpenConnection": "meshlab.lab.calls.connections",
    "Outcome": "meshlab.model",
    "PodHandle": "meshlab.lab",
    "Proof": "meshlab.model.report",
    "ProofError": "meshlab.errors",
    "ProofFailedError": "meshlab.errors",
    "ProtocolError": "meshlab.errors",
    "RejectedError": "meshlab.errors",
    "Result": "meshlab.model.report",
    "Settings": "meshlab.lab",
    "SpiffeId": "meshlab.model",
    "TokenIssuer": "meshlab.pki.tokens",
    "TopologyError": "meshlab.errors",
    "Traffic": "meshlab.lab.calls.background",
    "UsageError": "meshlab.errors",
    "open_lab": "meshlab.lab",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meshlab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
