"""Clients of delta xDS, right and broken on purpose, whose control plane goes and comes: what they hold afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.xds import DeltaClient, Node
from meshlab.protocols.xds_server import DeltaServer, Snapshot
from meshlab.testing.mutants.sequence import _Hasty, _OnlyAdding
from meshlab.testing.variants import _Resyncing

_NAMES = {ADDRESS_TYPE: ("a", "b"), AUTHORIZATION_TYPE: ("shop/deny", "shop/log")}


def _snapshot(names: Mapping[str, tuple[str, ...]]) -> Snapshot:
    def body(type_url: str, name: str) -> bytes:
        fields = {"workload": {"uid": name}} if type_url == ADDRESS_TYPE else {"name": name}
        return bytes(message(type_url.rpartition("/")[2])(**fields).SerializeToString())

    return Snapshot.of({type_url: {name: body(type_url, name) for name in some} for type_url, some in names.items()})


def _talk(client: DeltaClient, *snapshots: Snapshot, held: set[str], sent: list[str]) -> None:
    """A stream that nobody answers, and one to a control plane that serves these, one after the other.

    Args:
        held: what the client's proxy has; changed here.
        sent: the names of the resources that were sent are added.
    """
    server = DeltaServer()
    server.publish(snapshots[0])
    stream = server.open("ztunnel@node-1")
    client.start()
    responses = [response for request in client.start() for response in stream.receive(request)]
    for following in (*snapshots[1:], None):
        for response in responses:
            sent += [resource.name for resource in response.resources]
            update = client.receive(response)
            held.difference_update(update.removed)
            held.update(update.resources)
            stream.receive(client.answer(update))
        assert server.lagging(["ztunnel@node-1"]) == []
        if following is not None:
            [(_, responses)] = server.publish(following)


ALL = {"a", "b", "shop/deny", "shop/log"}
LESS = _snapshot({ADDRESS_TYPE: ("a",), AUTHORIZATION_TYPE: ("shop/log",)})
WHOLE = _snapshot(_NAMES)
HOLDS = {
    DeltaClient: [ALL, ALL, {"a", "shop/log"}, {"a", "shop/log"}],
    _Resyncing: [ALL, ALL, {"a", "shop/log"}, {"a", "shop/log"}],
    _OnlyAdding: [ALL, ALL, ALL, ALL],
    _Hasty: [ALL, {"a", "b"}, {"a"}, {"a"}],
}
"""Client -> what it has: of a first control plane; of one that comes back; that changes then; or that has changed."""


@pytest.mark.parametrize("kind", HOLDS, ids=lambda kind: kind.__name__)
def test_what_a_client_holds_when_the_control_plane_has_come_back(kind: type[DeltaClient]) -> None:
    seen = []
    for streams in ([[WHOLE]], [[WHOLE], [WHOLE]], [[WHOLE], [WHOLE, LESS]], [[WHOLE], [LESS]]):
        client, held = kind(Node(name="node-1")), set[str]()
        for snapshots in streams:
            _talk(client, *snapshots, held=held, sent=[])
        seen.append(held)
    assert seen == HOLDS[kind]


def test_a_client_that_resyncs_is_sent_everything_again_and_the_reference_nothing() -> None:
    sent: dict[type[DeltaClient], list[str]] = {DeltaClient: [], _Resyncing: []}
    for kind, names in sent.items():
        client = kind(Node(name="node-1"))
        _talk(client, WHOLE, held=set(), sent=[])
        _talk(client, WHOLE, held=set(), sent=names)
    assert {kind: sorted(names) for kind, names in sent.items()} == {DeltaClient: [], _Resyncing: sorted(ALL)}
