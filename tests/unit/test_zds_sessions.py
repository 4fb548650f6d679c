"""ZDS as a conversation, both ends, without a socket. Packets in hex are what a real ztunnel and its agent said."""

from __future__ import annotations

import pytest

from meshlab.errors import ProtocolError
from meshlab.protocols.messages import message
from meshlab.protocols.zds import (
    Acknowledged,
    Added,
    AgentSession,
    Deleted,
    Kept,
    ProxySession,
    Refused,
    Removed,
    SendPacket,
    SnapshotSent,
    Synced,
    UnreadableError,
    ZdsPod,
    describe_answer,
    describe_request,
    encode_add,
    encode_del,
    encode_snapshot_sent,
)

HELLO = bytes.fromhex("0801")
ACK = bytes.fromhex("0a00")
ADD_A = bytes.fromhex("0a150a057569642d61120c0a0161120464656d6f1a0161")
DEL_B = bytes.fromhex("120712057569642d62")
SNAPSHOT_SENT = bytes.fromhex("1a00")


def pod(name: str) -> ZdsPod:
    return ZdsPod(uid=f"uid-{name}", name=name, namespace="demo", service_account=name)


def refusal(text: str) -> bytes:
    return ProxySession.ack(text)


def synced(*pods: ZdsPod) -> AgentSession:
    session = AgentSession(pods)
    session.receive(HELLO)
    while not session.synced:
        session.receive(ACK)
    return session


def test_what_is_sent_is_what_a_real_agent_sends_byte_for_byte() -> None:
    assert encode_add(pod("a")) == ADD_A
    assert encode_del("uid-b") == DEL_B
    assert encode_snapshot_sent() == SNAPSHOT_SENT
    assert ProxySession.hello() == HELLO
    assert ProxySession.ack() == ACK


# --- the agent's end ---


def test_the_agent_says_nothing_before_the_hello() -> None:
    session = AgentSession([pod("a")])
    assert session.add(pod("b")) == []
    assert session.receive(HELLO) == [SendPacket(encode_add(pod("a")), "uid-a")]


def test_the_snapshot_is_one_add_at_a_time_then_snapshot_sent() -> None:
    session = AgentSession([pod("a"), pod("b")])
    assert session.receive(HELLO) == [SendPacket(encode_add(pod("a")), netns_of="uid-a")]
    assert session.receive(ACK) == [Acknowledged("uid-a"), SendPacket(encode_add(pod("b")), netns_of="uid-b")]
    assert session.receive(ACK) == [Acknowledged("uid-b"), SendPacket(SNAPSHOT_SENT)]
    assert not session.synced
    assert session.receive(ACK) == [Synced()]
    assert session.synced


def test_live_requests_wait_for_the_ack_of_the_one_before() -> None:
    session = synced()
    assert session.add(pod("a")) == [SendPacket(ADD_A, "uid-a")]
    assert session.remove("uid-b") == []
    assert session.receive(ACK) == [Acknowledged("uid-a"), SendPacket(DEL_B)]
    assert session.receive(ACK) == [Removed("uid-b")]


def test_a_refused_pod_does_not_stop_the_snapshot() -> None:
    session = AgentSession([pod("a")])
    session.receive(HELLO)
    effects = session.receive(refusal("failure to start proxy : Bind"))
    assert effects == [Refused("uid-a", "failure to start proxy : Bind"), SendPacket(SNAPSHOT_SENT)]


def test_a_pod_removed_before_the_hello_is_never_named() -> None:
    session = AgentSession([pod("a")])
    assert session.remove("uid-a") == [Removed("uid-a")]
    assert session.receive(HELLO) == [SendPacket(SNAPSHOT_SENT)]


def test_a_pod_removed_while_its_add_waits_is_not_added_any_more() -> None:
    session = AgentSession([pod("a"), pod("b")])
    session.receive(HELLO)
    session.remove("uid-b")
    assert session.receive(ACK) == [Acknowledged("uid-a"), SendPacket(SNAPSHOT_SENT)]
    assert session.receive(ACK) == [Synced(), SendPacket(DEL_B)]


@pytest.mark.parametrize(
    ("session", "packet", "words"),
    [
        pytest.param(AgentSession(), b"", "version 0", id="an empty hello"),
        pytest.param(AgentSession(), bytes.fromhex("0807"), "version 7", id="another version"),
        pytest.param(AgentSession(), b"\xff\xff", "is no ZdsHello", id="no hello"),
        pytest.param(synced(), ACK, "no request was outstanding", id="an ack too many"),
        pytest.param(synced(), b"", "is no ack", id="an answer without ack"),
    ],
)
def test_a_proxy_that_breaks_the_protocol_loses_its_connection(
    session: AgentSession, packet: bytes, words: str
) -> None:
    with pytest.raises(ProtocolError, match=words):
        session.receive(packet)


