"""Delta xDS: a server's stream and a client, talking without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshlab.errors import ProtocolError
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.xds import DeltaClient, Node, Request, Response, Update
from meshlab.protocols.xds_server import DeltaServer, Lag, Nack, Snapshot, Stream

CLIENT = "ztunnel@node-1"
NODE = Node(name="node-1", instance_ip="10.1.255.2")


def workload(uid: str, node: str = "node-1") -> bytes:
    body: bytes = message("istio.workload.Address")(workload={"uid": uid, "node": node}).SerializeToString()
    return body


def policy(name: str, action: str = "DENY") -> bytes:
    body: bytes = message("istio.security.Authorization")(
        name=name, namespace="shop", action=action
    ).SerializeToString()
    return body


def snapshot(workloads: Mapping[str, bytes] | None = None, policies: Mapping[str, bytes] | None = None) -> Snapshot:
    return Snapshot.of({ADDRESS_TYPE: workloads or {}, AUTHORIZATION_TYPE: policies or {}})


A = snapshot({"a": workload("a"), "b": workload("b")})
WITH_DENY = snapshot({"a": workload("a"), "b": workload("b")}, {"shop/deny": policy("deny")})


def request(type_url: str = ADDRESS_TYPE, **fields: Any) -> Request:
    return message("envoy.service.discovery.v3.DeltaDiscoveryRequest")(type_url=type_url, **fields)


def opening(type_url: str = ADDRESS_TYPE, **fields: Any) -> Request:
    return request(type_url, node=NODE.to_message(), **fields)


def names(response: Response) -> list[str]:
    return [resource.name for resource in response.resources]


class Conversation:
    """A client and a server's stream, each handed what the other said."""

    def __init__(self, server: DeltaServer, client: DeltaClient | None = None, called: str = CLIENT) -> None:
        self.client = client or DeltaClient(NODE)
        self.stream = server.open(called)
        self.updates: list[Update] = []
        for first in self.client.start():
            self.hear(self.stream.receive(first))

    def hear(self, responses: list[Response], refused: Mapping[str, str] | None = None) -> None:
        for response in responses:
            self.updates.append(self.client.receive(response))
            assert self.stream.receive(self.client.answer(self.updates[-1], refused)) == []


def serving(served: Snapshot) -> DeltaServer:
    server = DeltaServer()
    server.publish(served)
    return server


def test_a_client_opens_as_a_real_ztunnel_does() -> None:
    first, second = DeltaClient(NODE).start()
    assert (first.type_url, second.type_url) == (ADDRESS_TYPE, AUTHORIZATION_TYPE)
    assert first.node == second.node
    assert first.node.id == "ztunnel~10.1.255.2~.~.svc.cluster.local"
    assert dict(first.node.metadata) == {
        "INSTANCE_IPS": "10.1.255.2",
        "NODE_NAME": "node-1",
        "NAME": "",
        "NAMESPACE": "",
    }
    for said in (first, second):
        assert [field.name for field, _ in said.ListFields()] == ["node", "type_url"]


def test_an_ack_has_type_and_nonce_only() -> None:
    client = DeltaClient(NODE)
    client.start()
    ack = client.answer(client.receive(serving(A).open(CLIENT).receive(opening())[0]))
    assert [(field.name, value) for field, value in ack.ListFields()] == [
        ("type_url", ADDRESS_TYPE),
        ("response_nonce", "n1"),
    ]


@pytest.mark.parametrize("type_url", [ADDRESS_TYPE, AUTHORIZATION_TYPE])
def test_an_empty_type_is_answered_all_the_same(type_url: str) -> None:
    (response,) = serving(Snapshot()).open(CLIENT).receive(opening(type_url))
    assert (response.type_url, list(response.resources), list(response.removed_resources)) == (type_url, [], [])
    assert response.nonce
    assert response.system_version_info


def test_a_client_gets_everything_then_only_what_changes() -> None:
    server = serving(A)
    talk = Conversation(server)
    assert [sorted(update.resources) for update in talk.updates] == [["a", "b"], []]
    talk.updates.clear()
    changed = snapshot({"a": workload("a", node="node-2"), "c": workload("c")})
    for _, responses in server.publish(changed):
        talk.hear(responses)
    (update,) = talk.updates
    assert sorted(update.resources) == ["a", "c"]
    assert update.resources["a"].workload.node == "node-2"
    assert update.removed == ("b",)


