"""What the loader finds while it reads: issues that refuse the file, and keys that have no part in traffic."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlab.errors import Issue, TopologyError

MAX_ISSUES = 200
"""More than anybody mends at once. A file can hold a mistake in each line, and each costs time and a line of output."""
_LISTED = 40
_SHOWN = 80
_COMPARED = 500
"""Among more choices no nearest one is looked for: each comparison takes tens of microseconds."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands in the text, both counted from 1."""

    line: int
    column: int


START = Place(1, 1)


@dataclass(slots=True)
class Notes:
    """Collected while one text is read; little is raised before the end, so that every reason is shown at once."""

    source: str
    issues: list[Issue] = field(default_factory=list)
    inert: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)

    def refuse(self, place: Place, message: str) -> None:
        """Note an issue.

        Raises:
            TopologyError: there are ``MAX_ISSUES`` of them; the rest of the file is not read.
        """
        self.issues.append(self.at(place, message))
        if len(self.issues) == MAX_ISSUES:
            more = f"after {MAX_ISSUES} issues the rest was not read: there may be more"
            raise TopologyError([*self.issues, self.at(START, more)])

    def ignore(self, place: Place, message: str) -> None:
        self.inert.append(self.at(place, message))

    def warn(self, place: Place, message: str) -> None:
        self.warnings.append(self.at(place, message))

    def at(self, place: Place, message: str) -> Issue:
        return Issue(self.source, place.line, place.column, message)

    def raise_if_refused(self) -> None:
        if self.issues:
            raise TopologyError(self.issues)


def shown(text: str) -> str:
    """``text`` in quotes, cut where it would fill the screen."""
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN]}...'"


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the choice that is nearest to ``value``, else nothing."""
    ordered = sorted(choices)  # of two that are equally near, the same one on every run
    if len(value) > _SHOWN or len(ordered) > _COMPARED:
        return ""
    near = difflib.get_close_matches(value, ordered, n=1, cutoff=0.6)
    folded = [choice for choice in ordered if choice.lower() == value.lower()]
    best = folded or near
    return f" Did you mean '{best[0]}'?" if best else ""


def listed(choices: Iterable[str]) -> str:
    """The choices for a message, sorted; a long list is cut and says so."""
    ordered = sorted(choices)
    more = f", and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more
