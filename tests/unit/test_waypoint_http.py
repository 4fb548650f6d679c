"""One stream of HTTP/1.1 through a waypoint: requests in raw bytes, and a server that is a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import pytest
from waypoint_world import Streams, pair

from meshlab.apps.http1 import ResponseReader
from meshlab.model import HeaderEdits, HttpRequest, PodPort
from meshlab.oracle.http import Answered, Copied, Forwarded, Share
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tasks import Tasks
from meshlab.testing.mutants.waypoint import Chunking, Closing, StickyRule, TitleCase, speaking
from meshlab.waypoint.http import HttpStream, Talk

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GET = b"GET /x HTTP/1.1\r\nHost: one.shop\r\n\r\n"
LAST = b"GET /x HTTP/1.1\r\nHost: one.shop\r\nConnection: close\r\n\r\n"


class World:
    """A client, a waypoint's stream, and a server for each request that is sent on."""

    def __init__(
        self, server: Server, share: Callable[[HttpRequest], Share] | None = None, kind: type[HttpStream] = HttpStream
    ) -> None:
        self.server = server
        self.kind = kind
        self.share = share or sent_on()
        self.tasks = Tasks()
        self.judged: list[HttpRequest] = []
        self.reached = 0

    def judge(self, request: HttpRequest) -> Share:
        self.judged.append(request)
        return self.share(request)

    async def reach(self, pods: Sequence[PodPort]) -> Half:
        self.reached += 1
        half, streams = await pair()
        self.tasks.spawn(self.play(*streams))
        return half

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self.server(reader, writer)
        writer.close()

    async def client(self) -> Streams:
        half, streams = await pair()
        self.serving = self.tasks.spawn(self.kind(half, self.tasks, self.judge, self.reach).serve())
        return streams


def sent_on(timeout_s: float | None = None, *edits: HeaderEdits) -> Callable[[HttpRequest], Share]:
    def share(request: HttpRequest) -> Share:
        forwarded = Forwarded((PodPort("shop/one", 8080),), request, timeout_s)
        return Share(Fraction(1), forwarded, "", response_headers=edits)

    return share


def answered(status: int) -> Callable[[HttpRequest], Share]:
    return lambda request: Share(Fraction(1), Answered(status), "")


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the head that came, and leave."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nX-Was: 1\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(within())


def say(world: World, data: bytes, end: bool = True) -> bytes:
    """What comes back until the end."""
    heard = b""

    async def scenario() -> None:
        nonlocal heard
        reader, writer = await world.client()
        writer.write(data)
        if end:
            writer.write_eof()
        heard = await reader.read()
        writer.close()
        await world.tasks.finished()

    run(scenario)
    return heard


def test_a_request_is_sent_on_and_its_answer_comes_back() -> None:
    world = World(ok)
    heard = say(world, GET)
    assert heard.startswith(b"HTTP/1.1 200 OK\r\nx-was: 1\r\n")
    assert heard.endswith(b"\r\n\r\nGET /x HTTP/1.1\r\nhost: one.shop\r\n\r\n")
    assert world.judged == [HttpRequest(path="/x", authority="one.shop")]


def test_each_request_of_a_connection_is_judged_and_has_a_server_of_its_own() -> None:
    world = World(ok)
    assert say(world, GET + GET + LAST, end=False).count(b"HTTP/1.1 200") == 3
    assert (len(world.judged), world.reached) == (3, 3)


def test_a_change_takes_effect_for_the_next_request_of_a_connection() -> None:
    world = World(ok)
    world.share = lambda request: (answered(403) if len(world.judged) > 1 else sent_on())(request)
    heard = say(world, GET + LAST, end=False)
    assert (heard.count(b" 200 OK"), heard.count(b" 403 Forbidden"), world.reached) == (1, 1, 1)
    assert heard.endswith(b"RBAC: access denied")


