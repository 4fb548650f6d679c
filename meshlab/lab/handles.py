"""A namespace of a running lab, with the verbs that a test needs."""

from __future__ import annotations

from collections.abc import Mapping

from meshlab.lab import edits
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.rollout import Rollout
from meshlab.lab.transition import Transitions


@checks_arguments
class NamespaceHandle:
    """One namespace. ``handle.label({"istio.io/dataplane-mode": "ambient"})`` enrols its pods, as in a cluster."""

    def __init__(self, transitions: Transitions, name: str) -> None:
        self._transitions = transitions
        self.name = name

    @property
    def labels(self) -> Mapping[str, str]:
        return self._transitions.site.mesh.namespace_labels(self.name)

    def label(self, labels: Mapping[str, str | None], timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Set labels; ``None`` takes one away. In effect on return; raises as ``lab.apply``."""
        return self._transitions.put(lambda mesh: edits.label_namespace(mesh, self.name, labels), timeout_s, wait=wait)

    def __repr__(self) -> str:
        return f"<namespace {self.name}>"
