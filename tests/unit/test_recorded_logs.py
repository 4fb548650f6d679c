"""What is kept of a program's output: every line that tells of a panic, up to a bound, wherever it stands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from meshlab.kernel.recording import Log
from meshlab.lab.running.audit import panics

PANIC = b"thread 'main' panicked at src/main.rs: boom"


class Printed:
    """A log and the program's end of it."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self.log = Log(read)

    def print(self, *parts: bytes) -> None:
        for part in parts:
            os.write(self._write, part)
            self.log.drain()

    def end(self) -> None:
        os.close(self._write)
        self._write = -1
        self.log.drain()

    def close(self) -> None:
        self.log.close()
        if self._write >= 0:
            os.close(self._write)


@pytest.fixture
def printed() -> Iterator[Printed]:
    program = Printed()
    yield program
    program.close()


def _alarms(printed: Printed) -> list[str]:
    alarms = printed.log.report()["alarms"]
    assert isinstance(alarms, list)
    return alarms


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "alive"])
def test_a_panic_without_a_newline_at_its_end_is_an_alarm(printed: Printed, ended: bool) -> None:
    printed.print(b"fine\n", PANIC)
    if ended:
        printed.end()
    assert printed.log.report()["alarms"] == [PANIC.decode()]


@pytest.mark.parametrize("at", range(len(PANIC) + 1))
def test_a_panic_is_one_alarm_wherever_the_pipe_cuts_it(printed: Printed, at: int) -> None:
    printed.print(b"before\n" + PANIC[:at], PANIC[at:] + b"\nafter\n")
    assert printed.log.report()["alarms"] == [PANIC.decode()]


def test_a_panic_in_a_line_that_goes_on_and_on_is_not_lost(printed: Printed) -> None:
    printed.print(PANIC, *[b"x" * 5000] * 3)
    (alarm,) = _alarms(printed)
    assert alarm.startswith(PANIC.decode())
    assert len(alarm) <= 500


def test_thousands_of_panics_are_twenty_alarms_and_a_number(printed: Printed) -> None:
    for _ in range(100):
        printed.print((PANIC + b"\n") * 133)
    assert (len(_alarms(printed)), printed.log.more_alarms) == (20, 13_280)


def test_the_audit_tells_of_the_first_panics_of_a_program_and_how_many_more_there_are(printed: Printed) -> None:
    printed.print((PANIC + b"\n") * 100)
    found = panics({"noisy": printed.log.report()})
    assert len(found) == 6
    assert found[0].startswith("noisy printed a panic:\n    thread 'main' panicked")
    assert found[-1] == "noisy printed 95 more panics: `lab.logs('noisy')` has what was kept"
