"""What the data planes are told: manifests in, a push and its barrier out.

The barrier is the control plane's: every named node has acknowledged both types at this version on a live stream, and
the certificates of new identities were issued. A NACK has been rolled back when the answer comes.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from meshlab.errors import NotAcknowledgedError, RejectedError
from meshlab.lab.programs import Peer, Programs
from meshlab.model import Mesh
from meshlab.translate import resources


@dataclass(slots=True)
class Configuration:
    """The mesh as it was last accepted, and how a new one is put into effect."""

    control_plane: Peer
    mesh: Mesh
    enrolled: frozenset[str]
    """Keys of the pods that speak HBONE."""
    nodes: tuple[str, ...]
    """Nodes whose proxy takes part in the barrier."""
    programs: Programs
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wire(self) -> dict[str, dict[str, str]]:
        """The mesh as it is, as the control plane takes it: type -> name -> base64 of the message."""
        return {
            kind: {name: _encoded(message) for name, message in named.items()}
            for kind, named in resources(self.mesh, self.enrolled).items()
        }

    def post(
        self, certificates: Collection[str], timeout_s: float, wire: dict[str, dict[str, str]] | None = None
    ) -> int:
        """Push the mesh as it is, or ``wire``, without waiting; ``settle`` waits."""
        return self.control_plane.post(
            "set",
            resources=wire or self.wire(),
            barrier=list(self.nodes),
            certificates=sorted(certificates),
            timeout_s=timeout_s,
        )

    def settle(self, number: int, timeout_s: float) -> None:
        """Wait for a push to be in effect.

        Raises:
            NotAcknowledgedError: proxy, type and version that were missing at the deadline; or a proxy that is gone.
            RejectedError: a proxy's NACK, in its words.
        """
        answer, _ = self.control_plane.answer(number, timeout_s + 5, self._look_for_the_dead)
        if "nack" in answer:
            nack = answer["nack"]
            raise RejectedError(f"ztunnel@{nack['node']} refused {nack['type_url']}: {nack['detail']}")
        if "timeout" in answer:
            late = [
                f"ztunnel@{entry.get('node', '?')}: {entry.get('type_url', '?')} at version {entry.get('version', '?')}"
                for entry in answer["timeout"]
            ]
            late += [f"no proxy asked for a certificate of {identity}" for identity in answer.get("certificates", ())]
            raise NotAcknowledgedError(f"not in effect within {timeout_s:g} s: {'; '.join(late)}")

    def _look_for_the_dead(self) -> None:
        for name in (f"ztunnel@{node}" for node in self.nodes):
            if self.programs.has_ended(name):
                raise NotAcknowledgedError(f"not in effect: {self.programs.why_gone(name)}")

    def change(self, mesh: Mesh, timeout_s: float) -> None:
        """Put ``mesh`` into effect, or go back to what was and raise as ``settle`` does.

        Where a proxy did not acknowledge, others may have: they are told to go back, and are not waited for.
        """
        with self._lock:
            before, self.mesh = self.mesh, mesh
            try:
                self.settle(self.post((), timeout_s), timeout_s)
            except RejectedError:
                self.mesh = before  # the control plane has gone back by itself
                raise
            except NotAcknowledgedError:
                self.mesh = before
                self.post((), timeout_s)
                raise


def _encoded(message: Any) -> str:
    """Deterministic, since a resource's version is the hash of its bytes."""
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()