def test_publishing_what_is_served_already_sends_nothing() -> None:
    server = serving(A)
    talk = Conversation(server)
    again = snapshot({"b": workload("b"), "a": workload("a")})
    assert server.publish(again) == [(talk.stream, [])]
    assert server.lagging([CLIENT]) == []


def test_a_policy_is_sent_before_the_workload_that_names_it() -> None:
    server = serving(A)
    Conversation(server)
    ((_, responses),) = server.publish(snapshot({"c": workload("c")}, {"shop/deny": policy("deny")}))
    assert [response.type_url for response in responses] == [AUTHORIZATION_TYPE, ADDRESS_TYPE]


def test_a_reconnecting_client_is_sent_the_difference_only() -> None:
    server = serving(A)
    before = Conversation(server)
    server.close(before.stream)
    server.publish(snapshot({"b": workload("b"), "c": workload("c")}))
    first, _ = before.client.start()
    assert dict(first.initial_resource_versions) == {name: A.named(ADDRESS_TYPE)[name].version for name in "ab"}
    assert first.node.id
    after = Conversation(server, before.client)
    assert [sorted(update.resources) for update in after.updates] == [["c"], []]
    assert after.updates[0].removed == ("a",)
    assert server.lagging([CLIENT]) == []


def test_a_reconnecting_client_that_has_everything_is_still_answered() -> None:
    server = serving(WITH_DENY)
    client = Conversation(server).client
    assert [update.resources for update in Conversation(server, client).updates] == [{}, {}]


def test_versions_are_the_contents_own_and_survive_a_restart_of_the_server() -> None:
    client = Conversation(serving(WITH_DENY)).client
    assert [update.resources for update in Conversation(serving(WITH_DENY), client).updates] == [{}, {}]


# --- what a client can ask for ---

SUBSCRIPTIONS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "an empty list is everything": ({}, ["a", "b"], []),
    "a star is everything": ({"resource_names_subscribe": ["*"]}, ["a", "b"], []),
    "a star taken back at once is nothing": (
        {"resource_names_subscribe": ["*"], "resource_names_unsubscribe": ["*"]},
        [],
        [],
    ),
    "a name is that resource": ({"resource_names_subscribe": ["b"]}, ["b"], []),
    "a name that there is not is removed": ({"resource_names_subscribe": ["b", "x"]}, ["b"], ["x"]),
    "what is held already is not sent": (
        {"initial_resource_versions": {"a": A.named(ADDRESS_TYPE)["a"].version, "b": "older", "gone": "1"}},
        ["b"],
        ["gone"],
    ),
    "what is held and asked for by name is not sent": (
        {"resource_names_subscribe": ["a"], "initial_resource_versions": {"a": A.named(ADDRESS_TYPE)["a"].version}},
        [],
        [],
    ),
}


@pytest.mark.parametrize("case", SUBSCRIPTIONS)
def test_a_first_request_is_answered_with_what_it_asks_for(case: str) -> None:
    fields, sent, removed = SUBSCRIPTIONS[case]
    (response,) = serving(A).open(CLIENT).receive(opening(**fields))
    assert (names(response), list(response.removed_resources)) == (sent, removed)


def on_demand(server: DeltaServer) -> Stream:
    stream = server.open(CLIENT)
    (empty,) = stream.receive(opening(resource_names_subscribe=["*"], resource_names_unsubscribe=["*"]))
    stream.receive(request(response_nonce=empty.nonce))
    return stream


def test_on_demand_a_resource_comes_once_it_is_asked_for_and_is_kept_up_to_date() -> None:
    server = serving(A)
    stream = on_demand(server)
    (asked,) = stream.receive(request(resource_names_subscribe=["a"]))
    assert names(asked) == ["a"]
    ((_, (changed,)),) = server.publish(snapshot({"a": workload("a", "node-2"), "b": workload("b", "node-2")}))
    assert names(changed) == ["a"]
    assert stream.receive(request(resource_names_unsubscribe=["a"])) == []
    assert server.publish(A) == [(stream, [])]


