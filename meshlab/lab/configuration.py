"""What the data planes are told: one writer at a time puts a mesh into effect, or leaves the one before.

    edit(change)   reads the mesh, changes it, sends it, waits for the barrier, and only then sets ``mesh``

All of that is one step to other threads. Whatever ends it early, also a KeyboardInterrupt, leaves ``mesh`` as it was,
and the control plane is told to serve again what it served before. That is not waited for: the error says so.

The barrier is the control plane's: every named node has acknowledged both types at this version on a live stream, and
the certificates of new identities were issued.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from meshlab.errors import LabError, LabLostError, NotAcknowledgedError, RejectedError, UsageError
from meshlab.lab.running.programs import Peer, Programs
from meshlab.lab.settings import AfterNack
from meshlab.model import Mesh
from meshlab.translate import resources

Wire = Mapping[str, Mapping[str, str]]
"""Everything that is served, as the control plane takes it: type URL -> name -> base64 of the message."""

_TYPE_URLS = "type.googleapis.com/"
_GOES_BACK = "what was in effect before is on its way to every proxy again, and was not waited for"
_SLACK_S = 5.0
"""How much later than the deadline the control plane's answer may come."""


@dataclass(slots=True)
class Configuration:
    """The mesh that is in effect, and how another one takes its place."""

    control_plane: Peer
    mesh: Mesh
    enrolled: frozenset[str]
    """Keys of the pods that speak HBONE."""
    nodes: tuple[str, ...]
    """Nodes whose proxy takes part in the barrier."""
    programs: Programs
    after_nack: AfterNack = "resend"
    _served: Wire = field(default_factory=dict)
    """What was served last when everybody had acknowledged it: the mesh, and what was pushed raw."""
    _alone: threading.RLock = field(default_factory=threading.RLock)

    # --- one writer --------------------------------------------------------------------------------------------------

    def edit(self, change: Callable[[Mesh], Mesh], timeout_s: float) -> None:
        """Put ``change(mesh)`` into effect. What ``change`` raises is raised, and nothing was sent.

        ``timeout_s`` counts from when the edits of other threads are done.

        Raises:
            RejectedError: a proxy refused it; the message says who may still serve it.
            NotAcknowledgedError: proxy, type and version that were missing at the deadline.
        """
        with self._alone:
            mesh = change(self.mesh)
            self._put(mesh, self._wire(mesh), timeout_s)

    def add_raw(self, kind: str, name: str, body: bytes, timeout_s: float) -> None:
        """Serve one more resource as it is, until the next ``edit``; raises as ``edit`` does.

        Raises:
            UsageError: there is no such type.
        """
        with self._alone:
            wire = {type_url: dict(named) for type_url, named in self._wire(self.mesh).items()}
            type_url = _TYPE_URLS + kind.removeprefix(_TYPE_URLS)
            if type_url not in wire:
                choices = ", ".join(sorted(known.removeprefix(_TYPE_URLS) for known in wire))
                raise UsageError(f"no type '{kind}' is served to a node proxy (there are {choices})")
            wire[type_url][name] = base64.b64encode(body).decode()
            self._put(self.mesh, wire, timeout_s)

    def restart(self, start: Callable[[], Peer], mesh: Mesh | None, timeout_s: float) -> None:
        """Go on with the control plane that ``start`` gives, which knows nothing; raises as ``edit`` does."""
        with self._alone:
            self.control_plane = start()
            new = mesh or self.mesh
            self._put(new, self._wire(new), timeout_s, fallback=self._served)

    def _put(self, mesh: Mesh, wire: Wire, timeout_s: float, **more: Any) -> None:
        before = self.mesh, self._served
        try:
            self.settle(self._post(wire, (), timeout_s, **more), timeout_s)
            self.mesh, self._served = mesh, wire
        except RejectedError:
            raise  # the control plane has gone back by itself, or was asked to leave it
        except BaseException as failure:
            self.mesh, self._served = before
            self._go_back(failure)
            raise

    def _go_back(self, failure: BaseException) -> None:
        """Have the old configuration served again; this push ends the one that is still waiting."""
        with suppress(LabLostError):
            self._post(self._served, (), 0.0)
            failure.add_note(_GOES_BACK)

    # --- one push ----------------------------------------------------------------------------------------------------

    def begin(self, certificates: Collection[str], timeout_s: float) -> int:
        """Push the mesh that a lab is built with, without waiting; ``settle`` waits."""
        self._served = self._wire(self.mesh)
        return self._post(self._served, certificates, timeout_s)

    def settle(self, number: int, timeout_s: float) -> None:
        """Wait for a push to be in effect.

        Raises:
            NotAcknowledgedError: proxy, type and version that were missing at the deadline; or a proxy that is gone.
            RejectedError: a proxy's NACK, in its words.
        """
        try:
            answer, _ = self.control_plane.answer(number, timeout_s + _SLACK_S, self._look_for_the_dead)
        except (NotAcknowledgedError, LabLostError):
            raise
        except LabError as error:
            raise NotAcknowledgedError(f"not in effect: {error}") from error
        if "nack" in answer:
            raise RejectedError(_refusal(answer))
        if "superseded" in answer:
            raise NotAcknowledgedError("not in effect: another push took its place first")
        if "timeout" in answer:
            late = [f"{lag['client']}: {lag['type_url']} at version {lag['version']}" for lag in answer["timeout"]]
            late += [f"no proxy asked for a certificate of {identity}" for identity in answer["certificates"]]
            raise NotAcknowledgedError(f"not in effect within {timeout_s:g} s: {'; '.join(late)}")

    def _post(self, wire: Wire, certificates: Collection[str], timeout_s: float, **more: Any) -> int:
        return self.control_plane.post(
            "set",
            resources=wire,
            barrier=self._proxies(),
            certificates=sorted(certificates),
            timeout_s=timeout_s,
            after_nack=self.after_nack,
            **more,
        )

    def _wire(self, mesh: Mesh) -> Wire:
        return {
            kind: {name: _encoded(message) for name, message in named.items()}
            for kind, named in resources(mesh, self.enrolled).items()
        }

    def _proxies(self) -> list[str]:
        return [f"ztunnel@{node}" for node in self.nodes]

    def _look_for_the_dead(self) -> None:
        for name in self._proxies():
            if self.programs.has_ended(name):
                raise NotAcknowledgedError(f"not in effect: {self.programs.why_gone(name)}")


def _refusal(answer: Mapping[str, Any]) -> str:
    nack = answer["nack"]
    refused = f"{nack['client']} refused {nack['type_url']}: {nack['detail']}"
    if not answer["went_back"]:
        return f"{refused}. It is still served (after_nack is 'leave')"
    if behind := sorted({lag["client"] for lag in answer["behind"]}):
        return f"{refused}. The version before was sent again; who has not acknowledged it: {', '.join(behind)}"
    return f"{refused}. All have gone back to the version before"


def _encoded(message: Any) -> str:
    """Deterministic, since a resource's version is the hash of its bytes."""
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()
