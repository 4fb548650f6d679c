"""Delta xDS as an Envoy speaks it: it asks for routes by name once it has their listener, and clusters go last."""

from __future__ import annotations

from typing import Any

from meshlab.model import InstanceId
from meshlab.protocols.messages import message
from meshlab.protocols.xds import Request, Response
from meshlab.protocols.xds_server import DeltaServer, Snapshot, Stream, Views
from meshlab.translate.for_envoy import CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE

GATE = "waypoint@shop/gate"


def views(clusters: str, routes: str = "", listeners: str = "l") -> Views:
    """What the waypoint sees; each letter is a resource, of which the letter is name and body."""
    wanted = {CLUSTER_TYPE: clusters, ROUTE_TYPE: routes, LISTENER_TYPE: listeners}
    bodies = {type_url: {name: name.encode() for name in names} for type_url, names in wanted.items()}
    return Views(Snapshot(), {InstanceId.parse(GATE): Snapshot.of(bodies)})


def request(type_url: str, **fields: Any) -> Request:
    return message("envoy.service.discovery.v3.DeltaDiscoveryRequest")(type_url=type_url, **fields)


def subscribe(stream: Stream, type_url: str, *names: str) -> list[Response]:
    node: Any = {"id": "envoy"}
    return stream.receive(request(type_url, node=node, resource_names_subscribe=names))


def acknowledge(stream: Stream, responses: list[Response]) -> None:
    for response in responses:
        assert stream.receive(request(response.type_url, response_nonce=response.nonce)) == []


def started(served: Views, *routes: str) -> tuple[DeltaServer, Stream]:
    server = DeltaServer()
    server.publish(served)
    stream = server.open(GATE)
    for type_url in (CLUSTER_TYPE, LISTENER_TYPE):
        acknowledge(stream, subscribe(stream, type_url, "*"))
    for name in routes:
        acknowledge(stream, subscribe(stream, ROUTE_TYPE, name))
    return server, stream


def test_a_push_counts_when_all_routes_are_acknowledged_also_those_that_are_not_asked_for_yet() -> None:
    server, stream = started(views("c", "a"), "a")
    assert server.lagging([GATE]) == []
    ((_, responses),) = server.publish(views("c", "ab", "lm"))
    acknowledge(stream, responses)
    assert [lag.type_url for lag in server.lagging([GATE])] == [ROUTE_TYPE]
    asked = subscribe(stream, ROUTE_TYPE, "b")
    assert [lag.type_url for lag in server.lagging([GATE])] == [ROUTE_TYPE]
    acknowledge(stream, asked)
    assert server.lagging([GATE]) == []


def test_a_cluster_comes_before_the_routes_that_lead_to_it_and_leaves_after_they_have_changed() -> None:
    server, stream = started(views("c", "a"), "a")
    ((_, responses),) = server.publish(views("d", "", "m"))
    seen = [(each.type_url, [one.name for one in each.resources], list(each.removed_resources)) for each in responses]
    assert seen == [
        (CLUSTER_TYPE, ["d"], []),
        (ROUTE_TYPE, [], ["a"]),
        (LISTENER_TYPE, ["m"], ["l"]),
        (CLUSTER_TYPE, [], ["c"]),
    ]
    acknowledge(stream, responses[:-1])
    assert [lag.type_url for lag in server.lagging([GATE])] == [CLUSTER_TYPE]
    acknowledge(stream, responses[-1:])
    assert server.lagging([GATE]) == []
