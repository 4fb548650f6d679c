"""Many calls at once, on one private asyncio loop in one daemon thread per process.

Sockets come unconnected, made inside a pod's netns; what becomes of each is ``attempt.py``. While calls run the thread
that asked waits: with it busy, calls slow down a hundredfold (the interpreter's lock).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import threading
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from meshlab.apps import language
from meshlab.lab.calls.attempt import Attempt, End, Request
from meshlab.model import Address, Call, HttpRequest, Outcome

__all__ = ["Request", "TrafficLoop", "perform", "perform_all"]

_T = TypeVar("_T")
_UNBOUND: dict[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}
"""What an unbound socket says of itself."""


class TrafficLoop:
    """The loop that drives every lab of a process; started on first use, and again in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, coroutine: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Run ``coroutine`` on the loop and wait for its result.

        Raises:
            TimeoutError: it still ran after ``timeout_s``, and was cancelled.
        """
        future = self.start(coroutine)
        try:
            return future.result(timeout_s)
        except BaseException:  # a KeyboardInterrupt too must not leave calls behind
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run ``coroutine`` on the loop, and do not wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started())

    def close(self) -> None:
        """Stop the thread; the next ``run`` starts another."""
        with self._lock:
            if self._loop and self._thread and self._pid == os.getpid():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
            self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="meshlab-traffic", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            return self._loop


async def perform(sock: socket.socket, request: Request, canary: bytes, number: int) -> Call:
    """Make one call over ``sock`` (unconnected, non-blocking) and close it. How it ended is in ``Call.outcome``.

    Args:
        canary: what the call carries, whole: ``mlc-7-...``
        number: of the call in its lab.

    Raises:
        ValueError: the request cannot be written as HTTP, e.g. for a line break in a header.
    """
    with sock:
        attempt = Attempt(sock, request, canary)
        started_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        try:
            async with asyncio.timeout(request.timeout_s):
                end = await attempt.run()
        except TimeoutError:
            end = End(Outcome.TIMEOUT, f"not over after {request.timeout_s:g} s")
        call = _call(attempt, end, number, started_ns)
        await attempt.take_leave()
    return call


def _call(attempt: Attempt, end: End, number: int, started_ns: int) -> Call:
    request = attempt.request
    source_ip, source_port = attempt.local or (_UNBOUND[request.family], 0)
    return Call(
        number=number,
        source=request.source,
        to=request.to,
        family=request.family,
        source_ip=source_ip,
        source_port=source_port,
        destination_ip=request.address,
        port=request.port,
        canary=attempt.canary,
        outcome=end.outcome,
        started_ns=started_ns,
        ended_ns=time.clock_gettime_ns(time.CLOCK_REALTIME),
        request=_asked(attempt) if request.kind == "http" else None,
        status=attempt.status,
        headers=attempt.headers,
        body=attempt.body,
        body_bytes=attempt.body_bytes,
        sent_bytes=attempt.sent,
        received_bytes=attempt.received,
        echo=request.echo,
        peer=attempt.peer,
        error=end.error,
    )


def _asked(attempt: Attempt) -> HttpRequest:
    headers = [(name.lower(), value) for name, value in attempt.request_headers.items()]
    return HttpRequest(
        method=attempt.request.method,
        path=attempt.request.path,
        authority=dict(headers).get("host", ""),
        headers=tuple(pair for pair in headers if pair[0] != "host"),
        takes_s=language.delay_s(attempt.request.path) if attempt.request.echo else 0.0,
    )


async def perform_all(calls: Iterable[tuple[socket.socket, Request, bytes, int]]) -> list[Call]:
    """Make every call (socket, request, canary, number) at once, each with its own deadline; in the order given."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(perform(*call)) for call in calls]
    return [task.result() for task in tasks]
