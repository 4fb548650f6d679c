"""Ctrl-C and kill -9 at random moments of a lab's life: nothing is left, the next lab works, and one sentence says why.

A few moments by default; ``MESHLAB_INTERRUPTIONS=20`` and ``MESHLAB_KILLS=300`` try as many.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import doomed
import pytest
from leftovers import Belongings, command, host

from meshlab import open_lab

INTERRUPTIONS = int(os.environ.get("MESHLAB_INTERRUPTIONS", "3"))
KILLS = int(os.environ.get("MESHLAB_KILLS", "3"))
GONE_WITHIN_S = 5.0
DEADLINE_S = 60.0
AGAIN_S = 20.0

# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def _live() -> None:
    """A lab from its first netns to its last: opened, called in, asked, closed."""
    with open_lab(doomed.TOPOLOGY) as lab:
        assert lab.pod("shop/client").http("http://shop/server:8080/").status == 200
        assert lab.pod("shop/client").exec("true").status == 0
        lab.logs("control-plane")


@contextlib.contextmanager
def _interrupted_after(seconds: float, theirs: list[Belongings]) -> Iterator[None]:
    """Ctrl-C at that moment, with a look at what our labs have then."""

    def interrupt(*_: object) -> None:
        theirs.append(Belongings.of(os.getpid(), with_owner=False))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # Raised in a callback of the garbage collector it is lost, as any Ctrl-C is. Then whoever waits presses it again.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _open_here() -> Counter[str]:
    """What this process has open, by kind: netns, sockets, pipes ..."""
    gc.collect()
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds[re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{fd}"))] += 1
        except OSError:
            continue  # the listing's own
    return kinds


@pytest.fixture(scope="module")
def life_s() -> float:
    """How long a lab takes, once its fork server is warm."""
    _live()
    started = time.monotonic()
    _live()
    return time.monotonic() - started


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", range(INTERRUPTIONS))
def test_a_lab_that_is_interrupted_anywhere_leaves_nothing_and_the_next_one_works(number: int, life_s: float) -> None:
    moment = random.Random(number).uniform(0, life_s)  # noqa: S311 - a seed is to be repeated
    before, ours = host(), _open_here()
    watched: list[Belongings] = []
    with pytest.raises(KeyboardInterrupt), _interrupted_after(moment, watched):  # noqa: PT012 - any moment of any lab
        while True:
            _live()
    gc.collect()
    with watched[0] as theirs:
        assert theirs.left(GONE_WITHIN_S) == []
    _live()
    assert _open_here() == ours
    assert host() == before


PLACES = (
    "Sandbox.start",
    "Sandbox.netns",
    "Site.open_sockets",
    "ForkServer.start",
    "Programs.python",
    "Peer.ask",
    "Peer.wait_event",
    "Conversation.answer",
    "findings",
    "Site.close",
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("event", ["call", "return"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("life_s")
def test_a_lab_that_is_interrupted_just_there_leaves_nothing_and_the_next_one_works(place: str, event: str) -> None:
    before, ours = host(), _open_here()
    watched: list[Belongings] = []

    def interrupt(frame: FrameType, what: str, _: object) -> Any:
        if frame.f_code.co_qualname != place:
            return None
        if what == event:
            watched.append(Belongings.of(os.getpid(), with_owner=False))
            raise KeyboardInterrupt  # Python calls us no more after this
        return interrupt

    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            _live()
    finally:
        sys.settrace(tracer)
    gc.collect()
    with watched[0] as theirs:
        assert theirs.left(GONE_WITHIN_S) == []
    _live()
    assert _open_here() == ours
    assert host() == before


# --- kill -9 ---------------------------------------------------------------------------------------------------------

OWNER = f"""
import sys
from meshlab import open_lab
from meshlab.errors import MeshlabError
try:
    with open_lab({doomed.TOPOLOGY!r}) as lab:
        print("open", flush=True)
        for _ in range(40):
            lab.pod("shop/client").http("http://shop/server:8080/", timeout_s=2)
        lab.pod("shop/client").exec("true")
    print("fine")
except MeshlabError as error:
    print(type(error).__name__ + ":", error)
"""


@pytest.mark.parametrize("number", range(KILLS))
def test_whichever_process_is_killed_whenever_nothing_is_left_and_one_sentence_says_it(number: int) -> None:
    draw = random.Random(number)  # noqa: S311 - a seed is to be repeated
    before = host()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as owner:
        select.select([], [], [], draw.uniform(0, 2.5))
        with Belongings.of(owner.pid) as theirs:
            victim = draw.choice(sorted(theirs.pids))
            who = command(victim)
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(victim, signal.SIGKILL)
            output, _ = owner.communicate(timeout=DEADLINE_S)
            assert theirs.left(GONE_WITHIN_S) == [], who
    assert "Traceback" not in output, f"{who}\n{output}"
    if owner.returncode != -signal.SIGKILL:
        told = output.removeprefix("open\n")
        assert told == "fine\n" or re.match(r"\w+Error: \S", told), f"{who}\n{output}"
    assert host() == before


def test_where_the_owner_of_a_campaign_is_killed_its_workers_and_their_labs_end_at_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "meshlab", "fuzz", "quickstart", "--workers", "2", "--for", "10m"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        subprocess.Popen(
            argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as owner,
        _with_labs(owner.pid, 2) as theirs,
    ):
        owner.kill()
        assert theirs.left(3.0) == []


_PROGRAMS = 7
"""Of a lab of two nodes, at least."""


def _with_labs(owner: int, count: int) -> Belongings:
    """What an owner has, as soon as that many of its labs run their programs."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        theirs = Belongings.of(owner)
        if len(theirs.links("pid:")) >= count and len(theirs.pids) >= _PROGRAMS * count:
            return theirs
        theirs.close()
        select.select([], [], [], 0.05)
    raise AssertionError("the labs were not opened")
