"""Many examples on one lab, until their number or the time is over.

    Hypothesis draws an example --> replace, calls --> replace, calls --> window closed: proofs --> counted
                                        \\___________ one capture window ___________/      `-- wrong: reported

While calls run nothing is drawn: both would share the interpreter. What an example changed is taken back by the next
one's ``replace``; a lab in which a program died is left, and a fresh one goes on.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase
from hypothesis.errors import HypothesisException

from meshlab.errors import AuditError, LabError, LabLostError, RejectedError
from meshlab.fuzz import histories
from meshlab.fuzz.choose import MOST, candidates
from meshlab.fuzz.example import Example, examples, of_policies
from meshlab.fuzz.histories import History
from meshlab.fuzz.properties import make, wrong_identities, wrong_verdicts
from meshlab.fuzz.tally import Failure, Tally
from meshlab.lab import Lab, edits
from meshlab.model import Mesh
from meshlab.play.bench import Bench
from meshlab.play.faults import Wrong, in_clear, is_tunnelled
from meshlab.play.replay import play as play_file

_CHUNK = 200
"""Examples of one run of Hypothesis; a failure ends it, and each has a seed of its own."""
_IDENTITIES_EVERY = 10
_AUDIT_EVERY = 50
_CHANGE_S = 10.0
_HAPPENS = 8
"""So many things happen in a history, at most."""
_ALIKE = 3
"""So many failures that look alike are reported; from then on they are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a campaign goes."""

    examples: int | None = None
    seconds: float | None = None
    failures: int = 10
    """Different ones."""
    most_calls: int = MOST


Drawn = Example | History
Reporter = Callable[[Drawn, list[Wrong], Drawn | None], Failure | None]
"""What to do with a failing example, given also the one before it; ``None``: its like was reported already."""


class _FoundError(Exception):
    """Tells Hypothesis that an example failed, so that it keeps it in the corpus."""


class _OverError(BaseException):
    """Leaves Hypothesis at once: what it has not tried yet it must not take for mended, and forget."""


@dataclass(slots=True)
class Campaign:
    """See the module."""

    bench: Bench
    seed: int
    corpus: Path | None
    """Hypothesis' database: what failed is tried first the next time; ``None``: nothing is kept."""
    limits: Limits
    report: Reporter
    progress: Callable[[Tally], None]
    stop: Callable[[], bool] = lambda: False
    """Asked before each example. Nothing interrupts one in its middle."""
    histories: bool = False
    """Whether an example is what happens to a living mesh, and not policies and calls."""
    tally: Tally = field(default_factory=Tally)
    _alike: Counter[tuple[str, str]] = field(default_factory=Counter)
    gone: str = ""
    """Why no lab can be opened any more, if so: that ends the campaign."""
    _before: Drawn | None = None
    _until: float = float("inf")
    _began: float = 0.0
    _aside_s: float = 0.0
    """Spent on building labs and on reporting."""

    def run(self) -> Tally:
        """Go on until a limit is reached.

        Raises:
            LabError: no lab can be opened at all.
        """
        self._until = time.monotonic() + (self.limits.seconds if self.limits.seconds is not None else float("inf"))
        gc.collect()
        gc.freeze()  # what was loaded stays, and need not be looked through again after each window
        first, drawn = self.drawn()
        self._began = time.monotonic()
        self._try(first)
        self._chunk(drawn, 0, Phase.reuse)
        chunk = 0
        while not self._over:
            self._chunk(drawn, chunk, Phase.generate)
            chunk += 1
        return self.tally

    def drawn(self) -> tuple[Drawn, st.SearchStrategy[Drawn]]:
        """The example that comes first, and whence the others come."""
        if self.histories:
            topology = self.bench.source.topology
            return histories.first(topology), histories.drawn(topology, _HAPPENS)
        mesh = self.bench.lab.topology.mesh
        possible = candidates(mesh, self.bench.lab.not_listening)
        most = self.limits.most_calls
        return of_policies(mesh, possible, most), examples(mesh, possible, most)

    @property
    def _over(self) -> bool:
        enough = self.limits.examples is not None and self.tally.examples >= self.limits.examples
        found = len(self.tally.failures) >= self.limits.failures
        return enough or found or bool(self.gone) or time.monotonic() >= self._until or self.stop()

    def _chunk(self, drawn: st.SearchStrategy[Drawn], chunk: int, phase: Phase) -> None:
        left = _CHUNK if self.limits.examples is None else self.limits.examples - self.tally.examples
        found: list[Drawn] = []

        @settings(
            max_examples=max(1, min(_CHUNK, left)),
            phases=[phase],
            database=self._database(),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=phase is Phase.reuse,  # else what comes after the first that fails is not tried
            print_blob=False,
        )
        @with_seed(self.seed * 1_000_003 + chunk)  # beneath the settings: above them it would take the database away
        @given(drawn)
        def policies_get_the_oracles_verdicts(example: Drawn) -> None:
            if example not in found:  # Hypothesis asks again before it believes
                if self._over:
                    raise _OverError
                wrong, new = self._try(example)
                if not new and not (wrong and phase is Phase.reuse):
                    return
                found.append(example)
            raise _FoundError

        with suppress(_FoundError, _OverError, HypothesisException, SkipTest):  # skipped: an empty corpus
            policies_get_the_oracles_verdicts()

    def _database(self) -> ExampleDatabase | None:
        """One for each topology: another one makes other examples of the same bytes."""
        return DirectoryBasedExampleDatabase(self.corpus / self.bench.source.topology.name) if self.corpus else None

    # --- one example -------------------------------------------------------------------------------------------------

    def _try(self, example: Drawn) -> tuple[bool, bool]:
        """Whether ``example`` failed, and in a way that was not known."""
        wrong = self._play(example)
        self.tally.examples += 1
        if isinstance(example, History):
            self.tally.count_history(example.topology)
        else:
            for stage in example.stages:
                self.tally.count(stage.mesh, stage.calls)
        self.tally.seconds = time.monotonic() - self._began - self._aside_s
        new = bool(wrong) and self._reported(example, wrong)
        self._before = example
        self.progress(self.tally)
        if self.histories and not wrong:
            self._open_another()  # what a proxy met in one history must not be told of the next
        return bool(wrong), new

    def _play(self, example: Drawn) -> list[Wrong]:
        lab, wrong = self.bench.lab, list[Wrong]()
        try:
            wrong, doubt = play(lab, example)
            if doubt and not wrong:
                wrong, doubt = play(lab, example)  # a beacon may come late on a busy machine, hardly twice
            self.tally.unproven += bool(doubt) and not wrong
            if not wrong and not self.histories and self.tally.examples % _IDENTITIES_EVERY == 0:
                checked, wrong = wrong_identities(lab)
                self.tally.identities += checked
            if wrong or self.histories or self.tally.examples % _AUDIT_EVERY == _AUDIT_EVERY - 1:
                lab.audit()
        except RejectedError as error:
            return [Wrong("rejected", str(error))]
        except LabError as error:
            lost = Wrong("lost", _why(lab, error))
            return [replace(wrong[0], kind=lost.kind, text=lost.text) if wrong else lost]
        return wrong

    def _reported(self, example: Drawn, wrong: list[Wrong]) -> bool:
        """Report what is new; a lab that was lost is left in any case."""
        started = time.monotonic()
        alike = (wrong[0].kind, wrong[0].seen.partition(" ")[0])
        failure = None
        if self._alike[alike] < _ALIKE:
            self.tally.doing = f"making a failure small: {wrong[0].text}"
            self.progress(self.tally)
            failure = self.report(example, wrong, self._before)
            self.tally.doing = ""
        if wrong[0].kind == "lost" or self.histories:
            self._open_another()
        if failure is not None:
            self._alike[alike] += 1
            self.tally.failures.append(failure)
        elif not self.stop():
            self.tally.repeated += 1
        self._aside_s += time.monotonic() - started
        return failure is not None

    def _open_another(self) -> None:
        self.bench.drop()
        try:
            _ = self.bench.lab
        except LabError as error:
            self.gone = f"no other lab could be opened: {error}"


