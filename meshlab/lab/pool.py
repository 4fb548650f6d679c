"""Labs that were used and are as good as new, kept for the next who asks for one of the same topology and settings.

    take ---> a lab that waits, or a new one
    give ---> renewed and proven (``lab.renew``), it waits; else whoever has it closes it

What waits is bounded: the one that has waited longest makes room. Of one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from meshlab.errors import LabError, MeshlabError
from meshlab.lab.lab import Lab
from meshlab.lab.lifetime import open_lab
from meshlab.lab.sources import Source

_KEEPS_MORE = ("mutant", "record", "keylog", "step")
"""Settings of labs that keep what was before: a broken part is not as good as new, and a record goes on."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A lab that is open, of what, and what closes it."""

    source: Source
    settings: Mapping[str, Any]
    manager: AbstractContextManager[Lab]
    lab: Lab


class Pool:
    def __init__(self, most: int) -> None:
        """
        Args:
            most: how many labs wait at a time.
        """
        self._most = most
        self._waiting: list[Opened] = []
        """The one that has waited longest first."""

    def take(self, source: Source, settings: Mapping[str, Any]) -> Opened:
        """A lab of this topology and these settings; raises as ``open_lab``."""
        for opened in self._waiting:
            if (opened.source, opened.settings) == (source, settings):
                self._waiting.remove(opened)
                if _is_whole(opened.lab):
                    return opened
                _close(opened)
                break
        manager = open_lab(source, **settings)
        return Opened(source, settings, manager, manager.__enter__())

    def give(self, opened: Opened) -> bool:
        """Take a lab back; ``False`` where it is not kept, so that whoever has it closes it."""
        if not self._most or any(opened.settings.get(name) for name in _KEEPS_MORE):
            return False
        try:
            opened.lab.renew()
        except MeshlabError:
            return False
        except BaseException:
            _close(opened)
            raise
        self._waiting.append(opened)
        while len(self._waiting) > self._most:
            _close(self._waiting.pop(0))
        return True

    def throw_away(self, lab: Lab) -> None:
        """Close this lab, if it waits here."""
        for opened in [opened for opened in self._waiting if opened.lab is lab]:
            self._waiting.remove(opened)
            _close(opened)

    def close(self) -> None:
        """Close every lab that waits."""
        while self._waiting:
            _close(self._waiting.pop())


def _is_whole(lab: Lab) -> bool:
    try:
        lab.audit()
    except LabError:
        return False
    return True


def _close(opened: Opened) -> None:
    """Close a lab that no test has any more: what its audit finds is nobody's."""
    with suppress(LabError):
        opened.manager.__exit__(None, None, None)
