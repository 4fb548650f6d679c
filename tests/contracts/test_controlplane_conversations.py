"""The control plane on loopback: node proxies are real gRPC clients, the lab is the other end of its channel."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshlab.controlplane.authority import CA_METHOD, CA_SERVICE
from meshlab.controlplane.main import serve
from meshlab.controlplane.plane import Config, ControlPlane
from meshlab.kernel.channel import Channel, pair
from meshlab.model.identity import SpiffeId
from meshlab.pki import MeshCA, create_csr
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.xds import DELTA_ADS_METHOD, DELTA_ADS_SERVICE, DeltaClient, Node, Request, Update
from meshlab.protocols.xds_server import Snapshot

DEADLINE_S = 10
ONE, TWO, THREE = (f"ztunnel@node-{number}" for number in (1, 2, 3))
CLIENTS = {"token-1": ONE, "token-2": TWO, "token-3": THREE}
CLIENT = SpiffeId("cluster.local", "shop", "client")
Resources = Mapping[str, Mapping[str, bytes]]


def workloads(*uids: str) -> dict[str, bytes]:
    return {uid: message("istio.workload.Address")(workload={"uid": uid}).SerializeToString() for uid in uids}


def policies(*names: str) -> dict[str, bytes]:
    build = message("istio.security.Authorization")
    return {f"shop/{name}": build(name=name, namespace="shop", action="DENY").SerializeToString() for name in names}


TWO_PODS: Resources = {ADDRESS_TYPE: workloads("a", "b"), AUTHORIZATION_TYPE: {}}
WITH_DENY: Resources = {ADDRESS_TYPE: workloads("a", "b"), AUTHORIZATION_TYPE: policies("deny")}


class Lab:
    """The lab's end of the control channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.events: list[dict[str, Any]] = []
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}

    def ask(self, op: str, **fields: Any) -> int:
        self._asked += 1
        self.channel.send({"id": self._asked, "op": op, **fields})
        return self._asked

    def answer(self, asked: int) -> dict[str, Any]:
        while asked not in self._answers:
            said, _ = self.channel.receive(DEADLINE_S)
            if "event" in said:
                self.events.append(said)
            else:
                self._answers[said.pop("id")] = said
        return self._answers.pop(asked)

    def event(self, kind: str) -> dict[str, Any]:
        """The next event of this kind, from those that came already on."""
        while True:
            for event in self.events:
                if event["event"] == kind:
                    self.events.remove(event)
                    return event
            said, _ = self.channel.receive(DEADLINE_S)
            assert "event" in said, said
            self.events.append(said)

    def begin_set(self, resources: Resources, barrier: list[str], **fields: Any) -> int:
        encoded = {
            type_url: {name: base64.b64encode(body).decode() for name, body in named.items()}
            for type_url, named in resources.items()
        }
        return self.ask("set", resources=encoded, barrier=barrier, **{"timeout_s": DEADLINE_S, **fields})

    def set(self, resources: Resources, barrier: list[str], **fields: Any) -> dict[str, Any]:
        return self.answer(self.begin_set(resources, barrier, **fields))

    def status(self) -> dict[str, Any]:
        return self.answer(self.ask("status"))

    def clients(self, clients: Mapping[str, str]) -> dict[str, Any]:
        return self.answer(self.ask("clients", clients=clients))


