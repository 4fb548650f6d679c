"""Work that a Ctrl-C may delay, and never cut in two."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


def uninterrupted(work: Callable[[], _T], undo: Callable[[_T], object] = lambda _: None) -> _T:
    """Do ``work`` to its end; an interruption that comes meanwhile is raised after that, and after ``undo``.

    Python raises KeyboardInterrupt, and whatever a signal handler raises, in the main thread only. So the work is done
    in a thread of its own, and the main thread does nothing but wait, again if need be.

    Raises:
        BaseException: what ``work`` raised, or else what came first while it was under way.
    """
    turn, done = _thread.allocate_lock(), SimpleQueue[None]()
    outcome: list[tuple[_T | None, BaseException | None]] = []

    def run() -> None:
        if not turn.acquire(blocking=False):
            return  # an interruption came just after the start, so that it was started twice
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))
        done.put(None)

    came: BaseException | None = None
    while not outcome:  # what ``get`` gives may be lost to an interruption, so it says nothing
        try:
            _thread.start_new_thread(run, ())
            done.get()
        except BaseException as interruption:
            if isinstance(interruption, RuntimeError) and turn.acquire(blocking=False):
                return work()  # no thread can be started any more
            came = came or interruption
    ((result, error),) = outcome
    if error is not None:
        raise error
    if came is not None:
        undo(result)  # type: ignore[arg-type]
        raise came
    return result  # type: ignore[return-value]