def test_on_demand_a_name_that_comes_later_is_sent_then() -> None:
    server = serving(A)
    stream = on_demand(server)
    (missing,) = stream.receive(request(resource_names_subscribe=["c"]))
    assert list(missing.removed_resources) == ["c"]
    ((_, (late,)),) = server.publish(snapshot({"c": workload("c")}))
    assert names(late) == ["c"]


def test_who_asks_again_for_a_resource_is_sent_it_again() -> None:
    stream = on_demand(serving(A))
    for _ in range(2):
        (response,) = stream.receive(request(resource_names_subscribe=["a"]))
        assert names(response) == ["a"]


def test_names_may_come_with_an_ack() -> None:
    stream = serving(A).open(CLIENT)
    (empty,) = stream.receive(opening(resource_names_subscribe=["*"], resource_names_unsubscribe=["*"]))
    (response,) = stream.receive(request(response_nonce=empty.nonce, resource_names_subscribe=["b"]))
    assert names(response) == ["b"]


# --- refusals ---


def test_a_nack_names_the_bad_resource_and_the_rest_is_held() -> None:
    server = serving(WITH_DENY)
    talk = Conversation(server)
    ((_, responses),) = server.publish(snapshot({"a": workload("a", "node-2"), "b": workload("b", "node-3")}))
    update = talk.client.receive(responses[1])
    nack = talk.client.answer(update, {"b": "unknown enum"})
    assert (nack.error_detail.message, nack.error_detail.code) == ("b: unknown enum", 0)
    first, _ = talk.client.start()
    assert first.initial_resource_versions["a"] == server.served.common.named(ADDRESS_TYPE)["a"].version
    assert first.initial_resource_versions["b"] == WITH_DENY.named(ADDRESS_TYPE)["b"].version


def test_what_cannot_be_decoded_is_refused_without_the_applications_help() -> None:
    server = serving(snapshot({"a": workload("a"), "bad": b"\x0a\xff"}))
    stream, client = server.open(CLIENT), DeltaClient(NODE)
    (response,) = stream.receive(client.start()[0])
    update = client.receive(response)
    assert sorted(update.resources) == ["a"]
    assert stream.receive(client.answer(update)) == []
    (nack,) = stream.nacks
    assert (nack.node, nack.type_url) == ("node-1", ADDRESS_TYPE)
    assert nack.detail.startswith("bad: decode: ")


def test_a_resource_of_another_type_than_its_response_is_refused() -> None:
    client = DeltaClient(NODE)
    (response,) = serving(A).open(CLIENT).receive(client.start()[0])
    response.resources[0].resource.type_url = AUTHORIZATION_TYPE
    assert sorted(client.receive(response).errors) == ["a"]


def test_a_type_that_the_client_did_not_ask_for_changes_nothing_and_is_acknowledged() -> None:
    client = DeltaClient(NODE, [ADDRESS_TYPE])
    (response,) = serving(WITH_DENY).open(CLIENT).receive(opening(AUTHORIZATION_TYPE))
    update = client.receive(response)
    assert (update.resources, update.removed) == ({}, ())
    assert not client.answer(update).HasField("error_detail")


def test_after_a_nack_the_last_accepted_version_is_served_and_sent_again() -> None:
    server = serving(WITH_DENY)
    talk = Conversation(server)
    server.accept()
    bad = snapshot({"a": workload("a"), "b": workload("b")}, {"shop/deny": policy("deny", "ALLOW"), "shop/new": b""})
    ((_, responses),) = server.publish(bad)
    talk.hear(responses, {"shop/deny": "not understood"})
    assert talk.stream.nacks == [
        Nack(CLIENT, "node-1", AUTHORIZATION_TYPE, bad.version(AUTHORIZATION_TYPE), "shop/deny: not understood")
    ]
    assert server.lagging([CLIENT]) == [
        Lag(CLIENT, "node-1", AUTHORIZATION_TYPE, WITH_DENY.version(AUTHORIZATION_TYPE)),
    ]
    ((_, (back,)),) = server.roll_back()
    assert (names(back), list(back.removed_resources)) == (["shop/deny"], ["shop/new"])
    assert [lag.type_url for lag in server.lagging([CLIENT])] == [AUTHORIZATION_TYPE]
    talk.hear([back])
    assert server.served.common is WITH_DENY
    assert server.lagging([CLIENT]) == []


