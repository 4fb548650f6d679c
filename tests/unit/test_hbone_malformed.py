"""A malformed list of header fields ends its stream, and nothing else: RFC 9113 8.1.1."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import h2.events
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import given
from hypothesis import strategies as st

from meshlab.protocols.hbone import (
    ConnectRequested,
    Effect,
    Framing,
    HboneClient,
    HboneServer,
    OpenUpstream,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamOpened,
)

Fields = list[tuple[str, str]]
PROTOCOL_ERROR = 1
CONNECT: Fields = [(":method", "CONNECT"), (":authority", "10.1.2.3:8080")]
GET: Fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "10.1.2.3:8080")]
MALFORMED: dict[str, Fields] = {
    "extended CONNECT": [*CONNECT, (":protocol", "websocket"), (":scheme", "https"), (":path", "/")],
    "CONNECT with :protocol": [*CONNECT, (":protocol", "connect-udp")],
    "CONNECT with :scheme": [*CONNECT, (":scheme", "https")],
    "CONNECT with :path": [*CONNECT, (":path", "/")],
    "CONNECT without :authority": CONNECT[:1],
    "two :authority": [*CONNECT, (":authority", "10.9.9.9:80")],
    "a blank in :authority": [(":method", "CONNECT"), (":authority", "10.1.2.3 :8080")],
    "a blank before :authority": [(":method", "CONNECT"), (":authority", " 10.1.2.3:8080")],
    "a line break in :authority": [(":method", "CONNECT"), (":authority", "10.1.2.3:8080\r\nx: y")],
    "no :method": CONNECT[1:],
    "GET without :path": [field for field in GET if field[0] != ":path"],
    "a pseudo-header behind others": [CONNECT[0], ("forwarded", "for=x"), CONNECT[1]],
    "an unknown pseudo-header": [*CONNECT, (":secret", "1")],
    "a name in upper case": [*CONNECT, ("Baggage", "a=b")],
    "a name with a blank": [*CONNECT, ("bag gage", "a=b")],
    "a name that is empty": [*CONNECT, ("", "a=b")],
    "a value with NUL": [*CONNECT, ("baggage", "a\0b")],
    "a value with a blank at its end": [*CONNECT, ("baggage", "a ")],
    "connection": [*CONNECT, ("connection", "close")],
    "transfer-encoding": [*CONNECT, ("transfer-encoding", "chunked")],
    "te: gzip": [*CONNECT, ("te", "gzip")],
}


class Peer:
    """h2 at one end, which sends what it is given; at the other end a framing and its rules."""

    def __init__(self, framing: Framing, rules: HboneServer | HboneClient) -> None:
        self.h2 = H2Connection(
            H2Configuration(
                client_side=isinstance(rules, HboneServer),
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                header_encoding="latin-1",
            )
        )
        self.framing, self.rules = framing, rules
        self.performed: list[Effect] = []
        self.h2.initiate_connection()
        self.exchange()

    def exchange(self) -> list[h2.events.Event]:
        """Carry bytes both ways; what h2 has seen."""
        for event in self.framing.receive(self.h2.data_to_send()):
            if hasattr(event, "stream"):
                self.do(self.rules.receive(event))  # type: ignore[arg-type]
        return self.h2.receive_data(self.framing.take())

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case OpenUpstream(stream):
                    self.performed.append(effect)
                    self.do(self.rules.receive(UpstreamOpened(stream)))
                case TunnelOpened() | TunnelRefused():
                    self.performed.append(effect)
                case wire:
                    self.framing.send(wire)  # type: ignore[arg-type]

    def ask(self, fields: Fields, *, end: bool = False) -> tuple[int, list[h2.events.Event]]:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=end)
        return stream, self.exchange()


def _server() -> Peer:
    return Peer(Framing(client=False), HboneServer(lambda event: Target(ip_address("10.1.2.3"), 8080)))


def _statuses(events: list[h2.events.Event]) -> list[str]:
    answers = [event for event in events if isinstance(event, h2.events.ResponseReceived)]
    return [str(value) for answer in answers for name, value in answer.headers or () if str(name) == ":status"]


def _resets(events: list[h2.events.Event]) -> list[tuple[int, int]]:
    return [(e.stream_id, int(e.error_code or 0)) for e in events if isinstance(e, h2.events.StreamReset)]


@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_reset_and_the_streams_beside_it_go_on(fields: Fields, end: bool) -> None:
    peer = _server()
    before, events = peer.ask(CONNECT)
    assert _statuses(events) == ["200"]
    stream, events = peer.ask(fields, end=end)
    assert _resets(events) == [(stream, PROTOCOL_ERROR)]
    assert _statuses(events) == []
    peer.h2.send_data(before, b"still here")
    assert [event for event in peer.exchange() if isinstance(event, h2.events.ConnectionTerminated)] == []
    assert _statuses(peer.ask(CONNECT)[1]) == ["200"]
    assert [effect.stream for effect in peer.performed if isinstance(effect, OpenUpstream)] == [before, stream + 2]


def test_what_was_sent_behind_a_malformed_request_is_dropped() -> None:
    peer = _server()
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, MALFORMED["two :authority"])
    peer.h2.send_data(stream, b"more")
    assert (stream, PROTOCOL_ERROR) in _resets(peer.exchange())
    assert peer.rules.live == ()
    assert _statuses(peer.ask(CONNECT)[1]) == ["200"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (CONNECT, "200"),
        ([*CONNECT, ("te", "trailers"), ("x-odd", "\xe9 and  blanks\tinside"), ("content-length", "many")], "200"),
        (GET, "400"),
    ],
    ids=["a CONNECT", "odd fields that may be", "a GET"],
)
def test_what_is_well_formed_is_answered(fields: Fields, status: str) -> None:
    assert _statuses(_server().ask(fields)[1]) == [status]


def test_malformed_trailers_end_an_open_tunnel() -> None:
    peer = _server()
    stream, _ = peer.ask(CONNECT)
    peer.h2.send_headers(stream, [("Bad Name", "x")], end_stream=True)
    assert _resets(peer.exchange()) == [(stream, PROTOCOL_ERROR)]
    assert peer.rules.live == ()


@pytest.mark.parametrize(
    "fields",
    [
        [("x", "y")],
        [(":status", "abc")],
        [(":status", "200"), (":status", "403")],
        [(":status", "200"), (":path", "/")],
    ],
    ids=["no :status", "a :status of letters", "two :status", "a :path"],
)
def test_a_malformed_response_is_a_tunnel_refused_and_the_next_one_is_opened(fields: Fields) -> None:
    peer = Peer(Framing(client=True), HboneClient())

    def asked(answer: Callable[[int], None]) -> list[Effect]:
        stream = peer.framing.next_stream()
        peer.do(peer.rules.receive(ConnectRequested(stream, "10.1.2.3:8080")))
        peer.exchange()
        answer(stream)
        peer.exchange()
        said, peer.performed = peer.performed, []
        return said

    assert asked(lambda stream: peer.h2.send_headers(stream, fields)) == [TunnelRefused(1, None)]
    assert asked(lambda stream: peer.h2.send_headers(stream, [(":status", "200")])) == [TunnelOpened(3)]


_NAMES = st.one_of(
    st.sampled_from([":method", ":authority", ":path", ":scheme", ":protocol", "te", "content-length", "connection"]),
    st.text(st.characters(max_codepoint=255), max_size=8).filter(lambda name: name != ":status"),
)
_VALUES = st.one_of(st.sampled_from(["CONNECT", "10.1.2.3:8080", "GET", ""]), st.text(st.characters(max_codepoint=255)))


@given(fields=st.lists(st.tuples(_NAMES, _VALUES), min_size=1, max_size=5))
def test_no_list_of_fields_ends_the_connection(fields: Fields) -> None:
    peer = _server()
    peer.ask([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])  # type: ignore[misc]
    assert _statuses(peer.ask(CONNECT)[1]) == ["200"]
