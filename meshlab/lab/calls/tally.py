"""What traffic comes to: counts, failed calls, broken connections, and what they prove. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from meshlab.lab.calls.explained import Explanation
from meshlab.model import Call
from meshlab.model.report import Grade, Proof
from meshlab.proofs.draft import Draft

_T = TypeVar("_T")
KEPT = 1000
"""So many failures, and so many broken connections, are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A new call that ended as no mesh that was in effect meanwhile explains."""

    call: Call
    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Broken:
    """An open connection that ended, although nobody at this end closed it."""

    source: str
    """The pod that had opened it, ``namespace/name``."""
    to: str
    at_ns: int
    """In CLOCK_REALTIME."""
    closed_by: str
    """As ``OpenConnection.closed_by``; ``silence``: it had not answered for 5 s."""

    def __str__(self) -> str:
        return f"the connection of {self.source} to {self.to} was ended by '{self.closed_by}'"


@dataclass(slots=True)
class Tally:
    """See the module."""

    calls_made: int = 0
    answered: int = 0
    skipped: int = 0
    failed_new: int = 0
    wrong_identity: int = 0
    failures: list[Failure] = field(default_factory=list)
    opened: int = 0
    """Open connections, those that were opened again too."""
    not_opened: int = 0
    """Attempts to open one that were refused, or not answered."""
    asks_answered: int = 0
    broken_open: int = 0
    broken: list[Broken] = field(default_factory=list)

    def took(self, call: Call, explanation: Explanation) -> None:
        """Count a call that has ended."""
        self.calls_made += 1
        self.answered += call.answered
        self.wrong_identity += explanation.wrong_identity
        if explanation.failure:
            self.failed_new += 1
            _keep(self.failures, Failure(call, explanation.failure))

    def broke(self, broken: Broken) -> None:
        """Count an open connection that has ended."""
        self.broken_open += 1
        _keep(self.broken, broken)

    def prove_new(self) -> Proof:
        """Prove that ``failed_new`` is 0. The control is how many calls were answered."""
        draft = _draft("failed-new", f"{self.answered} calls were answered" if self.answered else "")
        if self.failed_new:
            return _named(draft.failed(f"{self.failed_new} of {self.calls_made} calls: {self.failures[0]}"))
        if not self.calls_made:
            return _named(draft.cannot_tell("no call was made"))
        if not self.answered:
            return _named(draft.cannot_tell(f"none of {self.calls_made} calls was answered, so none may have arrived"))
        others = self.calls_made - self.answered
        return _named(draft.held(self.calls_made, f"{others} calls were refused, as policies say" if others else ""))

    def prove_open(self) -> Proof:
        """Prove that ``broken_open`` is 0. The control is how many times an open connection has answered."""
        asked = f"{self.opened} connections answered {self.asks_answered} times" if self.asks_answered else ""
        draft = _draft("broken-open", asked)
        if self.broken_open:
            return _named(draft.failed(f"{self.broken_open} broke; the first: {self.broken[0]}"))
        if not self.opened:
            refused = f" ({self.not_opened} attempts were refused)" if self.not_opened else ""
            return _named(draft.cannot_tell(f"no connection was open{refused}"))
        if not self.asks_answered:
            return _named(draft.cannot_tell("no open connection has answered: only the built-in echo is asked"))
        return _named(draft.held(self.opened, ""))


def _draft(kind: str, control: str) -> Draft:
    return Draft(kind, "*", "*", 0, 4, Grade.WIRE, control, 0)


def _named(proof: Proof) -> Proof:
    return replace(proof, id=proof.kind)


def _keep(kept: list[_T], one: _T) -> None:
    if len(kept) < KEPT:
        kept.append(one)


def in_one_line(tally: Tally, plaintext: Sequence[int]) -> str:
    """The numbers of traffic, as its ``repr`` shows them; ``plaintext``: in_plaintext and kept_plaintext, if known."""
    words = [
        f"{tally.calls_made} calls",
        f"failed_new {tally.failed_new}",
        f"{tally.opened} connections",
        f"broken_open {tally.broken_open}",
    ]
    if plaintext:
        words += [f"in_plaintext {plaintext[0]}", f"kept_plaintext {plaintext[1]}"]
    if tally.skipped:
        words.append(f"skipped {tally.skipped}")
    if tally.wrong_identity:
        words.append(f"wrong_identity {tally.wrong_identity}")
    return f"<traffic: {', '.join(words)}>"
