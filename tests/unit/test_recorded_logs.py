"""What is kept of a program's output: every line that tells of a panic, up to a bound, wherever it stands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from meshlab.kernel.recording import EndedLogs, Log
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


def _ended(text: bytes) -> Log:
    printed = Printed()
    printed.print(text)
    printed.end()
    printed.close()
    return printed.log


def test_the_oldest_of_the_ended_logs_lose_their_text_and_say_so() -> None:
    texts = [b"%d: fine\n" % number + PANIC + b"\n" + b"x" * 900 for number in range(5)]
    logs, kept = [_ended(text) for text in texts], EndedLogs(2 * 2 * len(texts[0]))  # a head and a tail of each
    for log in logs:
        kept.add(log)
    assert [log.report()["lost"] for log in logs] == [len(texts[0])] * 3 + [0, 0]
    assert [log.report()["alarms"] for log in logs] == [[PANIC.decode()]] * 5
    assert logs[0].since(0)["lost"] == len(texts[0])
    assert [log.report()["text"] for log in logs[3:]] == [text.decode() for text in texts[3:]]


def test_a_log_beyond_the_bound_is_kept_until_another_one_ends() -> None:
    kept, first = EndedLogs(10), _ended(b"longer than ten\n")
    kept.add(first)
    assert first.report()["lost"] == 0
    kept.add(_ended(b"another one\n"))
    assert first.report()["lost"] == 16


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