def test_a_nack_of_what_was_superseded_meanwhile_leaves_the_newer_version_accepted() -> None:
    server = serving(A)
    talk = Conversation(server)
    ((_, older),) = server.publish(snapshot({"a": workload("a", "node-2"), "b": workload("b")}))
    ((_, newer),) = server.publish(snapshot({"a": workload("a", "node-3"), "b": workload("b")}))
    talk.hear(older, {"a": "no"})
    talk.hear(newer)
    assert server.lagging([CLIENT]) == []


def test_a_nack_of_something_that_is_still_served_is_not_healed_by_a_later_ack() -> None:
    server = serving(A)
    talk = Conversation(server)
    ((_, older),) = server.publish(snapshot({"a": workload("a", "node-2"), "b": workload("b")}))
    ((_, newer),) = server.publish(snapshot({"a": workload("a", "node-2"), "c": workload("c")}))
    talk.hear(older, {"a": "no"})
    talk.hear(newer)
    assert [lag.type_url for lag in server.lagging([CLIENT])] == [ADDRESS_TYPE]


# --- who has acknowledged ---


def test_a_push_counts_when_both_types_are_acknowledged() -> None:
    server = serving(A)
    stream, client = server.open(CLIENT), DeltaClient(NODE)
    first, second = client.start()
    assert [lag.version for lag in server.lagging([CLIENT])] == ["", ""]
    addresses, policies = stream.receive(first)[0], stream.receive(second)[0]
    stream.receive(client.answer(client.receive(addresses)))
    assert server.lagging([CLIENT]) == [Lag(CLIENT, "node-1", AUTHORIZATION_TYPE, "")]
    stream.receive(client.answer(client.receive(policies)))
    assert server.lagging([CLIENT]) == []


def test_a_push_of_one_type_does_not_wait_for_the_other() -> None:
    server = serving(A)
    talk = Conversation(server)
    ((_, responses),) = server.publish(WITH_DENY)
    assert server.lagging([CLIENT]) == [Lag(CLIENT, "node-1", AUTHORIZATION_TYPE, A.version(AUTHORIZATION_TYPE))]
    talk.hear(responses)
    assert server.lagging([CLIENT]) == []


def test_going_back_to_what_was_acknowledged_once_must_be_acknowledged_again() -> None:
    server = serving(A)
    talk = Conversation(server)
    ((_, there),) = server.publish(WITH_DENY)
    ((_, back),) = server.publish(A)
    for responses in (there, back):
        assert [lag.type_url for lag in server.lagging([CLIENT])] == [AUTHORIZATION_TYPE]
        talk.hear(responses)
    assert server.lagging([CLIENT]) == []


def test_an_ack_that_crosses_a_newer_response_says_what_the_client_has_meanwhile() -> None:
    server = serving(A)
    talk = Conversation(server)
    (_, [denying]) = server.publish(WITH_DENY)[0]
    (_, [going_back]) = server.publish(A)[0]
    assert server.lagging([CLIENT])[0].version == A.version(AUTHORIZATION_TYPE)
    talk.hear([denying])
    assert server.lagging([CLIENT]) == [
        Lag(CLIENT, "node-1", AUTHORIZATION_TYPE, WITH_DENY.version(AUTHORIZATION_TYPE))
    ]
    talk.hear([going_back])
    assert server.lagging([CLIENT]) == []


def test_a_client_without_a_stream_lags_and_one_of_its_two_streams_is_not_enough() -> None:
    server = serving(A)
    first = Conversation(server)
    assert [(lag.client, lag.node) for lag in server.lagging([CLIENT, "ztunnel@node-2"])] == [
        ("ztunnel@node-2", "")
    ] * 2
    second = server.open(CLIENT)
    second.receive(opening())
    assert {lag.client for lag in server.lagging([CLIENT])} == {CLIENT}
    server.close(second)
    assert server.lagging([CLIENT]) == []
    server.close(first.stream)
    assert {lag.client for lag in server.lagging([CLIENT])} == {CLIENT}


