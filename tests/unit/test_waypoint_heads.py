"""Heads of HTTP/1.1 on their way through a waypoint: what is read, what is passed on, what is answered."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import h11
import pytest

from meshlab.model import HeaderEdits, HttpRequest
from meshlab.oracle.http import Answered, Share
from meshlab.waypoint.heads import answer_head, draw, framing_of, interim_head, own_answer, request_head, request_of


def received(*headers: tuple[str, str], target: str = "/a?b=c", method: str = "GET") -> h11.Request:
    return h11.Request(method=method, target=target, headers=[("Host", "one.shop"), *headers])


def test_a_request_is_read_with_its_host_as_its_authority_and_names_in_lower_case() -> None:
    assert request_of(received(("X-Meshlab-Canary", "Secret"), ("accept", "*/*"))) == HttpRequest(
        method="GET", path="/a?b=c", authority="one.shop", headers=(("x-meshlab-canary", "Secret"), ("accept", "*/*"))
    )


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        ("http://two.shop/x?y", "two.shop", "/x?y"),
        ("HTTP://two.shop:81", "two.shop:81", "/"),
        ("/x?to=http://two.shop/", "one.shop", "/x?to=http://two.shop/"),
        ("*", "one.shop", "*"),
    ],
    ids=["absolute", "absolute without a path", "a URL in the query", "asterisk"],
)
def test_the_host_of_an_absolute_target_counts_more_than_the_header(target: str, authority: str, path: str) -> None:
    request = request_of(received(target=target))
    assert (request.authority, request.path) == (authority, path)


def test_what_concerns_one_connection_is_not_passed_on() -> None:
    request = request_of(
        received(
            ("Connection", "keep-alive, X-Private"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("X-Private", "1"),
            ("X-Public", "2"),
            ("Upgrade", "h2c"),
        )
    )
    assert request_head(request).headers == [(b"host", b"one.shop"), (b"x-public", b"2")]


def test_an_upgrade_to_websocket_is_passed_on_both_ways() -> None:
    headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")]
    head = request_head(request_of(received(*headers)))
    assert dict(head.headers)[b"upgrade"] == b"websocket"
    agreed = interim_head(h11.InformationalResponse(status_code=101, headers=headers))
    assert dict(agreed.headers) == {b"connection": b"upgrade", b"upgrade": b"websocket", b"sec-websocket-key": b"k"}


@pytest.mark.parametrize(
    ("headers", "framing"),
    [
        ([("Content-Length", "3")], (("content-length", "3"),)),
        ([("Transfer-Encoding", "chunked")], (("transfer-encoding", "chunked"),)),
        ([("Content-Length", "3"), ("Transfer-Encoding", "chunked")], (("transfer-encoding", "chunked"),)),
        ([], ()),
    ],
    ids=["length", "chunks", "both", "none"],
)
def test_a_body_is_framed_in_one_way(headers: list[tuple[str, str]], framing: tuple[tuple[str, str], ...]) -> None:
    event = received(*headers, method="POST")
    assert framing_of(event) == framing
    sent = request_head(request_of(event), framing).headers
    assert [(name.decode(), value.decode()) for name, value in list(sent)[1:]] == list(framing)


def test_an_answer_is_edited_by_each_edit_in_turn_and_what_is_removed_goes_first() -> None:
    event = h11.Response(status_code=200, headers=[("X-A", "1"), ("X-B", "2"), ("Content-Length", "0")])
    edits = [HeaderEdits(remove=("x-a",), add=(("x-a", "3"),)), HeaderEdits(set=(("x-b", "4"),))]
    assert answer_head(event, edits).headers == [(b"x-a", b"3"), (b"x-b", b"4"), (b"content-length", b"0")]


def test_edits_do_not_change_where_a_body_ends() -> None:
    event = h11.Response(status_code=200, headers=[("Content-Length", "5")])
    edits = [HeaderEdits(remove=("content-length",), set=(("transfer-encoding", "gzip"),))]
    assert framing_of(answer_head(event, edits)) == (("content-length", "5"),)


@pytest.mark.parametrize(
    ("answered", "method", "headers", "body"),
    [
        (Answered(403), "GET", {"content-type": "text/plain", "content-length": "19"}, b"RBAC: access denied"),
        (Answered(403), "HEAD", {"content-type": "text/plain", "content-length": "19"}, b""),
        (Answered(302, "http://x/"), "GET", {"location": "http://x/", "content-length": "0"}, b""),
        (Answered(200, body="hi"), "GET", {"content-type": "text/plain", "content-length": "2"}, b"hi"),
        (Answered(204), "GET", {}, b""),
    ],
    ids=["denied", "denied HEAD", "redirect", "direct response", "no content"],
)
def test_an_answer_of_its_own(answered: Answered, method: str, headers: dict[str, str], body: bytes) -> None:
    head, sent = own_answer(answered, method)
    assert {name.decode(): value.decode() for name, value in head.headers} == headers
    assert (head.status_code, sent) == (answered.status, body)


def test_a_share_is_drawn_as_often_as_its_chance_says() -> None:
    shares = [Share(Fraction(part, 10), Answered(status), "") for part, status in ((9, 200), (1, 418), (0, 503))]
    rng = random.Random(1)  # noqa: S311  # a test's
    drawn = Counter(draw(shares, rng).outcome for _ in range(1000))
    assert set(drawn) == {Answered(200), Answered(418)}
    assert 60 < drawn[Answered(418)] < 140
