"""What can go wrong, sorted by who can act on it.

    TopologyError        your file: place, value, choices, fix
    HostNotReadyError    your machine: what is missing, and the command that mends it
    KernelRefusedError   Linux: operation, netns, errno
    ProtocolError        the peer: what it said, and the rule that it broke
    DeadlineError        a command that was run, or an answer on an open connection, was not there in time
    LabError             the lab: it was lost, did not come up, or a proxy refused its configuration
    ProofError           the mesh: what was to be proven does not hold, or could not be seen

Nothing here imports anything, so that every layer can raise these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


class MeshlabError(Exception):
    """Base of every error that meshlab raises on purpose."""


@dataclass(frozen=True, slots=True, order=True)
class Issue:
    """One thing wrong in a topology file."""

    source: str
    """The file's name as the user gave it."""
    line: int
    """From 1."""
    column: int
    """From 1."""
    message: str
    """What is wrong: the value, the choices, and a «did you mean»."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}: {self.message}"


class TopologyError(MeshlabError):
    """The topology file cannot be used; ``issues`` lists every reason found, in file order."""

    def __init__(self, issues: list[Issue] | tuple[Issue, ...]) -> None:
        self.issues = tuple(sorted(issues))
        super().__init__("\n".join(str(issue) for issue in self.issues))


class UsageError(MeshlabError):
    """An argument that will not do: of another type, or an unknown topology, mutant, pod or implementation."""


class HostNotReadyError(MeshlabError):
    """This machine cannot hold a lab; the message says the fix first."""


class KernelRefusedError(MeshlabError):
    """Linux refused an operation."""

    def __init__(self, operation: str, netns: str, errno: int, detail: str = "") -> None:
        self.operation = operation
        self.netns = netns
        self.errno = errno
        self.detail = detail
        tail = f" ({detail})" if detail else ""
        super().__init__(f"{operation} in netns '{netns}': {os.strerror(errno)} [{errno}]{tail}")


class ProtocolError(MeshlabError):
    """A peer broke a protocol's rule. ``code`` is the wire's own code where it has one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)


class DeadlineError(MeshlabError, TimeoutError):
    """A command in a pod had not ended at its deadline, and was killed; or an open connection brought no answer.

    Also a ``TimeoutError``.
    """


class LabError(MeshlabError):
    """Base of what happens to a lab as a whole."""


class LabLostError(LabError):
    """The lab's netd or one of its programs is gone, so nothing in it can be trusted any more."""


class ConnectionEndedError(LabError):
    """An open connection was asked for something after it had ended: who closed it, and when."""


class StillRunsError(LabError, TimeoutError):
    """A process of the lab had not ended at the deadline."""


class NotEnrolledError(LabError):
    """A pod that belongs in the mesh was still pending at the deadline."""


class NotAcknowledgedError(LabError):
    """A data plane did not acknowledge a configuration in time: proxy, type and version."""


class RejectedError(LabError):
    """A data plane refused a configuration (NACK); the message says whether all have gone back to the one before."""


class AuditError(LabError):
    """When the lab closed something was not as it should be: an exit, a panic, a NACK, a leftover."""


class EvidenceError(LabError):
    """Not all that a lab saw could be saved; what could be is there."""


class ProofError(MeshlabError, AssertionError):
    """Base of proofs that do not hold. Also an ``AssertionError``, so pytest shows it as a failure."""


class ProofFailedError(ProofError):
    """The captures show the opposite of the claim."""


class CannotTellError(ProofError):
    """The claim can be neither proven nor refuted: a control is missing, packets were lost, ..."""
