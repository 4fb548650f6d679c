"""Several workers: what each says, and what it means that one says nothing."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from meshlab.errors import LabError
from meshlab.fuzz import run
from meshlab.fuzz.campaign import Limits
from meshlab.fuzz.plan import Plan
from meshlab.fuzz.run import fuzz
from meshlab.fuzz.tally import Failure, Tally
from meshlab.lab.sources import read

Script = Callable[[Connection], None]
FAILED, FLAKY = (Failure("bug.meshlab.yaml", result, "text") for result in ("failed", "flaky"))


class Worker(Thread):
    """Says what its script says, and is gone."""

    def __init__(self, pipe: Connection, script: Script, name: str) -> None:
        super().__init__(name=name)
        self._pipe, self._script = pipe, script
        self.exitcode = 9
        self.start()

    def run(self) -> None:
        self._script(self._pipe)
        self._pipe.close()

    def kill(self) -> None:
        self.join()


def says(*words: Any) -> Script:
    def script(pipe: Connection) -> None:
        for word in words:
            pipe.send(word)

    return script


def found(*failures: Failure, examples: int = 3) -> Tally:
    return Tally(examples=examples, calls=30, failures=[*failures])


def ended(monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> run.Ended:
    def started(_: Plan, number: int) -> tuple[Connection, Worker]:
        ours, theirs = Pipe()
        return ours, Worker(theirs, scripts[number], f"worker-{number}")

    monkeypatch.setattr(run, "_started", started)
    plan = Plan(
        source=read("quickstart"),
        seed=1,
        corpus=None,
        artifacts=Path("out"),
        limits=Limits(failures=99),
        workers=len(scripts),
    )
    return fuzz(plan, lambda _: None)


def test_what_all_workers_saw_is_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ended(monkeypatch, says(found(), run._ENDED), says(found(FAILED), run._ENDED))
    assert (both.tally.examples, both.tally.failures, both.exit_code) == (6, [FAILED], 1)


def test_a_worker_that_dies_without_a_word_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ended(monkeypatch, says(found(), run._ENDED), says(found()))
    assert (one.exit_code, list(one.errors)) == (3, ["worker-1 ended without a word, exit status 9"])


def test_what_one_found_is_kept_where_another_could_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ended(monkeypatch, says(found(FAILED), run._ENDED), says(LabError("no more labs")))
    assert (one.exit_code, one.tally.failures, list(one.errors)) == (1, [FAILED], ["no more labs"])


def test_where_no_worker_began_its_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="no lab at all"):
        ended(monkeypatch, says(LabError("no lab at all")), says(LabError("no lab at all")))


@pytest.mark.parametrize("order", [(FAILED, FLAKY), (FLAKY, FAILED)], ids=["failed first", "flaky first"])
def test_a_file_that_always_failed_for_one_has_failed(
    monkeypatch: pytest.MonkeyPatch, order: tuple[Failure, Failure]
) -> None:
    both = ended(monkeypatch, *(says(found(failure), run._ENDED) for failure in order))
    assert (both.tally.failures, both.exit_code) == ([FAILED], 1)


def test_enough_failures_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    def waits(pipe: Connection) -> None:
        heard.append(pipe.recv())
        says(found(), run._ENDED)(pipe)

    many = [Failure(f"{number}.meshlab.yaml", "failed", "text") for number in range(99)]
    ended(monkeypatch, says(found(*many), run._ENDED), waits)
    assert heard == [run._ENOUGH]
