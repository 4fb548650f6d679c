"""What the parts of a lab ask of the lab as a whole, as protocols. ``Lab`` has all of it, and the parts know only this.

    LabView            the mesh in effect, and what stands for it
      ViewForProofs    captures, what the servers counted, and which mesh was in effect when
      ViewForTraffic   canaries, a capture, and what a call should come to
      ViewForPods      calls from pods, and changes of the mesh
      ViewForEvidence  all that is saved when something failed

``lab.py`` imports the parts, so that the parts cannot import ``lab.py``. A part that needs more adds it to its view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from meshlab.kernel.sandbox import Netns
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.connections import OpenConnection
from meshlab.lab.history import History
from meshlab.lab.proving.captures import Captures
from meshlab.lab.rollout import Rollout
from meshlab.lab.site import Site
from meshlab.model import Call, Family, Mesh, Topology
from meshlab.proofs.arrivals import Arrivals, Kernel
from meshlab.proofs.window import Window


class LabView(Protocol):
    """What every part may look at."""

    @property
    def mesh(self) -> Mesh:
        """The manifests that are in effect."""

    @property
    def site(self) -> Site:
        """What the kernel and the programs hold of the lab."""


class ViewForProofs(LabView, Protocol):
    """What a capture, and the identities and arrivals that it proves, are read from."""

    @property
    def history(self) -> History:
        """Which mesh was in effect when."""

    @property
    def captures(self) -> Captures:
        """The rings that record every link."""

    def arrivals(self, calls: Sequence[Call], since_ns: int, before: Kernel | None = None) -> Arrivals:
        """What the servers counted from ``since_ns`` on."""


class ViewForTraffic(LabView, Protocol):
    """What traffic that goes on while the lab changes needs."""

    @property
    def history(self) -> History:
        """Which mesh was in effect when."""

    @property
    def not_listening(self) -> frozenset[tuple[str, int, Family]]:
        """(pod, port, family) where any mesh refuses a call, since nobody listens there."""

    def canaries(self, count: int) -> list[tuple[int, bytes]]:
        """Take so many numbers of calls; each with its canary."""

    def capture(self) -> AbstractContextManager[CaptureView]:
        """Open a window over the captures, until the block ends."""


class ViewForPods(LabView, Protocol):
    """What the verbs of a pod are made of."""

    @property
    def transitions(self) -> Writer:
        """Who changes the mesh."""

    def netns(self, key: str) -> Netns:
        """A netns by its key in the plan."""

    def calls(self, requests: Sequence[Request]) -> list[Call]:
        """Make these calls, in order."""

    def connect(self, requests: Sequence[Request]) -> list[OpenConnection]:
        """Open these connections, in order; they stay open."""


class ViewForEvidence(LabView, Protocol):
    """What is saved of a lab."""

    @property
    def topology(self) -> Topology:
        """The file, with the mesh that it has."""

    @property
    def pending(self) -> Mapping[str, str]:
        """Pods that belong in the mesh and are not in it -> why."""

    @property
    def last_capture(self) -> CaptureView | None:
        """The capture that was opened last."""

    def told(self) -> list[str]:
        """The last calls, a sentence each."""

    def logs(self, program: str) -> str:
        """What a program has printed."""

    def rules(self, pod: str) -> str:
        """The nft text of the redirect rules in a pod."""


class CaptureView(Protocol):
    """What traffic and evidence need of a capture."""

    @property
    def window(self) -> Window:
        """What was seen."""

    def save(self, path: Path) -> Path:
        """Write what was seen as pcapng."""


class Writer(Protocol):
    """The one who changes a lab's mesh."""

    def put(self, change: Callable[[Mesh], Mesh], timeout_s: float, *, wait: bool) -> Rollout:
        """Put ``change(mesh)`` into effect, or with ``wait=False`` begin to."""
