"""The echo's side of one HTTP/1.1 connection, without the socket: bytes come in, bytes go out.

h11 reads --Request, Data, EndOfMessage--> the request, its body hashed as it comes --> ``language.Answer``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus

import h11

from meshlab.apps import language
from meshlab.apps.bodies import Body
from meshlab.apps.http1 import HEAD_BYTES, joined, write_head
from meshlab.apps.language import Answer
from meshlab.model import Peer

KEPT_BYTES = 64 << 20
"""The longest body, or half-closed stream, that is kept until its end."""
SUM_BYTES = 256 << 20
"""What all connections of one echo may hold at the same time."""

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STATUS = re.compile(r"[2-5][0-9][0-9]")


@dataclass(slots=True)
class Memory:
    """State that all connections of one echo share."""

    most: int = SUM_BYTES
    held: int = 0

    @property
    def is_full(self) -> bool:
        return self.held >= self.most


class HttpEcho:
    """Answers the requests of one connection."""

    def __init__(self, client: Peer, memory: Memory) -> None:
        self.closing = False
        """Whether the connection ends behind the bytes that were returned last."""
        self.delay_s = 0.0
        """How long the bytes that were returned last wait before they are sent: the longest that one of them asks."""
        self._client = client
        self._memory = memory
        self._connection = _reader()
        self._body = Body(keeps=0)
        self._out = bytearray()

    @property
    def held(self) -> int:
        """How many bytes of a body are kept here."""
        return len(self._body.kept)

    def receive(self, data: bytes) -> bytes:
        """Take what came in; return the answers to every request that is whole."""
        self.delay_s = 0.0
        if self.closing:
            return b""
        try:
            self._connection.receive_data(data)
            while not self.closing and self._take(self._connection.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(HTTPStatus(error.error_status_hint))
        out = bytes(self._out)
        self._out.clear()
        return out

    def _take(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> bool:
        """Take one event; false if there are no more of them."""
        match event:
            case h11.Request():
                self._begin(event)
            case h11.Data():
                self._add(event.data)
            case h11.EndOfMessage():
                self._answer()
            case h11.NEED_DATA:
                self._tell_to_go_on()
                return False
            case _:
                return False
        return True

    def _begin(self, request: h11.Request) -> None:
        self._request = request
        self._headers = joined(request.headers)
        self._body = Body(keeps=KEPT_BYTES if self._gives_back() else 0)
        if self._gives_back() and int(self._headers.get("content-length", "0")) > KEPT_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def _gives_back(self) -> bool:
        """Whether the request asks for its body."""
        return self._headers.get(language.ECHO_HEADER.lower()) == "body"

    def _add(self, data: bytes) -> None:
        self._body.add(data)
        if self._gives_back() and not self._body.is_whole:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif self._gives_back() and self._memory.is_full:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def _tell_to_go_on(self) -> None:
        """Answer a client that asks before it sends a body (curl does, for a megabyte)."""
        if self._connection.they_are_waiting_for_100_continue:
            self._out += (
                self._connection.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")) or b""
            )

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer without having read the request to its end, and close."""
        self.closing = True
        self._write(status.value, {"Content-Length": "0"})
        self._body = Body(keeps=0)

    def _answer(self) -> None:
        """Send the JSON as the body; in a header where the body is the request's, or there can be none."""
        answer, code = self._seen(), self._status()
        self.delay_s = max(self.delay_s, language.delay_s(answer.path))
        bodiless = answer.method in ("HEAD", "CONNECT") or code in (204, 304)
        if bodiless or self._gives_back():
            # Without the request's headers: a head that held them all again could be too long for a client.
            short = replace(answer, peer=replace(answer.peer, headers={}))
            headers = {"Content-Type": "application/octet-stream", language.ANSWER_HEADER: short.to_json()}
            text = b"" if bodiless else bytes(self._body.kept)
        else:
            headers = {"Content-Type": "application/json"}
            text = answer.to_json().encode()
        if not bodiless:
            headers["Content-Length"] = str(len(text))
        self._body = Body(keeps=0)
        self.closing = self._connection.their_state is not h11.DONE
        self._write(code, headers)
        self._out += text
        if not self.closing:  # the next request may be here already
            rest, _ = self._connection.trailing_data
            self._connection = _reader()
            if rest:  # no bytes would mean the end
                self._connection.receive_data(rest)

    def _write(self, code: int, headers: Mapping[str, str]) -> None:
        closing = {"Connection": "close"} if self.closing else {}
        self._out += write_head(f"HTTP/1.1 {code} {_PHRASES.get(code, 'Status')}", {**headers, **closing})

    def _seen(self) -> Answer:
        return Answer(
            peer=replace(self._client, headers=self._headers),
            method=self._request.method.decode("ascii"),
            path=self._request.target.decode("ascii"),
            body_bytes=self._body.size,
            body_sha256=self._body.sha256,
            canary=self._headers.get(language.CANARY_HEADER.lower(), ""),
        )

    def _status(self) -> int:
        """The status that is asked for; 200 where that is none between 200 and 599."""
        text = self._headers.get(language.STATUS_HEADER.lower(), "")
        return int(text) if _STATUS.fullmatch(text) else 200


def _reader() -> h11.Connection:
    """Reads one request. h11 writes no answers here: it would take as long again to check what is known to be right."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
