"""The programs of pods that have ended are started again, as ``plan.restarts`` says, by a thread of the lab's own.

    netd --exits--> reader's thread --pid, moment--> queue --> this thread, one change of the lab at a time
                                                               due: when its pause is over, if it still is to be

Only the program starts again. Its pod stays what it is: netns, addresses, uid, membership. What the program has left
running ends first, as the rest of a container does.

Whoever changes the lab holds ``alone``, and this thread does too while it looks and starts, so that it never meets a
pod that is half made or half gone. Verbs that end a program take only ``_starting``, since they have to work while a
change is under way: after ``keep_down`` no start is on its way, and none comes but by a verb.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from meshlab.errors import MeshlabError
from meshlab.lab import join
from meshlab.lab.running.programs import Program
from meshlab.lab.site import Site
from meshlab.model import InstanceId, Pod
from meshlab.plan.restarts import restart_after_s


@dataclass(frozen=True, slots=True)
class _Due:
    """A start that is to come."""

    at: float
    """By ``time.monotonic``."""
    pause_s: float
    ended: Program


class Restarts:
    """Starts again what has ended in the pods of one lab. Thread-safe."""

    def __init__(self, site: Site, alone: threading.RLock) -> None:
        self._site = site
        self._alone = alone
        self._starting = threading.Lock()
        """Held while a program is started here. The reader's thread, which such a start waits for, never takes it."""
        self._ends: SimpleQueue[tuple[int, float]] = SimpleQueue()
        """Pid and moment of every process that has ended."""
        self._due: list[_Due] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self) -> None:
        """Begin to look at exits, unless that has begun: the first program of a pod is about to start."""
        if self._thread is None:
            self._site.sandbox.on_exits = self._note
            thread = threading.Thread(target=self._work, name="meshlab-restarts", daemon=True)
            thread.start()
            self._thread = thread  # not before: a Ctrl-C in between must not leave one that never starts

    def keep_down(self, first: InstanceId) -> None:
        """A verb ends this instance: from now on nothing but a verb starts it."""
        with self._starting:
            if (newest := self._site.programs.newest(first)) is not None:
                newest.kept_down = True

    def close(self) -> None:
        """Start nothing any more; no start is under way when this returns."""
        with self._starting:
            self._closed = True
        self._ends.put((0, 0.0))

    # --- in the reader's thread ---

    def _note(self, pids: Iterable[int]) -> None:
        now = time.monotonic()
        for pid in pids:
            self._ends.put((pid, now))

    # --- in the thread of its own ---

    def _work(self) -> None:
        while not self._closed:
            soonest = min((due.at for due in self._due), default=None)
            try:
                ended = self._ends.get(timeout=None if soonest is None else max(0.0, soonest - time.monotonic()))
            except Empty:
                ended = None
            with self._alone:
                if ended is not None:
                    self._plan(*ended)
                self._start_due()

    def _plan(self, pid: int, at: float) -> None:
        """Plan the next start of the program that had this pid, if it is one of a pod and is to be started again."""
        status = self._site.sandbox.exits.get(pid)
        ended = next((one for one in reversed(self._site.programs.of_role("program")) if one.pid == pid), None)
        if status is None or ended is None or (pod := self._pod_of(ended)) is None:
            return
        pause_s = restart_after_s(pod.restart_policy, status, at - ended.started_s, ended.backoff_s)
        if pause_s is not None:
            self._due.append(_Due(at + pause_s, pause_s, ended))

    def _start_due(self) -> None:
        now = time.monotonic()
        ready = [due for due in self._due if due.at <= now]
        self._due = [due for due in self._due if due.at > now]
        for due in ready:
            self._start(due)

    def _start(self, due: _Due) -> None:
        with self._starting:
            pod = self._pod_of(due.ended)
            if self._closed or pod is None:
                return
            try:
                join.start_again(self._site, pod).backoff_s = due.pause_s
            except (MeshlabError, OSError) as error:
                self._site.not_restarted.append(f"{due.ended.name} could not be started again: {error}")
        self._site.note_change()

    def _pod_of(self, ended: Program) -> Pod | None:
        """The pod whose program this is the latest generation of; ``None`` where it is not for us to start."""
        if ended.ended_by_us or ended.kept_down or self._site.programs.newest(ended.id) is not ended:
            return None
        return next(
            (pod for pod in self._site.mesh.pods if pod.key == ended.id.place and pod.key in self._site.reached), None
        )