def test_a_sticky_one_does_with_every_request_as_with_the_first() -> None:
    world = World(ok, kind=StickyRule.stream_class)
    world.share = lambda request: (answered(403) if len(world.judged) > 1 else sent_on())(request)
    heard = say(world, GET + LAST, end=False)
    assert (heard.count(b" 200 OK"), len(world.judged), world.reached) == (2, 1, 2)


@pytest.mark.parametrize("talk", [Chunking, TitleCase, Closing], ids=lambda talk: talk.__name__)
def test_a_legal_variant_says_the_same_in_another_way(talk: type[Talk]) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(2) if b"ength: 2" in head else await reader.readuntil(b"\r\n0\r\n\r\n")
        assert b"hi" in body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    seen = {}
    for kind in (HttpStream, speaking(talk).stream_class):
        heard, reader = say(World(echo, kind=kind), post), ResponseReader()
        reader.feed(heard)
        seen[kind] = heard, reader.status, bytes(reader.body.kept)
    (usual, *usually), (other, *otherwise) = seen.values()
    assert other != usual
    assert usually == otherwise == [200, b"hi"]


def test_bodies_pass_both_ways_at_once() -> None:
    """A server that answers each chunk as it comes: neither waits for the other's end."""

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while chunk := await reader.readuntil(b"\r\n"):
            chunk += await reader.readexactly(int(chunk, 16) + 2)
            writer.write(chunk)
            if chunk == b"0\r\n\r\n":
                return

    async def scenario() -> None:
        world = World(back)
        reader, writer = await world.client()
        writer.write(b"POST / HTTP/1.1\r\nHost: one.shop\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"):
            writer.write(piece)
            assert await reader.readexactly(len(piece)) == piece
        writer.close()
        await world.tasks.finished()

    run(scenario)


def test_a_long_body_passes_whole_and_is_not_kept() -> None:
    size = 8 << 20

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(body)
        await writer.drain()

    body = bytes(range(256)) * (size // 256)
    heard = say(World(count), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + body)
    assert heard.endswith(b"\r\n\r\n" + body)


def test_an_answer_that_comes_before_the_end_of_its_request_comes_through() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    world = World(early)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
    heard = say(world, post + LAST, end=False)
    assert heard.startswith(b"HTTP/1.1 413 Too Large")
    assert (heard.count(b"HTTP/1.1 413"), len(world.judged)) == (2, 2)


def test_a_denied_request_reaches_no_server_and_its_body_is_no_request() -> None:
    world = World(ok, answered(403))
    heard = say(world, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET + LAST, end=False)
    assert (heard.count(b" 403 Forbidden"), len(world.judged), world.reached) == (2, 2, 0)


def test_a_client_that_asks_before_it_sends_is_told_by_the_server() -> None:
    async def go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"expect: 100-continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(2) == b"hi"
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def scenario() -> None:
        world = World(go_on)
        reader, writer = await world.client()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert b" 100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hi")
        assert b" 204 No Content" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await world.tasks.finished()

    run(scenario)


def test_a_client_that_is_denied_before_it_sends_is_not_asked_for_more() -> None:
    heard = say(
        World(ok, answered(403)),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        end=False,
    )
    assert b"100" not in heard.partition(b"\r\n")[0]
    assert b"403 Forbidden" in heard


def test_a_request_that_is_delayed_is_sent_on_later_and_its_delay_is_no_part_of_its_timeout() -> None:
    world = World(ok)
    world.share = lambda request: replace(sent_on(0.2)(request), delay_s=0.3)
    started = time.monotonic()
    assert b" 200 OK" in say(world, GET)
    assert time.monotonic() - started >= 0.3


def test_a_server_that_is_late_gives_504() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"GET /x HTTP/1.1\r\nhost: one.shop\r\n\r\n"

    heard = say(World(silent, sent_on(0.05)), GET)
    assert heard.startswith(b"HTTP/1.1 504 Gateway Timeout")
    assert heard.endswith(b"upstream request timeout")


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200"], ids=["nothing", "no HTTP", "half a head"])
def test_a_server_that_closes_without_an_answer_gives_503_and_the_connection_lives(said: bytes) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    assert say(World(closing), GET + LAST, end=False).count(b" 503 Service Unavailable") == 2