def test_a_proxy_may_not_refuse_the_snapshot_or_a_removal() -> None:
    session = AgentSession()
    session.receive(HELLO)
    with pytest.raises(ProtocolError, match="refused the snapshot: no"):
        session.receive(refusal("no"))
    session = synced()
    session.remove("uid-a")
    with pytest.raises(ProtocolError, match="refused to remove uid-a: no"):
        session.receive(refusal("no"))


def test_a_request_that_both_ends_would_cut_is_never_sent() -> None:
    with pytest.raises(ProtocolError, match="1024"):
        encode_add(pod("x" * 600))


# --- the proxy's end ---


def test_the_proxy_reads_what_the_agent_sends() -> None:
    proxy = ProxySession()
    assert proxy.receive(ADD_A, fds=1) == Added(pod("a"))
    keep = message("istio.workload.zds.WorkloadRequest")()
    keep.keep.uid = "uid-b"
    assert proxy.receive(keep.SerializeToString()) == Kept("uid-b")
    assert proxy.receive(SNAPSHOT_SENT) == SnapshotSent(frozenset({"uid-a", "uid-b"}))
    assert proxy.receive(DEL_B) == Deleted("uid-b")


def test_a_pod_deleted_before_the_snapshot_is_not_in_it() -> None:
    proxy = ProxySession()
    proxy.receive(ADD_A, fds=1)
    proxy.receive(encode_del("uid-a"))
    assert proxy.receive(SNAPSHOT_SENT) == SnapshotSent(frozenset())


@pytest.mark.parametrize(
    ("packet", "fds"),
    [
        pytest.param(ADD_A, 0, id="add without a descriptor"),
        pytest.param(ADD_A, 2, id="add with two"),
        pytest.param(DEL_B, 1, id="del with one"),
        pytest.param(SNAPSHOT_SENT, 1, id="snapshot_sent with one"),
        pytest.param(b"\xff\xff", 0, id="undecodable"),
        pytest.param(b"", 0, id="no request in it"),
        pytest.param(bytes.fromhex("3a00"), 0, id="an unknown request"),
        pytest.param(ADD_A + b"\x00" * 1024, 1, id="longer than the buffer"),
    ],
)
def test_an_unreadable_packet_is_told_from_a_misplaced_one(packet: bytes, fds: int) -> None:
    with pytest.raises(UnreadableError, match=r"^failure to read message"):
        ProxySession().receive(packet, fds)


def test_a_misplaced_request_is_a_protocol_error_of_the_agent() -> None:
    bare = message("istio.workload.zds.WorkloadRequest")()
    bare.add.uid = "uid-a"
    keep = message("istio.workload.zds.WorkloadRequest")()
    keep.keep.uid = "uid-a"
    proxy = ProxySession()
    proxy.receive(SNAPSHOT_SENT)
    for packet, fds in [(bare.SerializeToString(), 1), (keep.SerializeToString(), 0), (SNAPSHOT_SENT, 0)]:
        with pytest.raises(ProtocolError, match=r"^failure to process message") as caught:
            proxy.receive(packet, fds)
        assert not isinstance(caught.value, UnreadableError)


def test_a_long_error_text_is_cut_to_what_the_agent_can_read() -> None:
    assert len(ProxySession.ack("ü" * 2000)) <= 1024
    assert len(ProxySession.ack("ü" * 2000)) > 1000


# --- both together, and the record ---


def test_both_ends_agree_on_a_whole_session() -> None:
    agent, proxy = AgentSession([pod("a"), pod("b")]), ProxySession()
    pending, seen, heard = agent.receive(proxy.hello()), [], []
    for step in range(4):
        (packet,) = [effect for effect in pending if isinstance(effect, SendPacket)]
        seen.append(proxy.receive(packet.data, fds=packet.netns_of is not None))
        pending = agent.receive(proxy.ack())
        heard += [effect for effect in pending if not isinstance(effect, SendPacket)]
        if step == 2:
            pending = agent.remove("uid-a")
    assert seen == [Added(pod("a")), Added(pod("b")), SnapshotSent(frozenset({"uid-a", "uid-b"})), Deleted("uid-a")]
    assert heard == [Acknowledged("uid-a"), Acknowledged("uid-b"), Synced(), Removed("uid-a")]


def test_a_record_says_what_was_in_a_packet() -> None:
    assert describe_request(ADD_A) == {
        "add": {"uid": "uid-a", "workload_info": {"name": "a", "namespace": "demo", "service_account": "a"}}
    }
    assert describe_request(SNAPSHOT_SENT) == {"snapshot_sent": {}}
    assert describe_answer(HELLO, greeted=False) == {"version": 1}
    assert describe_answer(refusal("no"), greeted=True) == {"ack": {"error": "no"}}
