"""HTTP, and the language of the echoes: what a server answers a call, and what a client sends an echo."""

from __future__ import annotations

from ipaddress import ip_address

from benchmarks.parsers.parser import Parser, numbered, pieces, repeated
from meshlab.apps import language
from meshlab.apps.http1 import MalformedError, ResponseReader
from meshlab.apps.http_echo import HttpEcho, Memory
from meshlab.apps.language import Answer
from meshlab.apps.received import CanaryScanner, Received
from meshlab.model import Peer

_JSON = Answer(
    peer=Peer(
        pod="shop/server",
        server_port=80,
        address=ip_address("10.0.0.1"),
        port=40404,
        headers={"host": "x", "a": "1, 2"},
    ),
    method="GET",
    path="/",
    body_bytes=3,
    body_sha256="00ff",
    canary="mlc-0f-7.",
).to_json()
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_POST = b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-Meshlab-Canary: mlc-0f-7.\r\n"


def _read_response(data: bytes) -> None:
    reader = ResponseReader()
    for piece in pieces(data):
        reader.feed(piece)
    reader.end()
    assert len(reader.body.kept) <= reader.body.keeps


def _read_requests(data: bytes) -> None:
    memory = Memory(most=1 << 20)
    echo = HttpEcho(Peer(pod="shop/a", server_port=80, address=ip_address("10.0.0.1"), port=1), memory)
    for piece in pieces(data):
        echo.receive(piece)
        memory.held = echo.held


def _sniff(data: bytes) -> None:
    language.sniff(data[: language.LINE_BYTES])
    language.may_greet(data)
    language.read_greeting(data)


def _scan(data: bytes) -> None:
    scanner = CanaryScanner(Received(most=100), "shop/a")
    for piece in pieces(data):
        scanner.feed(piece)


PARSERS = (
    Parser(
        name="HTTP response",
        run=_read_response,
        seeds=lambda: (
            _OK + b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
            b"HTTP/1.0 404 Not Found\r\nA: b\r\na: c\r\n\r\nto the end",
        ),
        documented=(MalformedError,),
        shapes={
            "many headers": repeated(_OK, b"A: b\r\n", b"\r\n"),
            "one long header": repeated(_OK + b"A: ", b"a \t ", b"\0\r\n\r\n"),
            "a long line": repeated(b"HTTP/1.1 200 ", b"x\r"),
            "interim responses": repeated(b"", b"HTTP/1.1 102 \r\n\r\n"),
        },
    ),
    Parser(
        name="HTTP chunks",
        run=_read_response,
        seeds=lambda: (_CHUNKED + b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",),
        documented=(MalformedError,),
        shapes={
            "small chunks": repeated(_CHUNKED, b"1\r\na\r\n"),
            "a long extension": repeated(_CHUNKED + b"1;", b"a"),
            "a long trailer": repeated(_CHUNKED + b"0\r\n", b"A: b\r\n"),
        },
    ),
    Parser(
        name="HTTP request",
        run=_read_requests,
        seeds=lambda: (
            _POST + b"X-Meshlab-Status: 503\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            _POST + b"X-Meshlab-Echo: body\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            _POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 9\r\n\r\nabc",
            b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"HEAD / HTTP/1.0\r\nUpgrade: h2c\r\n\r\n",
        ),
        shapes={
            "many headers": repeated(_POST, b"A: b\r\n", b"\r\n"),
            "many requests": repeated(b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            "small chunks": repeated(_POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        },
        unit=500,
    ),
    Parser(
        name="the echo's first line",
        run=_sniff,
        seeds=lambda: (b"MESHLAB echo mlc-0f-7.\nhello", b"MESHLAB shop/a 10.0.0.1 40404", b"GET / HTTP/1.1\r\n"),
        shapes={"spaces": repeated(b"MESHLAB ", b" a"), "digits": repeated(b"MESHLAB a 10.0.0.1 ", b"9")},
        unit=100_000,
    ),
    Parser(
        name="the echo's answer",
        run=Answer.from_json,
        seeds=lambda: (_JSON.encode(),),
        documented=(ValueError,),
        shapes={
            "deep nesting": repeated(b"", b'{"a":'),
            "many headers": numbered('{"peer":{},"headers":{', lambda n: f'"{n}":"a",', '"":""}}'),
            "a long number": repeated(b"", b"9"),
        },
        unit=4000,
    ),
    Parser(
        name="the echo's canary scanner",
        run=_scan,
        seeds=lambda: (b"a mlc-" + b"0f" * 16 + b"-7. b",),
        shapes={
            "marks": repeated(b"", b"mlc-"),
            "canaries": repeated(b"", b"mlc-" + b"0f" * 16 + b"-7."),
            "canaries without an end": repeated(b"", b"mlc-" + b"0f" * 16 + b"-777777777777"),
        },
        unit=10_000,
    ),
)
