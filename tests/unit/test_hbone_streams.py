"""HBONE as a conversation: what each end does with each event. Every promise is a script of events and effects."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from meshlab.protocols.hbone import (
    REFUSED_STREAM,
    Authority,
    CloseLocal,
    ConnectReceived,
    ConnectRequested,
    DataReceived,
    Effect,
    EndLocal,
    EndStream,
    Event,
    HboneClient,
    HboneServer,
    LocalData,
    LocalEnded,
    LocalLost,
    OpenUpstream,
    Refusal,
    ResetStream,
    Respond,
    ResponseReceived,
    Revoked,
    SendConnect,
    SendData,
    StreamEnded,
    StreamReset,
    Target,
    TunnelOpened,
    TunnelRefused,
    UpstreamFailed,
    UpstreamOpened,
    WriteLocal,
)

APP = Target(ip_address("10.1.2.3"), 8080)
AUTHORITY = "10.1.2.3:8080"
CANCEL = 8


class Script:
    """Plays events at one end and compares its effects, move by move."""

    def __init__(self, end: HboneServer | HboneClient) -> None:
        self.end = end

    def on(self, event: Event, *effects: Effect) -> Script:
        assert self.end.receive(event) == list(effects), f"on {event}"
        return self

    def has_forgotten(self, stream: int) -> Script:
        assert self.end.state(stream) is None
        return self


def _allow(_: ConnectReceived) -> Target:
    return APP


def _deny(_: ConnectReceived) -> Refusal:
    return Refusal(401, "explicitly denied by: shop/no-one")


def _open_server() -> Script:
    return (
        Script(HboneServer(_allow))
        .on(ConnectReceived(1, AUTHORITY), OpenUpstream(1, APP))
        .on(UpstreamOpened(1, {"baggage": "b"}), Respond(1, 200, {"baggage": "b"}))
    )


def _open_client() -> Script:
    return (
        Script(HboneClient())
        .on(ConnectRequested(1, AUTHORITY), SendConnect(1, AUTHORITY))
        .on(ResponseReceived(1, 200), TunnelOpened(1))
    )


# --- the server opens a tunnel -------------------------------------------------------------------------------------


def test_a_denied_peer_never_reaches_the_upstream() -> None:
    refused = (Respond(1, 401, end=True), ResetStream(1, 0))
    Script(HboneServer(_deny)).on(ConnectReceived(1, AUTHORITY), *refused).has_forgotten(1)


def test_a_connect_is_answered_only_when_the_app_has_accepted() -> None:
    _open_server()


def test_an_app_that_cannot_be_reached_is_a_503() -> None:
    script = Script(HboneServer(_allow)).on(ConnectReceived(1, AUTHORITY), OpenUpstream(1, APP))
    script.on(UpstreamFailed(1), Respond(1, 503, end=True), ResetStream(1, 0)).has_forgotten(1)


@pytest.mark.parametrize("method", ["GET", "POST", "connect", ""])
def test_what_is_no_connect_is_a_400_and_nobody_is_asked(method: str) -> None:
    def never(_: ConnectReceived) -> Target:
        raise AssertionError("judged a request that is no CONNECT")

    refused = (Respond(1, 400, end=True), ResetStream(1, 0))
    Script(HboneServer(never)).on(ConnectReceived(1, AUTHORITY, method=method), *refused)


def test_an_empty_authority_is_a_reset() -> None:
    Script(HboneServer(_allow)).on(ConnectReceived(1, ""), ResetStream(1, 1)).has_forgotten(1)


def test_bytes_and_an_end_that_come_before_the_200_are_kept_for_the_app() -> None:
    script = Script(HboneServer(_allow)).on(ConnectReceived(1, AUTHORITY), OpenUpstream(1, APP))
    script.on(DataReceived(1, b"early")).on(StreamEnded(1))
    script.on(UpstreamOpened(1), Respond(1, 200), WriteLocal(1, b"early"), EndLocal(1))
    script.on(LocalEnded(1), EndStream(1), CloseLocal(1)).has_forgotten(1)


def test_a_peer_that_gives_up_while_we_dial_leaves_nothing_open() -> None:
    script = Script(HboneServer(_allow)).on(ConnectReceived(1, AUTHORITY), OpenUpstream(1, APP))
    script.on(StreamReset(1, CANCEL), CloseLocal(1, "stream reset by the peer (code 8)")).has_forgotten(1)
    script.on(UpstreamOpened(1), CloseLocal(1))


# --- the client opens a tunnel -------------------------------------------------------------------------------------


def test_a_200_opens_the_tunnel() -> None:
    _open_client()


@pytest.mark.parametrize("status", [400, 401, 503, 204])
def test_any_other_status_is_a_refusal(status: int) -> None:
    script = Script(HboneClient()).on(ConnectRequested(1, AUTHORITY), SendConnect(1, AUTHORITY))
    script.on(ResponseReceived(1, status), TunnelRefused(1, status), ResetStream(1, CANCEL)).has_forgotten(1)


@pytest.mark.parametrize("event", [StreamEnded(1), StreamReset(1, 8)], ids=["ended", "reset"])
def test_a_stream_that_is_over_before_its_answer_is_a_refusal(event: Event) -> None:
    script = Script(HboneClient()).on(ConnectRequested(1, AUTHORITY), SendConnect(1, AUTHORITY))
    script.on(event, TunnelRefused(1, None)).has_forgotten(1)


def test_a_stream_that_the_server_has_not_touched_may_be_asked_for_elsewhere() -> None:
    script = Script(HboneClient()).on(ConnectRequested(1, AUTHORITY), SendConnect(1, AUTHORITY))
    script.on(StreamReset(1, REFUSED_STREAM), TunnelRefused(1, None, untouched=True)).has_forgotten(1)


def test_a_goaway_leaves_out_what_waits_for_an_answer_after_its_last_stream_and_nothing_that_is_open() -> None:
    client = HboneClient()
    for stream in (1, 3, 5):
        client.receive(ConnectRequested(stream, AUTHORITY, {}))
    client.receive(ResponseReceived(5, 200, {}))
    assert (client.left_out(1), client.left_out(3), client.left_out((1 << 31) - 1)) == ((3,), (), ())


def test_data_before_the_answer_is_the_servers_fault_and_costs_only_its_stream() -> None:
    script = _open_client().on(ConnectRequested(3, AUTHORITY), SendConnect(3, AUTHORITY))
    error = "protocol error: DataReceived while awaiting"
    script.on(DataReceived(3, b"x"), ResetStream(3, 1), CloseLocal(3, error)).has_forgotten(3)
    script.on(DataReceived(1, b"y"), WriteLocal(1, b"y"))


# --- an open tunnel: both ends alike -------------------------------------------------------------------------------

ENDS = pytest.mark.parametrize("opened", [_open_server, _open_client], ids=["server", "client"])


@ENDS
def test_bytes_pass_both_ways(opened: Callable[[], Script]) -> None:
    opened().on(DataReceived(1, b"in"), WriteLocal(1, b"in")).on(LocalData(1, b"out"), SendData(1, b"out"))


@ENDS
def test_the_peer_may_end_first_and_still_be_answered(opened: Callable[[], Script]) -> None:
    script = opened().on(StreamEnded(1), EndLocal(1)).on(LocalData(1, b"late"), SendData(1, b"late"))
    script.on(LocalEnded(1), EndStream(1), CloseLocal(1)).has_forgotten(1)


@ENDS
def test_the_app_may_end_first_and_still_hear(opened: Callable[[], Script]) -> None:
    script = opened().on(LocalEnded(1), EndStream(1)).on(DataReceived(1, b"late"), WriteLocal(1, b"late"))
    script.on(StreamEnded(1), EndLocal(1), CloseLocal(1)).has_forgotten(1)


@ENDS
@pytest.mark.parametrize("code", [0, 2, 7, 8])
def test_a_reset_of_any_code_closes_the_local_socket(opened: Callable[[], Script], code: int) -> None:
    closed = CloseLocal(1, f"stream reset by the peer (code {code})")
    opened().on(StreamReset(1, code), closed).has_forgotten(1)


@ENDS
def test_a_lost_socket_is_an_end_and_then_a_cancel(opened: Callable[[], Script]) -> None:
    effects = (EndStream(1), ResetStream(1, CANCEL, after_data=True), CloseLocal(1, "local socket lost"))
    opened().on(LocalLost(1), *effects).has_forgotten(1)


def test_a_revoked_tunnel_is_cut_and_its_neighbour_lives() -> None:
    script = _open_server().on(ConnectReceived(3, AUTHORITY), OpenUpstream(3, APP))
    script.on(UpstreamOpened(3), Respond(3, 200))
    cut = (ResetStream(1, CANCEL), CloseLocal(1, "connection closed due to policy change"))
    script.on(Revoked(1), *cut).has_forgotten(1)
    script.on(DataReceived(3, b"alive"), WriteLocal(3, b"alive"))


@ENDS
def test_a_local_event_that_crossed_the_close_changes_nothing(opened: Callable[[], Script]) -> None:
    script = opened().on(StreamReset(1, 0), CloseLocal(1, "stream reset by the peer (code 0)"))
    script.on(LocalData(1, b"x")).on(LocalEnded(1)).on(LocalLost(1)).on(Revoked(1)).on(StreamEnded(1))


# --- authorities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:80", ip_address("10.0.0.1"), 80),
        ("[fd00::1]:8080", ip_address("fd00::1"), 8080),
        ("server.shop.svc.cluster.local:0", "server.shop.svc.cluster.local", 0),
    ],
)
def test_an_authority_reads_and_writes_the_same(text: str, host: object, port: int) -> None:
    parsed = Authority.parse(text)
    assert (parsed.host, parsed.port, str(parsed)) == (host, port, text)


@pytest.mark.parametrize(
    "text",
    ["", ":80", "h", "h:", "h:x", "h:-1", "h:65536", "fd00::1:80", "[fd00::1:80", "[x]:80", "h:\u0663"],
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Authority.parse(text)