def test_a_client_that_has_subscribed_on_two_streams_is_sent_each_change_on_both_and_counts_when_both_have_it() -> None:
    server = serving(A)
    first, second = Conversation(server), Conversation(server)
    assert server.lagging([CLIENT]) == []
    ((_, to_first), (_, to_second)) = server.publish(WITH_DENY)
    assert names(to_first[0]) == names(to_second[0]) == ["shop/deny"]
    first.hear(to_first)
    assert [lag.type_url for lag in server.lagging([CLIENT])] == [AUTHORIZATION_TYPE]
    second.hear(to_second)
    assert server.lagging([CLIENT]) == []


def test_two_clients_of_one_node_are_waited_for_each_for_itself() -> None:
    server = serving(A)
    old, new = Conversation(server), Conversation(server, called="ztunnel@node-1#2")
    ((_, to_old), (_, to_new)) = server.publish(WITH_DENY)
    new.hear(to_new)
    assert server.lagging(["ztunnel@node-1#2"]) == []
    assert [(lag.client, lag.node) for lag in server.lagging([CLIENT, "ztunnel@node-1#2"])] == [(CLIENT, "node-1")]
    old.hear(to_old)
    assert server.lagging([CLIENT, "ztunnel@node-1#2"]) == []


def test_a_stream_is_named_by_its_node_or_else_by_its_id() -> None:
    named, bare = serving(A).open(CLIENT), serving(A).open(CLIENT)
    named.receive(opening())
    bare.receive(request(node={"id": "ztunnel~10.1.255.2~.~.svc.cluster.local"}))
    assert (named.node, bare.node) == ("node-1", "ztunnel~10.1.255.2~.~.svc.cluster.local")


# --- what is not a move ---


def opened() -> Stream:
    stream = serving(A).open(CLIENT)
    stream.receive(opening())
    return stream


def _fresh() -> Stream:
    return serving(A).open(CLIENT)


ERROR = {"message": "no"}
ILLEGAL: dict[str, tuple[Callable[[], Stream], Callable[[], Request], str]] = {
    "no type": (_fresh, lambda: opening(""), "type_url is empty"),
    "no node": (_fresh, request, "has no node"),
    "an answer to nothing": (_fresh, lambda: opening(response_nonce="n1"), "together: response_nonce"),
    "an error about nothing": (_fresh, lambda: opening(error_detail=ERROR), "together: error_detail"),
    "an error without nonce": (opened, lambda: request(error_detail=ERROR), "the type is subscribed, error_detail"),
    "a nonce never sent": (opened, lambda: request(response_nonce="n7"), "no response with nonce 'n7' was sent"),
    "an answer of another type": (opened, lambda: request(AUTHORIZATION_TYPE, response_nonce="n1"), "response_nonce"),
    "versions in a later request": (
        opened,
        lambda: request(initial_resource_versions={"a": "1"}),
        "the type is subscribed, initial_resource_versions",
    ),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_is_no_legal_move_is_the_clients_error(case: str) -> None:
    stream, build, reason = ILLEGAL[case]
    with pytest.raises(ProtocolError, match=reason) as caught:
        stream().receive(build())
    assert caught.value.code == 3


def test_a_second_answer_to_a_response_is_ignored_as_istio_does_and_the_stream_lives_on() -> None:
    server = serving(A)
    stream = server.open(CLIENT)
    stream.receive(opening())
    for _ in range(2):
        assert stream.receive(request(response_nonce="n1")) == []
    assert stream.has(ADDRESS_TYPE, A.version(ADDRESS_TYPE))
    ((_, responses),) = server.publish(snapshot({"a": workload("a", "node-2")}))
    assert [response.nonce for response in responses] == ["n2"]


def test_a_refusal_that_comes_after_the_answer_is_still_a_refusal() -> None:
    stream = opened()
    stream.receive(request(response_nonce="n1"))
    stream.receive(request(response_nonce="n1", error_detail=ERROR))
    assert stream.nacks == [Nack(CLIENT, "node-1", ADDRESS_TYPE, "", "no")]
