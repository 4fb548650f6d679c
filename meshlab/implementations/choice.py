"""A proxy that was chosen: what it says of itself and how it is launched. What nobody would do is refused by name.

A field of ``Launch`` that is read by nobody would start a proxy that lacks what it asked for, and blame the proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from meshlab.errors import UsageError
from meshlab.implementations.protocol import (
    Implementation,
    Launch,
    NodeProxy,
    NodeSlot,
    WaypointProxy,
    WaypointSlot,
)
from meshlab.implementations.ztunnel import FEATURES

_T = TypeVar("_T")
_CLAIMS = frozenset({"identity"})
_NOT_DONE = {
    "files": "the lab writes no files for a proxy: give the text in a variable of `env`, or keep it beside the program",
    "ready": "the lab asks no readiness probe: it waits until the proxy has acknowledged pods and configuration",
    "keylog": "the lab reads no such file: only a program started by `entry` hands over secrets, by fds['keylog']",
}
"""Fields of ``Launch`` that must stay at their default, and what to do instead."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A proxy of some role, and the name that tables give it."""

    role: ClassVar[str]
    name: str

    def described(self, proxy: NodeProxy | WaypointProxy | None) -> Implementation:
        """What it says of itself.

        Raises:
            UsageError: it is a plug-in whose ``describe`` fails.
        """
        if proxy is None:
            return Implementation(name=self.name, version="", roles=())
        return self._called("describe", proxy.describe, Implementation)

    def launched(self, described: Implementation, launch: Callable[[], Launch]) -> Launch:
        """The program to start, checked.

        Raises:
            UsageError: it is a plug-in that fails, or that asks for what the lab does not do.
        """
        self._refuse_description(described)
        made = self._called("launch", launch, Launch)
        self._refuse_launch(made)
        return made

    def _called(self, name: str, function: Callable[[], _T], kind: type[_T]) -> _T:
        try:
            result = function()
        except Exception as error:  # a stranger's code may raise anything
            raise UsageError(f"{self.role} '{self.name}': {name}() failed: {type(error).__name__}: {error}") from error
        if not isinstance(result, kind):
            raise UsageError(f"{self.role} '{self.name}': {name}() gave {type(result).__name__}, not {kind.__name__}")
        return result

    def _refuse_description(self, described: Implementation) -> None:
        if self.role not in described.roles:
            self._refuse("roles", f"'{self.role}' is not among them ({', '.join(described.roles) or 'none'})")
        for name, said, known in (("features", described.features, FEATURES), ("claims", described.claims, _CLAIMS)):
            if unknown := sorted(set(said) - known):
                self._refuse(name, f"there is no '{unknown[0]}' ({', '.join(sorted(known))})")
        if described.features and (missing := sorted(FEATURES - described.features)):
            self._refuse("features", f"without {', '.join(missing)}, but no check is skipped: leave `features` empty")

    def _refuse_launch(self, launch: Launch) -> None:
        if bool(launch.argv) == bool(launch.entry):
            self._refuse("argv and entry", "exactly one of them has to be set")
        for name, why in _NOT_DONE.items():
            if getattr(launch, name):
                self._refuse(name, why)
        if launch.access_log not in (None, "istio-json"):
            self._refuse("access_log", f"the lab reads 'istio-json', not {launch.access_log!r}")

    def _refuse(self, field: str, why: str) -> None:
        raise UsageError(f"{self.role} '{self.name}', {field}: {why}")


@dataclass(frozen=True, slots=True)
class Choice(_Chosen):
    """A node proxy and the name that tables give it."""

    role: ClassVar[str] = "ztunnel"
    proxy: NodeProxy | None
    """``None``: nothing is started, and every pod of the mesh stays pending."""

    def describe(self) -> Implementation:
        """What it says of itself; raises ``UsageError`` where it is a plug-in whose ``describe`` fails."""
        return self.described(self.proxy)

    def launch(self, slot: NodeSlot) -> Launch:
        """The program to start as the ztunnel of the node that ``slot`` describes.

        Raises:
            UsageError: it is a plug-in that fails, or that asks for what the lab does not do.
        """
        proxy = self.proxy
        assert proxy is not None
        return self.launched(self.describe(), lambda: proxy.launch(slot))


@dataclass(frozen=True, slots=True)
class WaypointChoice(_Chosen):
    """A waypoint and the name that tables give it."""

    role: ClassVar[str] = "waypoint"
    proxy: WaypointProxy | None
    """``None``: nothing is started, and every call that should pass a waypoint is refused."""

    def describe(self) -> Implementation:
        """As of ``Choice``."""
        return self.described(self.proxy)

    def launch(self, slot: WaypointSlot) -> Launch:
        """As of ``Choice``."""
        proxy = self.proxy
        assert proxy is not None
        return self.launched(self.describe(), lambda: proxy.launch(slot))