class Ztunnel:
    """A node proxy's connections, driven by hand; it refuses resources by name."""

    def __init__(self, port: int, roots: str, node: str, token: str) -> None:
        self.client = DeltaClient(Node(name=node))
        self.metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        self.channel = grpc.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(roots.encode()),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self.outbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Open the stream, with the first requests."""
        self.outbox = queue.SimpleQueue()
        self.responses = self.channel.stream_stream(
            f"/{DELTA_ADS_SERVICE}/{DELTA_ADS_METHOD}",
            request_serializer=message("envoy.service.discovery.v3.DeltaDiscoveryRequest").SerializeToString,
            response_deserializer=message("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString,
        )(iter(self.outbox.get, None), metadata=self.metadata, timeout=DEADLINE_S)
        for request in self.client.start():
            self.outbox.put(request)

    def hear(self, refused: Mapping[str, str] | None = None) -> Update:
        """Take one response and answer it."""
        update = self.client.receive(next(self.responses))
        self.outbox.put(self.client.answer(update, refused))
        return update

    def synchronise(self) -> list[Update]:
        self.start()
        return [self.hear(), self.hear()]

    def leave(self) -> None:
        self.outbox.put(None)
        self.responses.cancel()

    def certificate(self, identity: SpiffeId = CLIENT, **fields: Any) -> list[str]:
        request = message("istio.v1.auth.IstioCertificateRequest")(
            csr=create_csr(identity, ec.generate_private_key(ec.SECP256R1())), validity_duration=86400
        )
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        for name, value in fields.items():
            request.ClearField(name)
            if value is not None:
                setattr(request, name, value)
        create = self.channel.unary_unary(
            f"/{CA_SERVICE}/{CA_METHOD}",
            request_serializer=message("istio.v1.auth.IstioCertificateRequest").SerializeToString,
            response_deserializer=message("istio.v1.auth.IstioCertificateResponse").FromString,
        )
        return list(create(request, metadata=self.metadata, timeout=DEADLINE_S).cert_chain)


class World:
    """One control plane, running, and what talks to it."""

    def __init__(self, ca: MeshCA, stack: contextlib.ExitStack, *, record: bool = False) -> None:
        self.ca = ca
        ours, theirs = pair()
        pems = ca.control_plane("127.0.0.1")
        config = Config(
            listen="127.0.0.1", port=0, clients=CLIENTS, trust_domain="cluster.local", ca=pems, record=record
        )
        thread = threading.Thread(target=lambda: asyncio.run(ControlPlane(config, theirs).run()))
        thread.start()
        stack.callback(theirs.close)
        stack.callback(thread.join, DEADLINE_S)
        stack.callback(ours.close)
        self.lab = Lab(ours)
        self.port = self.lab.event("listening")["port"]
        self._stack = stack

    def ztunnel(self, node: str = "node-1", *, bearer: str | None = None, ca: MeshCA | None = None) -> Ztunnel:
        token = node.replace("node", "token") if bearer is None else bearer
        ztunnel = Ztunnel(self.port, (ca or self.ca).cert_pem.bytes().decode(), node, token)
        self._stack.callback(ztunnel.channel.close)
        self._stack.callback(lambda: ztunnel.outbox.put(None))
        return ztunnel


@pytest.fixture(scope="module")
def ca() -> MeshCA:
    return MeshCA()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def world(ca: MeshCA, stack: contextlib.ExitStack) -> World:
    return World(ca, stack)


def versions(resources: Resources) -> dict[str, str]:
    snapshot = Snapshot.of(resources)
    return {type_url: snapshot.version(type_url) for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE)}


# --- pushes and their barrier ---


def test_a_push_is_acknowledged_when_the_ztunnel_that_starts_later_has_both_types(world: World) -> None:
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    first, second = world.ztunnel().synchronise()
    assert (sorted(first.resources), first.type_url) == (["a", "b"], ADDRESS_TYPE)
    assert (second.resources, second.type_url) == ({}, AUTHORIZATION_TYPE)
    assert world.lab.answer(pushed) == {"acknowledged": {ONE: versions(TWO_PODS)}}


def test_a_push_waits_for_every_node_of_its_barrier_and_for_no_other(world: World) -> None:
    one, two, three = (world.ztunnel(f"node-{number}") for number in (1, 2, 3))
    world.lab.set(TWO_PODS, [])
    for ztunnel in (one, two, three):
        ztunnel.synchronise()
    assert set(world.lab.set(TWO_PODS, [ONE, TWO, THREE])["acknowledged"]) == {
        ONE,
        TWO,
        THREE,
    }
    pushed = world.lab.begin_set(WITH_DENY, [ONE, TWO])
    assert sorted(one.hear().resources) == ["shop/deny"]
    two.hear()
    assert world.lab.answer(pushed) == {"acknowledged": dict.fromkeys([ONE, TWO], versions(WITH_DENY))}


def test_a_push_that_is_not_acknowledged_in_time_names_node_type_and_version(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    assert world.lab.set(WITH_DENY, [ONE, TWO], timeout_s=0.05) == {
        "timeout": [
            {
                "client": ONE,
                "node": "node-1",
                "type_url": AUTHORIZATION_TYPE,
                "version": versions(TWO_PODS)[AUTHORIZATION_TYPE],
            },
            {"client": TWO, "node": "", "type_url": ADDRESS_TYPE, "version": ""},
            {"client": TWO, "node": "", "type_url": AUTHORIZATION_TYPE, "version": ""},
        ],
        "certificates": [],
    }


def test_a_push_waits_for_certificates_where_it_is_told_to(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE], certificates=[str(CLIENT)])
    ztunnel.synchronise()
    ztunnel.certificate()
    assert "acknowledged" in world.lab.answer(pushed)
    late = world.lab.set(TWO_PODS, [ONE], certificates=[str(CLIENT), "spiffe://other"], timeout_s=0.05)
    assert late == {"timeout": [], "certificates": ["spiffe://other"]}


def test_a_removed_resource_is_removed_by_name(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set({ADDRESS_TYPE: workloads("b")}, [ONE])
    update = ztunnel.hear()
    assert (update.resources, update.removed) == ({}, ("a",))
    assert "acknowledged" in world.lab.answer(pushed)


def test_a_push_ends_the_wait_of_the_one_that_it_replaces(world: World) -> None:
    ztunnel = world.ztunnel()
    first = world.lab.begin_set(TWO_PODS, [ONE])
    second = world.lab.begin_set(WITH_DENY, [ONE])
    assert world.lab.answer(first) == {"superseded": True}
    ztunnel.synchronise()
    assert world.lab.answer(second) == {"acknowledged": {ONE: versions(WITH_DENY)}}


# --- refusals and roll-back ---


def test_a_nack_is_the_pushs_answer_and_takes_it_back_everywhere(world: World) -> None:
    one, two = world.ztunnel("node-1"), world.ztunnel("node-2")
    both = [ONE, TWO]
    pushed = world.lab.begin_set(WITH_DENY, both)
    one.synchronise()
    two.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set({**TWO_PODS, AUTHORIZATION_TYPE: policies("new")}, both)
    two.hear()
    one.hear({"shop/new": "cannot parse"})
    for ztunnel in (one, two):
        back = ztunnel.hear()
        assert (sorted(back.resources), back.removed) == (["shop/deny"], ("shop/new",))
    nack = world.lab.answer(pushed)["nack"]
    assert (nack["client"], nack["node"], nack["type_url"], nack["detail"]) == (
        ONE,
        "node-1",
        AUTHORIZATION_TYPE,
        "shop/new: cannot parse",
    )
    assert world.lab.set(WITH_DENY, both) == {"acknowledged": dict.fromkeys(both, versions(WITH_DENY))}
    assert world.lab.status()["unexpected"] == []


def test_the_answer_to_a_refused_push_waits_for_its_roll_back(ca: MeshCA, stack: contextlib.ExitStack) -> None:
    world = World(ca, stack, record=True)
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    world.lab.events.clear()
    pushed = world.lab.begin_set(WITH_DENY, [ONE])
    ztunnel.hear({"shop/deny": "no"})
    ztunnel.hear()
    assert "nack" in world.lab.answer(pushed)
    answered = ["xds-response", "xds-request"]
    assert [event["k"] for event in world.lab.events] == ["push", *answered, "push-rolled-back", *answered]


def test_the_answer_to_a_refused_push_names_who_has_not_gone_back(world: World) -> None:
    one, two = world.ztunnel("node-1"), world.ztunnel("node-2")
    both = [ONE, TWO]
    pushed = world.lab.begin_set(TWO_PODS, both)
    one.synchronise()
    two.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set(WITH_DENY, both, timeout_s=2.0)
    two.hear()
    one.hear({"shop/deny": "no"})
    one.hear()  # and node-2 is busy
    answer = world.lab.answer(pushed)
    assert (answer["nack"]["client"], answer["went_back"]) == (ONE, True)
    assert answer["behind"] == [
        {
            "client": TWO,
            "node": "node-2",
            "type_url": AUTHORIZATION_TYPE,
            "version": versions(WITH_DENY)[AUTHORIZATION_TYPE],
        }
    ]


def test_a_refused_push_can_stay_as_istio_leaves_it_and_is_sent_no_second_time(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set(WITH_DENY, [ONE], after_nack="leave")
    ztunnel.hear({"shop/deny": "no"})
    answer = world.lab.answer(pushed)
    assert (answer["nack"]["client"], answer["went_back"], answer["behind"]) == (ONE, False, [])
    assert world.lab.status()["versions"] == versions(WITH_DENY)
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    assert ztunnel.hear().removed == ("shop/deny",), "the first response since is that to the next push"
    assert world.lab.answer(pushed) == {"acknowledged": {ONE: versions(TWO_PODS)}}


def test_what_was_refused_once_is_refused_again_when_it_is_pushed_again(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    for _ in range(2):
        pushed = world.lab.begin_set(WITH_DENY, [ONE])
        ztunnel.hear({"shop/deny": "no"})
        ztunnel.hear()
        assert world.lab.answer(pushed)["behind"] == []


def test_when_two_nodes_refuse_a_push_neither_nack_is_unexpected(world: World) -> None:
    one, two = world.ztunnel("node-1"), world.ztunnel("node-2")
    both = [ONE, TWO]
    pushed = world.lab.begin_set(TWO_PODS, both)
    one.synchronise()
    two.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set(WITH_DENY, both)
    one.hear({"shop/deny": "no"})
    one.hear()
    two.hear({"shop/deny": "no"})
    two.hear()
    assert world.lab.answer(pushed)["nack"]["client"] == ONE
    assert world.lab.set(TWO_PODS, both) == {"acknowledged": dict.fromkeys(both, versions(TWO_PODS))}
    assert world.lab.status()["unexpected"] == []


def test_a_nack_that_no_push_waits_for_is_an_event_and_in_the_status(world: World) -> None:
    world.lab.set(WITH_DENY, [])
    ztunnel = world.ztunnel()
    ztunnel.start()
    ztunnel.hear()
    ztunnel.hear({"shop/deny": "no"})
    event = world.lab.event("nack")
    assert (event["client"], event["node"], event["detail"]) == (ONE, "node-1", "shop/deny: no")
    assert [nack["detail"] for nack in world.lab.status()["unexpected"]] == ["shop/deny: no"]


# --- streams ---


def test_a_ztunnel_that_comes_back_is_sent_the_difference_and_counts_again(world: World) -> None:
    ztunnel = world.ztunnel()
    pushed = world.lab.begin_set(WITH_DENY, [ONE])
    ztunnel.synchronise()
    world.lab.answer(pushed)
    ztunnel.leave()
    pushed = world.lab.begin_set({ADDRESS_TYPE: workloads("b", "c")}, [ONE])
    first, second = ztunnel.synchronise()
    assert (sorted(first.resources), first.removed) == (["c"], ("a",))
    assert (second.resources, second.removed) == ({}, ("shop/deny",))
    assert "acknowledged" in world.lab.answer(pushed)


def test_a_ztunnel_that_is_killed_is_no_longer_in_the_status(ca: MeshCA, stack: contextlib.ExitStack) -> None:
    world = World(ca, stack, record=True)
    ztunnel = world.ztunnel()
    world.lab.set(TWO_PODS, [])
    ztunnel.synchronise()
    assert [(stream["client"], stream["node"]) for stream in world.lab.status()["streams"]] == [(ONE, "node-1")]
    ztunnel.channel.close()
    while world.lab.event("conversation")["k"] != "xds-stream-closed":
        pass
    assert world.lab.status()["streams"] == []


def test_a_stream_that_breaks_a_rule_is_ended_with_the_rule_and_others_live_on(world: World) -> None:
    good, bad = world.ztunnel("node-1"), world.ztunnel("node-2")
    world.lab.set(TWO_PODS, [])
    good.synchronise()
    bad.synchronise()
    bad.outbox.put(bad.client.answer(Update(ADDRESS_TYPE, "n99", {}, (), {}, {})))
    with pytest.raises(grpc.RpcError) as caught:
        next(bad.responses)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "nonce 'n99' was sent" in caught.value.details()
    pushed = world.lab.begin_set(WITH_DENY, [ONE])
    good.hear()
    assert "acknowledged" in world.lab.answer(pushed)


@pytest.mark.parametrize("token", ["", "other"])
def test_without_the_token_there_is_neither_stream_nor_certificate(world: World, token: str) -> None:
    ztunnel = world.ztunnel(bearer=token)
    ztunnel.start()
    with pytest.raises(grpc.RpcError) as caught:
        next(ztunnel.responses)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        ztunnel.certificate()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert world.lab.status()["issued"] == {}


def test_who_trusts_another_root_does_not_talk_to_it(world: World) -> None:
    ztunnel = world.ztunnel(ca=MeshCA())
    with pytest.raises(grpc.RpcError) as caught:
        ztunnel.certificate()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# --- clients ---


def test_two_ztunnels_of_one_node_are_two_clients_and_a_push_waits_for_either_or_both(world: World) -> None:
    again = "ztunnel@node-1#2"
    assert world.lab.clients({**CLIENTS, "token-1b": again}) == {"ended": []}
    old, new = world.ztunnel("node-1"), world.ztunnel("node-1", bearer="token-1b")
    pushed = world.lab.begin_set(TWO_PODS, [again])
    new.synchronise()
    assert world.lab.answer(pushed) == {"acknowledged": {again: versions(TWO_PODS)}}
    pushed = world.lab.begin_set(TWO_PODS, [ONE, again])
    old.synchronise()
    assert set(world.lab.answer(pushed)["acknowledged"]) == {ONE, again}
    pushed = world.lab.begin_set(WITH_DENY, [ONE])
    old.hear()
    assert set(world.lab.answer(pushed)["acknowledged"]) == {ONE}
    late = world.lab.set(WITH_DENY, [ONE, again], timeout_s=0.05)["timeout"]
    assert [(lag["client"], lag["node"], lag["type_url"]) for lag in late] == [(again, "node-1", AUTHORIZATION_TYPE)]
    new.hear()
    assert [stream["client"] for stream in world.lab.status()["streams"]] == [again, ONE]


def test_a_nack_says_which_of_two_ztunnels_of_one_node_it_is_from(world: World) -> None:
    world.lab.clients({**CLIENTS, "token-1b": "ztunnel@node-1#2"})
    old, new = world.ztunnel("node-1"), world.ztunnel("node-1", bearer="token-1b")
    world.lab.set(TWO_PODS, [])
    old.synchronise()
    new.synchronise()
    pushed = world.lab.begin_set(WITH_DENY, [ONE, "ztunnel@node-1#2"])
    old.hear()
    new.hear({"shop/deny": "no"})
    old.hear()
    new.hear()
    nack = world.lab.answer(pushed)["nack"]
    assert (nack["client"], nack["node"]) == ("ztunnel@node-1#2", "node-1")


def test_a_token_that_is_taken_away_ends_its_stream_and_no_other(world: World) -> None:
    one, two = world.ztunnel("node-1"), world.ztunnel("node-2")
    world.lab.set(TWO_PODS, [])
    one.synchronise()
    two.synchronise()
    assert world.lab.clients({"token-2": TWO}) == {"ended": [ONE]}
    with pytest.raises(grpc.RpcError) as caught:
        next(one.responses)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == "the bearer token is valid no longer"
    with pytest.raises(grpc.RpcError) as caught:
        one.certificate()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [stream["client"] for stream in world.lab.status()["streams"]] == [TWO]
    pushed = world.lab.begin_set(WITH_DENY, [TWO])
    two.hear()
    assert set(world.lab.answer(pushed)["acknowledged"]) == {TWO}


def test_a_stream_of_an_earlier_token_satisfies_no_barrier(world: World) -> None:
    old = world.ztunnel("node-1")
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    old.synchronise()
    world.lab.answer(pushed)
    pushed = world.lab.begin_set(TWO_PODS, [ONE, TWO])
    world.lab.clients({"token-2": TWO, "token-1b": ONE})
    two = world.ztunnel("node-2")
    two.synchronise()
    late = world.lab.set(TWO_PODS, [ONE, TWO], timeout_s=0.05)
    assert world.lab.answer(pushed) == {"superseded": True}
    assert {(lag["client"], lag["node"], lag["version"]) for lag in late["timeout"]} == {(ONE, "", "")}
    pushed = world.lab.begin_set(TWO_PODS, [ONE, TWO])
    world.ztunnel("node-1", bearer="token-1b").synchronise()
    assert set(world.lab.answer(pushed)["acknowledged"]) == {ONE, TWO}


def test_a_token_that_is_another_clients_now_ends_its_stream(world: World) -> None:
    ztunnel = world.ztunnel("node-1")
    world.lab.set(TWO_PODS, [])
    ztunnel.synchronise()
    assert world.lab.clients({"token-1": "ztunnel@node-1#2"}) == {"ended": [ONE]}
    with pytest.raises(grpc.RpcError):
        next(ztunnel.responses)
    ztunnel.synchronise()
    assert [stream["client"] for stream in world.lab.status()["streams"]] == ["ztunnel@node-1#2"]


def test_a_token_that_is_taken_away_while_its_stream_waits_for_the_first_push_gets_nothing(
    ca: MeshCA, stack: contextlib.ExitStack
) -> None:
    world = World(ca, stack)
    gone, stays = world.ztunnel("node-1"), world.ztunnel("node-2")
    gone.start()
    gone.certificate()  # on the same connection: its stream has come in as well
    world.lab.clients({"token-2": TWO})
    pushed = world.lab.begin_set(TWO_PODS, [TWO])
    stays.synchronise()
    assert set(world.lab.answer(pushed)["acknowledged"]) == {TWO}
    with pytest.raises(grpc.RpcError) as caught:
        next(gone.responses)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# --- certificates ---


def test_a_certificate_is_for_whom_the_ztunnel_impersonates_whatever_its_csr_says(world: World) -> None:
    other = create_csr(SpiffeId("cluster.local", "shop", "other"), ec.generate_private_key(ec.SECP256R1()))
    leaf, intermediate, root = map(_certificate, world.ztunnel().certificate(csr=other))
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [str(CLIENT)]
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    event = world.lab.event("issued")
    assert (event["identity"], event["client"]) == (str(CLIENT), ONE)
    assert world.lab.status()["issued"] == {str(CLIENT): 1}


def test_a_dedicated_ztunnel_is_whom_its_csr_names(world: World) -> None:
    leaf = _certificate(world.ztunnel().certificate(metadata=None)[0])
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [str(CLIENT)]


def test_a_certificate_lives_as_long_as_asked_for_from_now_on(world: World) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    leaf = _certificate(world.ztunnel().certificate(validity_duration=600)[0])
    assert timedelta(0) <= leaf.not_valid_after_utc - before - timedelta(seconds=600) <= timedelta(seconds=DEADLINE_S)


REFUSED = {
    "another trust domain": (SpiffeId("other.org", "shop", "client"), {}, grpc.StatusCode.PERMISSION_DENIED),
    "no CSR": (CLIENT, {"csr": "nonsense"}, grpc.StatusCode.INVALID_ARGUMENT),
    "a bad identity": (SpiffeId("cluster.local", "a/b", "c"), {}, grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_certified_is_refused(world: World, case: str) -> None:
    identity, fields, code = REFUSED[case]
    with pytest.raises(grpc.RpcError) as caught:
        world.ztunnel().certificate(identity, **fields)
    assert caught.value.code() is code
    assert world.lab.status()["issued"] == {}


def test_a_ca_can_refuse_everyone_for_a_while(world: World) -> None:
    ztunnel = world.ztunnel()
    world.lab.answer(world.lab.ask("ca", mode="refuse"))
    with pytest.raises(grpc.RpcError) as caught:
        ztunnel.certificate()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    world.lab.answer(world.lab.ask("ca", mode="ok"))
    assert len(ztunnel.certificate()) == 3


def test_a_ca_that_is_rotated_signs_with_the_new_issuer_from_then_on(world: World) -> None:
    ztunnel, new = world.ztunnel(), MeshCA()
    before = ztunnel.certificate()
    assert world.lab.answer(world.lab.ask("ca", ca=new.control_plane("127.0.0.1"))) == {"mode": "ok"}
    after = ztunnel.certificate()
    assert [chain[-1] for chain in (before, after)] == [ca.cert_pem.bytes().decode() for ca in (world.ca, new)]
    leaf, intermediate, root = map(_certificate, after)
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    assert world.lab.status()["issued"] == {str(CLIENT): 2}
    refusing = world.lab.answer(world.lab.ask("ca", mode="refuse", ca=world.ca.control_plane("127.0.0.1")))
    assert refusing == {"mode": "refuse"}
    with pytest.raises(grpc.RpcError):
        ztunnel.certificate()


def test_a_key_that_two_clients_show_is_told_with_their_names(world: World) -> None:
    csr = create_csr(CLIENT, ec.generate_private_key(ec.SECP256R1()))
    world.ztunnel("node-1").certificate(csr=csr)
    world.ztunnel("node-2").certificate(csr=csr)
    (shared,) = world.lab.status()["shared_keys"]
    assert f"that of {CLIENT} at {ONE} and {CLIENT} at {TWO}:" in shared


def _certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


# --- the channel, the record, the program ---


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"op": "sett"}, "no operation 'sett'"),
        ({"op": "set"}, "resources"),
        ({"op": "ca", "mode": "off"}, "'off'"),
        ({"op": "ca", "ca": {"key": "nonsense"}}, "Error"),
        ({"op": "clients"}, "clients"),
        ({"op": "clients", "clients": ["token-1"]}, "Error"),
        ({"op": "clients", "clients": {"": "ztunnel@node-1"}}, "neither may be empty"),
        ({"op": "clients", "clients": {"token-1": 7}}, "neither may be empty"),
    ],
    ids=str,
)
def test_a_bad_request_is_answered_with_its_fault_and_changes_nothing(
    world: World, request_: dict[str, Any], reason: str
) -> None:
    assert reason in world.lab.answer(world.lab.ask(**request_))["error"]
    assert world.lab.status()["clients"] == [ONE, TWO, THREE]
    assert len(world.ztunnel().certificate()) == 3


def test_the_conversation_is_recorded_where_it_is_asked_for(ca: MeshCA, stack: contextlib.ExitStack) -> None:
    world = World(ca, stack, record=True)
    pushed = world.lab.begin_set(TWO_PODS, [ONE])
    ztunnel = world.ztunnel()
    ztunnel.synchronise()
    world.lab.answer(pushed)
    ztunnel.certificate()
    world.lab.event("issued")
    said = [event for event in world.lab.events if event["event"] == "conversation"]
    kinds = [entry["k"] for entry in said]
    assert kinds[0] == "push"
    assert sorted(kinds[1:6]) == ["xds-request", "xds-request", "xds-response", "xds-response", "xds-stream-open"]
    assert kinds[1] == "xds-stream-open"
    assert sorted(kinds[6:]) == ["ca-issued", "ca-request", "push-accepted", "xds-request", "xds-request"]
    first = next(entry for entry in said if entry["k"] == "xds-request")
    assert first["msg"]["node"]["metadata"]["NODE_NAME"] == "node-1"
    asked = next(entry for entry in said if entry["k"] == "ca-request")
    assert asked["msg"]["metadata"] == {"ImpersonatedIdentity": str(CLIENT)}
    answer = next(entry for entry in said if entry["k"] == "xds-response")
    assert [name for name, _ in answer["resources"]] == ["a", "b"]


def test_a_lab_that_does_not_listen_for_a_while_stops_nobody_and_misses_nothing(
    ca: MeshCA, stack: contextlib.ExitStack
) -> None:
    world = World(ca, stack, record=True)
    ztunnel = world.ztunnel()
    rounds = 100  # a socket's buffer holds about 50
    for _ in range(rounds):
        ztunnel.certificate()
    assert world.lab.status()["issued"] == {str(CLIENT): rounds}
    assert [event["event"] for event in world.lab.events].count("issued") == rounds


MAIN = """
import json, sys
from meshlab.controlplane.main import main
main(json.loads(sys.argv[1]), {"control": int(sys.argv[2])})
"""


@pytest.mark.parametrize("how", ["end of file", "SIGTERM"])
def test_the_program_returns_when_its_channel_closes_or_it_is_told_to(ca: MeshCA, how: str) -> None:

    ours, theirs = pair()
    pems = ca.control_plane("127.0.0.1")
    config = {"listen": "127.0.0.1", "port": 0, "clients": CLIENTS, "trust_domain": "cluster.local", "ca": pems}
    argv = [sys.executable, "-c", MAIN, json.dumps(config), str(theirs.fileno())]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True) as program:
        theirs.close()
        lab = Lab(ours)
        ztunnel = Ztunnel(lab.event("listening")["port"], ca.cert_pem.bytes().decode(), "node-1", "token-1")
        lab.set(TWO_PODS, [])
        ztunnel.synchronise()
        if how == "SIGTERM":
            program.send_signal(signal.SIGTERM)
        else:
            ours.close()
        _, said = program.communicate(timeout=DEADLINE_S)
        ztunnel.leave()
        ztunnel.channel.close()
        ours.close()
    assert (program.returncode, said) == (0, "")


def test_when_the_program_ends_none_of_its_streams_is_left_for_its_loop_to_cut(
    ca: MeshCA, stack: contextlib.ExitStack
) -> None:
    ours, theirs = pair()
    plane = ControlPlane(
        Config(
            listen="127.0.0.1",
            port=0,
            clients=CLIENTS,
            trust_domain="cluster.local",
            ca=ca.control_plane("127.0.0.1"),
        ),
        theirs,
    )
    left: list[set[Any]] = []

    async def served() -> None:
        await serve(plane)
        left.append(asyncio.all_tasks() - {asyncio.current_task()})

    thread = threading.Thread(target=lambda: asyncio.run(served()))
    thread.start()
    stack.callback(theirs.close)
    lab = Lab(ours)
    ztunnel = Ztunnel(lab.event("listening")["port"], ca.cert_pem.bytes().decode(), "node-1", "token-1")
    lab.set(TWO_PODS, [])
    ztunnel.synchronise()
    ours.close()
    thread.join(DEADLINE_S)
    ztunnel.leave()
    ztunnel.channel.close()
    assert left == [set()]
