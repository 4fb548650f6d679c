"""The asking end of a channel: numbered requests, answers in any order, and events; for any number of threads.

    thread A --post--> channel                                 box 1 --answer--> thread A
    thread B --post--> channel   <-- reader: one thread -->    box 2 --answer--> thread B
                                                               on_event, then whoever waits ``until`` looks again

One thread of the process, the *reader*, takes in what every channel brings and writes what found no room. So nobody
holds a lock while waiting, and a Ctrl-C (or the exception of a test's timeout), which Python raises in the main thread
wherever that is, can never take a message away half read. Whoever is interrupted abandons a box: the answer is dropped
when it comes, and its descriptors are closed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from meshlab.errors import LabError
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all
from meshlab.kernel.messages import Request, written

_A = TypeVar("_A")
_T = TypeVar("_T")
_CLOSE_S = 5.0
"""How long the reader may take for a task."""


class Number(int, Generic[_A]):
    """The number of a request, which is answered with an ``_A``."""


class Answer(Generic[_A]):
    """What came back: ``body``, and descriptors, which are closed with it unless somebody claims them."""

    def __init__(self, body: dict[str, Any], fds: list[int]) -> None:
        self.body = body
        self.fds = fds
        self.kept: list[int] = []
        """Descriptors that ``keep`` has claimed."""

    @property
    def given(self) -> _A:
        """``body`` with its type, for who has seen that it is no error."""
        return cast("_A", self.body)

    def claim(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def __del__(self) -> None:
        close_all(self.fds)


class Conversation:
    """Requests to one program. ``keep`` sees each answer in the reader's thread, where nothing can interrupt it."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        on_event: Callable[[dict[str, Any]], None],
        keep: Callable[[Answer[Any]], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.ended = ""
        """Why nothing comes any more; empty while something may."""
        self.fault = ""
        """The same, where it is not that the other end has closed the channel."""
        self._channel = channel
        self._on_event = on_event
        self._keep = keep
        self._numbers = itertools.count(1)
        self._boxes: dict[int, SimpleQueue[Answer[Any] | None]] = {}
        self._bells: list[SimpleQueue[None]] = []
        self._reader = _Reader.shared()
        _conversations.add(self)
        channel.on_unsent = lambda: self._reader.soon(self._write)
        self._reader.soon(lambda: self._reader.add(self._channel, self._happened))

    @property
    def asked(self) -> bool:
        """Whether somebody waits for an answer, or has not fetched it."""
        return bool(self._boxes)

    # --- asking ---

    def post(self, request: Request[_A], fds: Sequence[int] = ()) -> Number[_A]:
        """Send a request without waiting; its number is for ``answer``.

        Raises:
            ChannelClosedError: the program is gone.
        """
        number = next(self._numbers)
        try:
            self._send(number, request, fds)
        except BaseException:
            self._boxes.pop(number, None)
            raise
        return Number(number)

    def _send(self, number: int, request: Request[Any], fds: Sequence[int]) -> None:
        self._boxes[number] = SimpleQueue()
        self._channel.send({"id": number, **written(request)}, fds)
        if self.ended:
            raise ChannelClosedError(self.ended)

    def answer(
        self, number: Number[_A], timeout_s: float, meanwhile: Callable[[], None] = lambda: None, look_s: float = 3600.0
    ) -> Answer[_A]:
        """The answer to request ``number``.

        Args:
            meanwhile: called every ``look_s`` while no answer comes; it may raise.

        Raises:
            ChannelClosedError: the program is gone.
            LabError: it did not answer within ``timeout_s``.
        """
        box, deadline = self._boxes.get(number), time.monotonic() + timeout_s
        if box is None:
            raise ChannelClosedError(self.ended)
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                with contextlib.suppress(Empty):
                    answer = box.get(timeout=min(left, look_s))
                    break
                if left <= look_s:
                    raise self.late(timeout_s)
                meanwhile()
        finally:
            self._boxes.pop(number, None)
        if answer is None:
            raise ChannelClosedError(self.ended)
        return answer

    def ask(self, request: Request[_A], fds: Sequence[int], timeout_s: float) -> Answer[_A]:
        """Send a request and wait for its answer, as ``post`` and ``answer`` do. Interrupted, it leaves nothing behind.

        Raises:
            ChannelClosedError: the program is gone.
            LabError: it did not answer within ``timeout_s``.
        """
        number: Number[_A] = Number(next(self._numbers))
        try:
            self._send(number, request, fds)
            return self.answer(number, timeout_s)
        finally:
            self._boxes.pop(number, None)

    def until(self, met: Callable[[], _T | None], timeout_s: float) -> _T | None:
        """What ``met`` gives as soon as it gives something; it is asked after every event. None at the deadline.

        Raises:
            ChannelClosedError: the program is gone, and no event has met it.
        """
        deadline = time.monotonic() + timeout_s
        bell: SimpleQueue[None] = SimpleQueue()
        self._bells.append(bell)
        try:
            while True:
                ended = self.ended
                if (found := met()) is not None:
                    return found
                if ended:
                    raise ChannelClosedError(ended)
                try:
                    bell.get(timeout=max(0.0, deadline - time.monotonic()))
                except Empty:
                    return met()
        finally:
            self._bells.remove(bell)

    def take_in(self) -> None:
        """Return when everything that the program has sent until now was taken in."""
        self._reader.do(lambda: self._read(sys.maxsize))

    def late(self, timeout_s: float) -> LabError:
        text = "it hangs, or the machine is too busy; close the lab, and look at its logs"
        return LabError(f"{self.name} did not answer within {timeout_s:g} s: {text}")

    def close(self) -> None:
        """Close the channel; whoever waits is told, and answers that nobody has fetched are dropped."""
        self._reader.do(lambda: self._end("it was closed here"))
        self._boxes.clear()

    # --- in the reader's thread ---

    def _happened(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ:
            self._read(1)

    def _read(self, most: int) -> None:
        try:
            for _ in range(most):
                if (message := self._channel.take()) is None:
                    return
                self._take(*message)
        except Exception as error:  # must not end the reader, which serves others too
            if type(error) is not ChannelClosedError:
                self.fault = f"{type(error).__name__}: {error}"
            self._end(self.fault or str(error))

    def _write(self) -> None:
        try:
            self._channel.flush()
        except OSError as error:
            self._end(str(error))
        else:
            self._reader.watch(self._channel)

    def _take(self, body: dict[str, Any], fds: list[int]) -> None:
        answer: Answer[Any] = Answer(body, fds)
        if "event" in body:
            self._on_event(body)
            self._ring()
            return
        self._keep(answer)
        if (box := self._boxes.get(body["id"])) is not None:
            box.put(answer)

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        self._reader.remove(self._channel)
        self._channel.close()
        for box in tuple(self._boxes.values()):
            box.put(None)
        self._ring()

    def _ring(self) -> None:
        for bell in tuple(self._bells):
            bell.put(None)


class _Reader:
    """The thread, and the channels that it reads."""

    _shared: _Reader | None = None
    _guard = threading.Lock()

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, self._run_tasks)
        self._thread = threading.Thread(target=self._run, name="meshlab-reader", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> _Reader:
        with cls._guard:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def soon(self, task: Callable[[], None]) -> None:
        """Do ``task`` in the reader's thread."""
        self._tasks.put(task)
        os.eventfd_write(self._wake, 1)

    def do(self, task: Callable[[], None]) -> None:
        """Do ``task`` in the reader's thread, and return when it is done."""
        if threading.get_ident() == self._thread.ident:
            task()
            return
        done: SimpleQueue[None] = SimpleQueue()
        self.soon(task)
        self.soon(lambda: done.put(None))
        with contextlib.suppress(Empty):  # there is no reader left where Python itself is ending
            done.get(timeout=_CLOSE_S)

    # --- in the reader's thread ---

    def add(self, channel: Channel, happened: Callable[[int], None]) -> None:
        if channel.fileno() >= 0:
            self._selector.register(channel, selectors.EVENT_READ, happened)

    def watch(self, channel: Channel) -> None:
        channel.watch(self._selector)

    def remove(self, channel: Channel) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(channel)

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj == self._wake or key.fd in self._selector.get_map():
                    key.data(events)

    def _run_tasks(self, _: int) -> None:
        os.eventfd_read(self._wake)
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()()


_conversations: weakref.WeakSet[Conversation] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child, which has no reader thread: what is on the other ends talks to its parent."""
    _Reader._shared, _Reader._guard = None, threading.Lock()
    for conversation in tuple(_conversations):
        conversation.ended = "this process was forked from the owner, who alone may use it"


os.register_at_fork(after_in_child=_after_fork)
