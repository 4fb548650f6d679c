"""Traffic that goes on while other things happen to a lab: ``with lab.traffic(pairs, rate=, open=) as traffic:``.

``driver.py`` calls and holds. One window of the captures is open meanwhile, from which ``proofs.plaintext`` reads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from meshlab.errors import DeadlineError, KernelRefusedError, LabError, UsageError
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.calls.driver import Driver
from meshlab.lab.calls.opening import OpenConnections
from meshlab.lab.calls.pairs import read_pairs
from meshlab.lab.calls.tally import Broken, Failure, in_one_line
from meshlab.lab.calls.traffic import TrafficLoop
from meshlab.lab.view import CaptureView, ViewForTraffic
from meshlab.model.report import Proof
from meshlab.proofs import plaintext
from meshlab.proofs.plaintext import Plaintext

HIGHEST_RATE = 2000.0
"""Calls a second: a loop in Python makes some thousands."""


@checks_arguments
class Traffic:
    """Calls that are made, and connections that are held, until ``stop``. Made by ``lab.traffic``."""

    def __init__(
        self,
        lab: ViewForTraffic,
        loop: TrafficLoop,
        connections: OpenConnections,
        pairs: Sequence[tuple[str, str]],
        rate: float,
        held: int,
    ) -> None:
        if not (0 <= rate <= HIGHEST_RATE) or not math.isfinite(rate):
            raise UsageError(f"rate={rate} must be 0 to {HIGHEST_RATE:g} calls a second in all")
        if held < 0:
            raise UsageError(f"open={held} must be 0 connections for each pair, or more")
        self._lab = lab
        self._driver = Driver(lab, loop, connections, read_pairs(pairs), rate, held)
        self._tally = self._driver.tally
        self._plaintext: Plaintext | None = None
        self._stopping = threading.Lock()
        self._window = ExitStack()
        self._capture: CaptureView | None = None
        self.proofs: list[Proof] = []
        """``failed-new``, ``broken-open`` and ``in-plaintext``, when traffic has stopped: that each number is 0."""

    # --- what it comes to --------------------------------------------------------------------------------------------

    @property
    def calls_made(self) -> int:
        """New calls that have ended."""
        return self._tally.calls_made

    @property
    def skipped(self) -> int:
        """Calls that were due and not made, as their source or their destination was not there."""
        return self._tally.skipped

    @property
    def failed_new(self) -> int:
        """New calls that ended as no mesh that was in effect meanwhile explains."""
        return self._tally.failed_new

    @property
    def failures(self) -> list[Failure]:
        """The calls behind ``failed_new``, each with a sentence; of more than a thousand the first."""
        return list(self._tally.failures)

    @property
    def wrong_identity(self) -> int:
        """Calls that another pod answered than may; they are in ``failed_new`` too."""
        return self._tally.wrong_identity

    @property
    def opened(self) -> int:
        """Connections that were opened, those in place of broken ones too."""
        return self._tally.opened

    @property
    def broken_open(self) -> int:
        """Open connections that broke, for whatever reason: a policy, a proxy, or a pod that was deleted."""
        return self._tally.broken_open

    @property
    def broken(self) -> list[Broken]:
        """The connections behind ``broken_open``: when, and by whom; of more than a thousand the first."""
        return list(self._tally.broken)

    @property
    def in_plaintext(self) -> int:
        """Bytes in plaintext on connections between pods of the mesh that were opened when both were in it.

        Raises:
            UsageError: traffic has not stopped yet.
        """
        return self._seen().in_plaintext

    @property
    def kept_plaintext(self) -> int:
        """Bytes in plaintext on older connections, after the last change: a mesh that keeps those is right.

        Raises:
            UsageError: traffic has not stopped yet.
        """
        return self._seen().kept_plaintext

    @property
    def leaks(self) -> list[str]:
        """A sentence for each connection behind ``in_plaintext``."""
        return list(self._seen().leaks)

    @property
    def kept(self) -> list[str]:
        """A sentence for each connection behind ``kept_plaintext``."""
        return list(self._seen().kept)

    def __repr__(self) -> str:
        seen = self._plaintext
        return in_one_line(self._tally, (seen.in_plaintext, seen.kept_plaintext) if seen else ())

    def _seen(self) -> Plaintext:
        if self._plaintext is None:
            raise UsageError("what was in plaintext is counted when traffic has stopped: end the block, or stop()")
        return self._plaintext

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until ``is_so``, which is asked after each call, and whenever a connection opened, answered or broke.

        Raises:
            DeadlineError: it is still not so.
            LabLostError: traffic has ended, as a part of the lab that it needs is gone.
        """
        if not self._driver.wait_for(is_so, timeout_s):
            raise DeadlineError(f"not so within {timeout_s:g} s: {self!r}")

    # --- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, call every pair once, and try every connection. ``lab.traffic`` does this.

        Raises:
            UsageError: a capture of the lab is open.
            LabLostError: a part of the lab that traffic needs is gone.
        """
        with ExitStack() as window:
            self._capture = window.enter_context(self._lab.capture())
            self._driver.start()
            self._window = window.pop_all()

    def stop(self) -> None:
        """End traffic and count; nothing happens where it has ended.

        Every pair is called and every open connection is asked once more, all that is waited for, and the window of the
        captures is closed.

        Raises:
            LabLostError: a part of the lab that traffic needs is gone.
        """
        with self._stopping:
            if self._plaintext is None:
                self._end()

    def _end(self) -> None:
        with self._window:
            self._driver.stop()
        self._count()

    def _count(self) -> None:
        assert self._capture is not None
        history, window = self._lab.history, self._capture.window
        self._plaintext = plaintext.plaintext(
            window, lambda at_ns: history.between(at_ns, at_ns), history.last_effect_ns(), self._lab.mesh
        )
        self.proofs = [
            self._tally.prove_new(),
            self._tally.prove_open(),
            plaintext.prove(window, self._plaintext),
        ]


@contextmanager
def running(traffic: Traffic) -> Iterator[Traffic]:
    """``traffic`` from the beginning of the block to its end. Of an error in the block nothing is hidden."""
    traffic.start()
    try:
        yield traffic
    except BaseException as failure:
        try:
            traffic.stop()
        except (LabError, KernelRefusedError) as error:
            failure.add_note(f"and when traffic was stopped: {error}")
        raise
    traffic.stop()