def _why(lab: Lab, error: LabError) -> str:
    """What the audit says, where it says more than that something did not answer."""
    if not isinstance(error, AuditError):
        with suppress(LabLostError):
            try:
                lab.audit()
            except AuditError as found:
                return str(found)
    return str(error)


def play(lab: Lab, example: Drawn) -> tuple[list[Wrong], str]:
    """Make the calls of ``example`` in one window: what was wrong, and what could not be told."""
    if isinstance(example, History):
        return play_file(lab, example.topology)
    tunnelled, wrong = [], []
    stage_of: dict[int, int] = {}
    with lab.capture() as capture:
        for place, stage in enumerate(example.stages):
            _put(lab, stage.mesh)
            made = make(lab, stage.calls)
            stage_of |= {call.number: place for call in made}
            wrong += wrong_verdicts(lab, stage.calls, made)
            for one, call in zip(stage.calls, made, strict=True):
                if is_tunnelled(lab.mesh, call) if one.call.is_read else one.call.hbone:
                    tunnelled.append(call)
    leaked, doubt = in_clear(capture, tunnelled)
    return [replace(one, stage=stage_of[one.number]) for one in (*leaked, *wrong)], doubt


def _put(lab: Lab, mesh: Mesh) -> None:
    """Put the policies of ``mesh`` into effect, and its routes where these are others."""
    if lab.mesh.routes == mesh.routes:
        lab.replace(mesh)
        return
    lab.transitions.put(
        lambda now: edits.with_policies_of(replace(now, routes=mesh.routes), mesh), _CHANGE_S, wait=True
    )