def test_a_server_that_cannot_be_reached_gives_503() -> None:
    class Alone(World):
        async def reach(self, pods: Sequence[PodPort]) -> Half:
            raise TimeoutError

    assert b" 503 Service Unavailable" in say(Alone(ok, sent_on(5)), GET)


def test_an_answer_that_breaks_off_is_never_completed() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")

    assert say(World(half), GET + GET, end=False).endswith(b"\r\n\r\n3\r\none\r\n")


def test_an_answer_without_a_length_ends_in_chunks() -> None:
    async def until_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    heard = say(World(until_the_end), LAST).lower()
    assert heard.endswith(b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n9\r\nall of it\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"b" * (1 << 17), 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
    ids=["no HTTP", "no host", "two hosts", "space", "two lengths", "bad chunk", "long head", "HTTP/2"],
)
def test_what_is_malformed_gets_its_answer_and_the_end(data: bytes, status: int) -> None:
    heard = say(World(ok), data + LAST, end=False)
    assert heard.startswith(b"HTTP/1.1 %d " % status)
    assert heard.count(b"HTTP/1.1 ") == 1


def test_a_connect_is_no_way_to_other_hosts() -> None:
    world = World(ok)
    assert b" 404 Not Found" in say(world, b"CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n")
    assert world.reached == 0


def test_a_websocket_passes_as_bytes_once_the_server_has_agreed() -> None:
    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"upgrade: websocket" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        assert await reader.readexactly(3) == b"\x00\r\n"
        writer.write(b"bye")

    async def scenario() -> None:
        world = World(agree, sent_on(0.3))
        reader, writer = await world.client()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b" 101 Switching" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"\x00\r\n")
        assert await reader.read() == b"bye"
        writer.close()
        await world.tasks.finished()

    run(scenario)


def test_an_upgrade_that_the_server_does_not_grant_changes_nothing() -> None:
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    world = World(ok)
    assert say(world, upgrade + LAST, end=False).count(b" 200 OK") == 2
    assert len(world.judged) == 2


def test_answers_are_edited_and_a_head_has_no_body() -> None:
    world = World(ok, sent_on(None, HeaderEdits(remove=("x-was",), set=(("x-is", "2"),))))
    heard = say(world, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", end=False)
    assert b"x-is: 2\r\n" in heard
    assert b"x-was" not in heard
    assert heard.endswith(b"\r\n\r\n")


def test_a_stream_that_is_cancelled_lets_go_of_its_server() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()
        gone.set()

    async def scenario() -> None:
        world = World(silent)
        _, writer = await world.client()
        writer.write(GET)
        await came.wait()
        world.serving.cancel()
        await gone.wait()
        writer.close()

    run(scenario)


def mirrored(request: HttpRequest) -> Share:
    pods = (PodPort("shop/one", 8080),)
    return Share(Fraction(1), Forwarded(pods, request, copies=(Copied(Fraction(1), pods),)), "")


def test_a_copy_has_the_same_body_and_its_answer_is_dropped() -> None:
    heads: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = await reader.readexactly(5)
        status = 500 if b"-shadow" in heads[-1] else 200
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n%s" % (status, body))
        await reader.read()

    world = World(server, mirrored)
    heard = say(world, b"POST / HTTP/1.1\r\nHost: one.shop:80\r\nContent-Length: 5\r\n\r\nhello")
    assert (heard[:12], heard[-5:], world.reached) == (b"HTTP/1.1 200", b"hello", 2)
    assert sorted(head.split(b"\r\n")[1] for head in heads) == [b"host: one.shop-shadow:80", b"host: one.shop:80"]


def test_a_mirror_that_does_not_answer_holds_nobody_up() -> None:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"-shadow" not in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

    assert say(World(server, mirrored), GET + LAST).count(b"200 OK") == 2
