"""HBONE over HTTP/2: two ends in memory, any chunks, any order of endings; and the two mended behaviours of h2."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import h2.connection
import pytest
from h2.config import H2Configuration
from hyperframe.frame import DataFrame
from hypothesis import given
from hypothesis import strategies as st

from meshlab.errors import ProtocolError
from meshlab.protocols.hbone import (
    CloseLocal,
    ConnectReceived,
    ConnectRequested,
    DataReceived,
    Effect,
    EndLocal,
    Event,
    Framing,
    GoawayReceived,
    HboneClient,
    HboneServer,
    LocalData,
    LocalEnded,
    OpenUpstream,
    PongReceived,
    Refusal,
    ResetStream,
    Respond,
    ResponseReceived,
    SendConnect,
    SendData,
    StreamReset,
    StreamWritable,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamOpened,
    WireEvent,
    WriteLocal,
)

Judge = Callable[[ConnectReceived], Target | Refusal]
APP = Target(ip_address("10.1.2.3"), 8080)
AUTHORITY = "10.1.2.3:8080"


@dataclass
class End:
    """One end in memory: a framing, its rules, and a record of what its local sockets got."""

    framing: Framing
    rules: HboneClient | HboneServer
    written: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    ended: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    opened: set[int] = field(default_factory=set)
    refused: dict[int, int | None] = field(default_factory=dict)

    def tell(self, event: Event) -> None:
        for effect in self.rules.receive(event):
            self.do(effect)

    def hear(self, data: bytes) -> list[WireEvent]:
        events = self.framing.receive(data)
        for event in events:
            if not isinstance(event, StreamWritable | GoawayReceived | PongReceived):
                self.tell(event)
        return events

    def do(self, effect: Effect) -> None:
        match effect:
            case WriteLocal(stream, data):
                assert stream not in self.ended, "bytes after the end"
                self.written[stream] += data
                self.framing.consumed(stream, len(data))
            case EndLocal(stream):
                self.ended.add(stream)
            case CloseLocal(stream):
                self.closed.add(stream)
            case OpenUpstream(stream):
                self.tell(UpstreamOpened(stream))
            case TunnelOpened(stream):
                self.opened.add(stream)
            case TunnelRefused(stream, status):
                self.refused[stream] = status
            case wire:
                self.framing.send(wire)


def _pair(judge: Judge = lambda _: APP) -> tuple[End, End]:
    client = End(Framing(client=True), HboneClient())
    server = End(Framing(client=False), HboneServer(judge))
    _exchange(client, server)
    return client, server


def _exchange(client: End, server: End, chunk: int = 1 << 20) -> None:
    """Carry bytes until both ends are silent."""
    silent = 0
    for speaker, listener in itertools.cycle(((client, server), (server, client))):
        data = speaker.framing.take()
        for start in range(0, len(data), chunk):
            listener.hear(data[start : start + chunk])
        silent = 0 if data else silent + 1
        if silent == 2:
            return


def _connect(client: End, server: End, chunk: int = 1 << 20) -> int:
    stream = client.framing.next_stream()
    client.tell(ConnectRequested(stream, AUTHORITY, {"forwarded": "for=x"}))
    _exchange(client, server, chunk)
    return stream


_CHUNKS = st.lists(st.binary(min_size=1, max_size=200_000), max_size=4)


@given(
    to_server=_CHUNKS,
    to_client=_CHUNKS,
    client_first=st.booleans(),
    wire_chunk=st.sampled_from([7, 1_000, 65_536, 1 << 20]),
)
def test_every_byte_arrives_in_order_and_either_end_may_end_first(
    to_server: list[bytes], to_client: list[bytes], client_first: bool, wire_chunk: int
) -> None:
    if wire_chunk == 7:
        to_server, to_client = [data[:500] for data in to_server], [data[:500] for data in to_client]
    client, server = _pair()
    stream = _connect(client, server, wire_chunk)
    assert client.opened == {stream}
    halves = [(client, server, to_server), (server, client, to_client)]
    for speaker, listener, chunks in halves if client_first else halves[::-1]:
        for data in chunks:
            speaker.tell(LocalData(stream, data))
        speaker.tell(LocalEnded(stream))
        _exchange(client, server, wire_chunk)
        assert bytes(listener.written[stream]) == b"".join(chunks)
        assert listener.ended == {stream}
    assert client.closed == server.closed == {stream}
    assert client.rules.live == server.rules.live == ()


def test_more_than_a_window_waits_in_order_and_its_end_behind_it() -> None:
    client, server = _pair()
    stream = _connect(client, server)
    data = bytes(range(256)) * (5 << 12)  # 5 MiB: a stream's window is 4
    client.tell(LocalData(stream, data))
    client.tell(LocalEnded(stream))
    assert client.framing.queued_bytes(stream) == 1 << 20
    events = server.framing.receive(client.framing.take())  # seen, but not yet consumed
    assert not server.ended
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 4 << 20
    for event in events:
        if isinstance(event, DataReceived):
            server.tell(event)
    writable = client.framing.receive(server.framing.take())
    assert writable == [StreamWritable(stream)]
    _exchange(client, server)
    assert bytes(server.written[stream]) == data
    assert server.ended == {stream}


def test_unread_data_of_one_stream_does_not_hold_up_another() -> None:
    client, server = _pair()
    slow, fast = _connect(client, server), _connect(client, server)
    client.framing.send(SendData(slow, bytes(6 << 20)))
    server.framing.receive(client.framing.take())  # nobody consumes it
    client.tell(LocalData(fast, b"ping"))
    _exchange(client, server)
    assert bytes(server.written[fast]) == b"ping"


def test_a_refusal_carries_its_status_and_leaves_the_connection_usable() -> None:
    client, server = _pair(lambda event: Refusal(401, "no") if event.stream == 1 else APP)
    assert _connect(client, server) == 1
    assert client.refused == {1: 401}
    assert _connect(client, server) == 3
    assert client.opened == {3}


def test_the_authority_and_headers_arrive_as_they_were_sent() -> None:
    seen: list[ConnectReceived] = []

    def judge(event: ConnectReceived) -> Target:
        seen.append(event)
        return APP

    client, server = _pair(judge)
    _connect(client, server)
    assert seen == [ConnectReceived(1, AUTHORITY, {"forwarded": "for=x"})]


def test_what_each_connect_says_again_costs_a_byte_although_others_say_something_new() -> None:
    client, server = _pair()
    again = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=client,service.name=client"

    def connect_bytes(stream: int) -> int:
        said = {
            "baggage": again,
            "forwarded": f'for="10.0.0.1:{stream}"',
            "traceparent": f"00-{stream:032x}-{7:016x}-00",
        }
        client.framing.send(SendConnect(stream, AUTHORITY, said))
        sent = client.framing.take()
        assert server.framing.receive(sent) == [ConnectReceived(stream, AUTHORITY, said)]
        return len(sent)

    sizes = [connect_bytes(stream) for stream in range(1, 401, 2)]
    assert max(sizes[1:]) <= sizes[0] - len(again)


def test_a_goaway_lets_open_streams_go_on() -> None:
    client, server = _pair()
    stream = _connect(client, server)
    client.tell(LocalData(stream, b"before"))  # not yet taken when the GOAWAY comes
    server.framing.drain()
    assert GoawayReceived((1 << 31) - 1, 0) in client.hear(server.framing.take())
    client.tell(LocalData(stream, b" after"))
    client.tell(LocalEnded(stream))
    server.tell(LocalData(stream, b"reply"))
    _exchange(client, server)
    assert bytes(server.written[stream]) == b"before after"
    assert bytes(client.written[stream]) == b"reply"


def test_a_ping_is_answered() -> None:
    client, server = _pair()
    client.framing.ping()
    server.hear(client.framing.take())
    assert client.hear(server.framing.take()) == [PongReceived()]


def test_what_is_not_http2_is_a_protocol_error_with_the_wires_code() -> None:
    with pytest.raises(ProtocolError) as caught:
        Framing(client=False).receive(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert caught.value.code == 1


def test_an_effect_on_a_stream_that_the_peer_reset_sends_nothing() -> None:
    client, server = _pair()
    stream = _connect(client, server)
    client.framing.send(ResetStream(stream, 8))
    assert StreamReset(stream, 8) in server.hear(client.framing.take())
    server.framing.send(SendData(stream, b"x"))
    server.framing.send(Respond(stream, 200))
    assert server.framing.take() == b""


def test_settings_are_those_of_a_ztunnel() -> None:
    client, _ = _pair()
    assert client.framing.peer_max_streams == 200
    peer = h2.connection.H2Connection(H2Configuration(client_side=False))
    peer.initiate_connection()
    peer.receive_data(Framing(client=True).take())
    settings = peer.remote_settings
    assert (settings.enable_push, settings.initial_window_size, settings.max_frame_size) == (0, 4 << 20, 1 << 20)
    assert settings.max_header_list_size == 16 << 10
    assert peer.outbound_flow_control_window == 16 << 20


def test_headers_beyond_ascii_do_not_break_the_connection() -> None:
    client, server = _pair()
    client.framing.send(SendConnect(1, AUTHORITY, {"baggage": "caf\u00e9"}))
    events = server.framing.receive(client.framing.take())
    assert events == [ConnectReceived(1, AUTHORITY, {"baggage": "caf\u00e9"})]
    server.framing.send(Respond(1, 200))
    assert ResponseReceived(1, 200) in client.framing.receive(server.framing.take())


def test_h2_still_calls_the_two_methods_that_framing_overrides() -> None:
    """A new h2 that no longer does would leave the cost of ``repr`` and the closing GOAWAY unnoticed."""
    calls: list[str] = []

    class Spied(h2.connection.H2Connection):
        def _receive_frame(self, frame):  # type: ignore[no-untyped-def]
            calls.append(type(frame).__name__)
            return super()._receive_frame(frame)

    peer = Spied(H2Configuration(client_side=False))
    peer.initiate_connection()
    peer.receive_data(Framing(client=True).take())
    assert "SettingsFrame" in calls
    assert hasattr(peer, "_receive_goaway_frame")


def test_no_received_data_frame_is_ever_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = _pair()
    stream = _connect(client, server)

    def formatted(self: DataFrame) -> str:
        raise AssertionError("h2 formatted a DATA frame for its log")

    monkeypatch.setattr(DataFrame, "_body_repr", formatted)
    client.tell(LocalData(stream, b"x"))
    _exchange(client, server)
    assert bytes(server.written[stream]) == b"x"
