"""Connections that stay open while a mesh changes: ``pod.connect``, ``pod.connect_many``.

    line = client.connect("server:8080")
    lab.apply(deny)
    assert line.wait_closed() == "peer"

The handle is synchronous and thread-safe; the connection lives on the traffic loop (``stream.py``). To the built-in
echo the language of ``apps/language.py`` is spoken: the connection counts as open when the echo has named its pod and
has given back the opening, which carries a canary. A program of a pod's own is sent nothing that nobody asked for, so
before the first ``ask`` nothing is known of the connection to it: a node proxy accepts first, and refuses later.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from meshlab.apps import language
from meshlab.errors import ConnectionEndedError, DeadlineError, ProtocolError
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.calls.attempt import Request, first_difference
from meshlab.lab.calls.stream import US, Stream, now_ns
from meshlab.lab.calls.traffic import TrafficLoop
from meshlab.model import Address, Family

TIMEOUT_S = 5.0
"""How long an answer may take unless more is said."""
SILENCE = "silence"
"""Who has ended a connection that did not answer in time."""
CORRUPTED = "corrupted"
_SLACK_S = 30.0
"""How much longer than its own deadline the loop may take before it is not waited for."""

_T = TypeVar("_T")


@checks_arguments
class OpenConnection:
    """One connection of a pod, open until an end closes it or the lab closes. Made by ``pod.connect``."""

    def __init__(
        self,
        loop: TrafficLoop,
        sock: socket.socket,
        request: Request,
        number: int,
        canary: bytes,
        ended: Callable[[OpenConnection], None],
    ) -> None:
        self._loop = loop
        self._request = request
        self._stream = Stream(sock, lambda: ended(self))
        self._one_at_a_time = asyncio.Lock()
        """An answer belongs to who asked."""
        self.number = number
        """Counted with the calls of the lab."""
        self.canary = canary
        """The whole canary that the opening carries to a built-in echo: ``mlc-7-...``"""
        self.peer = ""
        """The pod that answered, ``namespace/name``; empty where no built-in echo did."""
        self.opened_ns = 0
        """When its SYN was sent, in CLOCK_REALTIME, the clock of the captures."""

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The calling pod, ``namespace/name``."""
        return self._request.source

    @property
    def to(self) -> str:
        """``namespace/pod:port`` or ``service.namespace:port``."""
        return self._request.to

    @property
    def family(self) -> Family:
        return self._request.family

    @property
    def local(self) -> tuple[Address, int] | None:
        """Address and port of this end; ``None`` where the connection never got them."""
        return self._stream.local

    @property
    def closed_by(self) -> str:
        """Who ended the connection, and empty while it is open.

        ``peer`` (FIN), ``peer-reset`` (RST), ``us``, ``timeout`` (ETIMEDOUT), ``refused`` (RST to the SYN),
        ``unreachable``, ``silence`` (no opening came back in time), ``corrupted`` (another one did), or
        ``the end of its pod``.
        """
        self._settle()
        return self._stream.closed_by

    @property
    def closed_at_ns(self) -> int:
        """When this end learnt of it, in CLOCK_REALTIME; 0 while the connection is open."""
        self._settle()
        return self._stream.closed_at_ns

    @property
    def error(self) -> str:
        """How it ended, in more words, where there are some."""
        return self._stream.error

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as what has arrived shows. It sends nothing and waits for nothing."""
        return not self.closed_by

    def __repr__(self) -> str:
        state = f"closed by {self._stream.closed_by}" if self._stream.closed_by else "open"
        return f"<connection {self.number}: {self.source} -> {self.to} over IPv{self.family}: {state}>"

    # --- what can be done with it ------------------------------------------------------------------------------------

    def send(self, data: bytes, timeout_s: float = TIMEOUT_S) -> None:
        """Send ``data``.

        Raises:
            ConnectionEndedError: the connection has ended. After the peer's FIN this end may still send.
            DeadlineError: the peer does not read: not all of it could be handed to the kernel in time.
        """
        self._run(self._send(data), timeout_s, "sent")

    def receive(self, count: int | None = None, timeout_s: float = TIMEOUT_S) -> bytes:
        """Return the next ``count`` bytes or, without a count, what comes next.

        Without a count the result is empty where the peer has closed its side (FIN) and all before it was read.

        Raises:
            ConnectionEndedError: the connection ended before they came.
            DeadlineError: they did not come in time; what did come can still be read.
        """
        return self._run(self._alone(self._receive(count)), timeout_s, "received")

    def ask(self, data: bytes = b"still there?\n", timeout_s: float = TIMEOUT_S) -> bytes:
        """Send ``data`` and return the answer: from a built-in echo the same bytes, from a program what comes next.

        Raises:
            ConnectionEndedError: the connection has ended; the message says who closed it, and when.
            DeadlineError: no answer came in time.
            ProtocolError: the echo gave other bytes back.
        """
        return self._run(self.asked(data), timeout_s, "answered")

    def half_close(self) -> None:
        """Send FIN: this end sends no more, and still receives."""
        self._on_loop(self._now(self._stream.half_close))

    def reset(self) -> None:
        """End the connection with a RST."""
        self._on_loop(self._now(self._stream.reset))

    def close(self) -> None:
        """Close this end. Nothing happens where it is closed already."""
        self._on_loop(self._stream.close())

    def wait_closed(self, timeout_s: float = TIMEOUT_S) -> str:
        """Wait until the connection has ended, and return ``closed_by``.

        Raises:
            DeadlineError: it is still open.
        """
        stream = self._stream
        self._run(stream.wait(lambda: bool(stream.closed_by)), timeout_s, "closed")
        return stream.closed_by

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- on the loop -------------------------------------------------------------------------------------------------

    @property
    def _half_closes(self) -> bool:
        return self._request.mode == "half-close"

    @property
    def can_be_asked(self) -> bool:
        """Whether a question is answered by what is known before: at a built-in echo, while this end may send."""
        return self.is_echo and not self._half_closes

    @property
    def is_echo(self) -> bool:
        """Whether only the built-in echo may answer, so that the answer to every question is known before."""
        return self._request.echo

    @property
    def stream(self) -> Stream:
        """For those who run on the loop."""
        return self._stream

    async def opened(self) -> None:
        """Connect and, at a built-in echo, say the opening. How it ended is in ``closed_by``."""
        self.opened_ns = now_ns()
        request, stream = self._request, self._stream
        try:
            async with asyncio.timeout(request.timeout_s):
                await stream.connect(request.address, request.port)
                if request.echo and not stream.closed_by:
                    await self._say_opening()
                if self._half_closes and not stream.closed_by:
                    stream.half_close()
        except TimeoutError:
            stream.end(SILENCE, f"no opening came back within {request.timeout_s:g} s")
        except ProtocolError as error:
            stream.end(CORRUPTED, str(error))
        if stream.closed_by and not stream.over:
            stream.end(US)

    async def asked(self, data: bytes) -> bytes:
        """As ``ask``, without its deadline."""
        return await self._alone(self._ask(data))

    async def _say_opening(self) -> None:
        stream = self._stream
        if self._request.mode == "server-first":
            await stream.arrived_line(language.LINE_BYTES)
            if stream.closed_by:
                return
        opening = language.opening(language.HOLD if self._half_closes else language.ECHO, self.canary)
        stream.write(opening)
        await stream.arrived_line(language.LINE_BYTES)
        if not stream.line_bytes and stream.closed_by:
            return
        line = stream.take(stream.line_bytes or language.LINE_BYTES)
        peer = language.read_greeting(line.removesuffix(b"\n"))
        if peer is None:
            raise ProtocolError(f"{self.to} does not greet as the built-in echo does: {line[:40]!r}")
        await stream.arrived(len(opening))
        if stream.unread >= len(opening):
            self._compare(stream.take(len(opening)), opening)
            self.peer = peer.pod

    async def _send(self, data: bytes) -> None:
        stream = self._stream
        if stream.over or stream.closed_by not in {"", "peer"}:
            raise self._has_ended()
        stream.write(data)
        await stream.drained()
        if stream.over:
            raise self._has_ended()

    async def _receive(self, count: int | None) -> bytes:
        stream = self._stream
        await stream.arrived(1 if count is None else count)
        if stream.unread < (count or 0) or not (stream.unread or stream.closed_by in {"", "peer"}):
            raise self._has_ended()
        return stream.take(count)

    async def _ask(self, data: bytes) -> bytes:
        stream = self._stream
        await stream.settle()
        if stream.closed_by:
            raise self._has_ended()
        stream.write(data)
        if not self._request.echo:
            answer = await self._receive(None)
            if not answer:
                raise self._has_ended()
            return answer
        answer = await self._receive(len(data))
        self._compare(answer, data)
        return answer

    async def _alone(self, talk: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            async with self._one_at_a_time:
                return await talk
        finally:
            talk.close()  # where its turn never came

    async def _now(self, act: Callable[[], None]) -> None:
        act()

    def _compare(self, got: bytes, sent: bytes) -> None:
        if got != sent:
            raise ProtocolError(f"{self.to} is not a true echo to {self.source}: {first_difference(got, sent)}")

    def _has_ended(self) -> ConnectionEndedError:
        stream = self._stream
        after_s = (stream.closed_at_ns - self.opened_ns) / 1e9
        at = datetime.fromtimestamp(stream.closed_at_ns / 1e9, UTC).strftime("%H:%M:%S.%f")
        return ConnectionEndedError(
            f"the connection of {self.source} to {self.to} was ended by '{stream.closed_by}' at {at} UTC,"
            f" {after_s:.3f} s after it was opened{f' ({stream.error})' if stream.error else ''}"
        )

    def _settle(self) -> None:
        if not self._stream.closed_by:
            self._on_loop(self._stream.settle())

    def _run(self, work: Coroutine[Any, Any, _T], timeout_s: float, what: str) -> _T:
        async def in_time() -> _T:
            async with asyncio.timeout(timeout_s):
                return await work

        try:
            return self._on_loop(in_time(), timeout_s)
        except TimeoutError:
            raise DeadlineError(
                f"the connection of {self.source} to {self.to}: nothing was {what} within {timeout_s:g} s"
            ) from None

    def _on_loop(self, work: Coroutine[Any, Any, _T], timeout_s: float = TIMEOUT_S) -> _T:
        return self._loop.run(work, timeout_s + _SLACK_S)
