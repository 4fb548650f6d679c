"""The HTTP/1.1 of one stream to a waypoint: each request is judged when it comes, and answered or sent on.

    client <-> Talk(SERVER) --request--> judge --> an answer of the waypoint's own
                                            `----> Talk(CLIENT) <-> one server, on a connection of its own

Bodies are passed on as they come, both ways at the same time, because a server may answer before it has read a request
to its end. Trailers are dropped. A WebSocket is passed on as bytes once the server has agreed to it. A copy for a
mirror has the same body, and what is answered to it is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import ClassVar

import h11

from meshlab.errors import ProtocolError
from meshlab.model import HeaderEdits, HttpRequest, PodPort
from meshlab.oracle.http import NO_ROUTE, UNAVAILABLE, Answered, Forwarded, Share
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tasks import Tasks
from meshlab.waypoint.heads import (
    answer_head,
    copy_head,
    framing_of,
    interim_head,
    own_answer,
    request_head,
    request_of,
)
from meshlab.waypoint.pipe import Pipe

Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]

Body = asyncio.Queue[h11.Data | h11.EndOfMessage | None]

HEAD_BYTES = 64 * 1024
"""The longest head that is read."""
LINGER_S = 1.0
"""How long the rest of a request that was answered early is read and dropped: a client that is still sending when its
connection is closed could lose the answer."""
_VERSIONS = (b"1.0", b"1.1")
MALFORMED = 400
TIMED_OUT = 504


class Talk:
    """h11 on one side of a splice."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], half: Half) -> None:
        self.pipe = Pipe(half)
        self.connection = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES)

    async def next(self) -> Event:
        """What the other end says next; raises ``h11.RemoteProtocolError``."""
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            self.connection.receive_data(await self.pipe.read())
        return event

    async def send(self, event: h11.Event) -> None:
        await self.pipe.send(self.connection.send(event) or b"")

    async def pass_to(self, other: Talk) -> None:
        """Pass the bytes of another protocol on, from those that came behind the last message to the end."""
        data = self.connection.trailing_data[0] or await self.pipe.read()
        while data:
            await other.pipe.send(data)
            data = await self.pipe.read()
        other.pipe.finish()


class HttpStream:
    """The requests of one stream, one after the other."""

    talk_class: ClassVar[type[Talk]] = Talk

    def __init__(
        self,
        half: Half,
        tasks: Tasks,
        judge: Callable[[HttpRequest], Share],
        reach: Callable[[Sequence[PodPort]], Awaitable[Half]],
    ) -> None:
        """
        Args:
            judge: says what becomes of a request.
            reach: opens a connection to one of some pods; raises ``OSError`` or ``ProtocolError``.
        """
        self._client = self.talk_class(h11.SERVER, half)
        self._tasks = tasks
        self._judge = judge
        self._reach = reach
        self._method = ""
        self._bodies: list[Body] = []
        """For the copies of the request that is served: of its body what has come."""

    def judge(self, request: HttpRequest) -> Share:
        return self._judge(request)

    async def serve(self) -> None:
        """Serve until the client has ended, or has said what is not HTTP/1.1."""
        try:
            await self._serve_all()
            self._client.pipe.finish()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while await self._client.pipe.read():
                        pass
        finally:
            self._client.pipe.leave()

    async def _serve_all(self) -> None:
        try:
            while await self._serve_one():
                self._client.connection.start_next_cycle()
        except h11.RemoteProtocolError as error:
            await self._fail(error.error_status_hint)

    async def _serve_one(self) -> bool:
        """Serve one request; return whether another one may follow."""
        event = await self._client.next()
        if not isinstance(event, h11.Request):
            return False
        if event.http_version not in _VERSIONS:  # h11 takes the preface of HTTP/2 for a request
            raise h11.RemoteProtocolError("no HTTP/1.1", error_status_hint=505)
        request = request_of(event)
        self._method = request.method
        share = self.judge(request)
        await asyncio.sleep(share.delay_s)
        match share.outcome:
            case Answered() as answered:
                await self._answer(answered, share.response_headers)
            case Forwarded() if self._method == "CONNECT":  # no proxy for other hosts
                await self._answer(Answered(NO_ROUTE))
            case Forwarded() as forwarded:
                await self._forward(event, forwarded, share.response_headers)
        return await self._read_to_the_end()

    async def _read_to_the_end(self) -> bool:
        """Drop what is left of a request that was answered early; return whether another one may follow."""
        connection = self._client.connection
        if connection.they_are_waiting_for_100_continue:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while connection.their_state is h11.SEND_BODY:
                    await self._client.next()
        return connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    async def _answer(self, answered: Answered, edits: Iterable[HeaderEdits] = ()) -> None:
        head, body = own_answer(answered, self._method, edits)
        await self._client.send(head)
        if body:
            await self._client.send(h11.Data(data=body))
        await self._client.send(h11.EndOfMessage())

    async def _fail(self, status: int) -> None:
        """Answer so where no answer has begun. One that has begun is cut off, which its framing shows."""
        if self._client.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._answer(Answered(status))

    # --- what is sent on -------------------------------------------------------------------------------------------

    async def _forward(self, event: h11.Request, forwarded: Forwarded, edits: Iterable[HeaderEdits]) -> None:
        self._bodies = [asyncio.Queue() for _ in forwarded.copies]
        for copy, body in zip(forwarded.copies, self._bodies, strict=True):
            self._tasks.spawn(self._copy(copy.pods, copy_head(forwarded.request, framing_of(event)), body))
        try:
            await self._send_on(event, forwarded, edits)
        finally:
            self._pass_to_copies(None)

    async def _copy(self, pods: Sequence[PodPort], head: h11.Request, body: Body) -> None:
        """Send a copy of a request to a mirror, and drop the answer."""
        with suppress(OSError, ProtocolError, h11.ProtocolError):
            server = self.talk_class(h11.CLIENT, await self._reach(pods))
            try:
                await server.send(head)
                while (event := await body.get()) is not None:
                    await server.send(event)
                while isinstance(await server.next(), h11.InformationalResponse | h11.Response | h11.Data):
                    pass
            finally:
                server.pipe.leave()

    def _pass_to_copies(self, event: h11.Data | h11.EndOfMessage | None) -> None:
        """
        Args:
            event: ``None`` says that no more comes.
        """
        for body in self._bodies:
            body.put_nowait(event)

    async def _send_on(self, event: h11.Request, forwarded: Forwarded, edits: Iterable[HeaderEdits]) -> None:
        limit = asyncio.timeout(forwarded.timeout_s)
        try:
            async with limit:
                server = self.talk_class(h11.CLIENT, await self._reach(forwarded.pods))
                try:
                    await server.send(request_head(forwarded.request, framing_of(event)))
                    await self._exchange(server, edits, limit)
                except h11.RemoteProtocolError as error:
                    raise ProtocolError(f"the server does not answer: {error}") from error
                finally:
                    server.pipe.leave()
        except (OSError, ProtocolError):
            is_malformed = self._client.connection.their_state is h11.ERROR
            await self._fail(MALFORMED if is_malformed else TIMED_OUT if limit.expired() else UNAVAILABLE)

    async def _exchange(self, server: Talk, edits: Iterable[HeaderEdits], limit: asyncio.Timeout) -> None:
        sending = self._tasks.spawn(self._pass_body_to(server))
        try:
            if await self._pass_answer_of(server, edits):
                limit.reschedule(None)
                await asyncio.gather(self._client.pass_to(server), server.pass_to(self._client))
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def _pass_body_to(self, server: Talk) -> None:
        try:
            while isinstance(event := await self._client.next(), h11.Data):
                data = h11.Data(data=event.data)
                self._pass_to_copies(data)
                await server.send(data)
            end = h11.EndOfMessage()
            self._pass_to_copies(end)
            await server.send(end)
        except h11.RemoteProtocolError:  # of the client: nobody waits for the rest
            server.pipe.leave()

    async def _pass_answer_of(self, server: Talk, edits: Iterable[HeaderEdits]) -> bool:
        """Pass an answer on; return whether another protocol follows it."""
        while isinstance(event := await server.next(), h11.InformationalResponse):
            if event.status_code == 101:
                return await self._switch(event)
            if self._client.connection.their_http_version != b"1.0":
                await self._client.send(interim_head(event))
        assert isinstance(event, h11.Response)
        await self._client.send(answer_head(event, edits))
        while isinstance(event := await server.next(), h11.Data):
            await self._client.send(h11.Data(data=event.data))
        await self._client.send(h11.EndOfMessage())
        return False

    async def _switch(self, event: h11.InformationalResponse) -> bool:
        if self._client.connection.their_state in (h11.SEND_BODY, h11.ERROR):
            raise ProtocolError("the server changes the protocol before the request has ended")
        await self._client.send(interim_head(event))
        return True
