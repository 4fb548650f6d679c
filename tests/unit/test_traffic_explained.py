"""Whether the meshes of its time explain how a call ended, and what the calls of traffic come to together."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from meshlab.errors import UsageError
from meshlab.lab.calls.explained import Explanation, explain
from meshlab.lab.calls.pairs import Pair, plan, read_pairs
from meshlab.lab.calls.tally import KEPT, Broken, Tally, in_one_line
from meshlab.lab.sources import read
from meshlab.model import Call, Mesh, Outcome, Peer
from meshlab.model.mesh import DATAPLANE_MODE
from meshlab.model.report import Result

MESH = read("quickstart").topology.mesh
SERVER, CLIENT = MESH.pod("shop/server"), MESH.pod("shop/client")
OPEN = replace(MESH, authorization_policies=(), peer_authentications=())
"""Nobody is denied anything."""
WITHOUT_SERVER = replace(MESH, pods=tuple(pod for pod in MESH.pods if pod.key != "shop/server"))
WITHOUT_CLIENT = replace(MESH, pods=tuple(pod for pod in MESH.pods if pod.key != "shop/client"))
MOVED = replace(
    MESH,
    pods=tuple(replace(pod, ipv4=IPv4Address("10.9.9.9")) if pod.key == "shop/server" else pod for pod in MESH.pods),
)
AGAIN = replace(MESH, pods=tuple(replace(pod, incarnation=1) if pod.key == "shop/server" else pod for pod in MESH.pods))
BY = {"shop/server": Peer(pod="shop/server", server_port=8080, address=CLIENT.ipv4, port=40000)}


def call(to: str = "shop/server:8080", outcome: Outcome = Outcome.OK, **changes: Any) -> Call:
    service = next((one for one in MESH.services if one.key == to.partition(":")[0]), None)
    made = Call(
        number=7,
        source="shop/client",
        to=to,
        family=4,
        source_ip=CLIENT.ipv4,
        source_port=40000,
        destination_ip=service.address(4) if service else SERVER.ipv4,  # type: ignore[arg-type]
        port=int(to.rpartition(":")[2]),
        canary=b"mlc-7-",
        outcome=outcome,
        started_ns=1,
        ended_ns=2,
        peer=BY["shop/server"] if outcome is Outcome.OK else None,
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("made", "meshes"),
    [
        pytest.param(call(), [MESH], id="allowed and answered"),
        pytest.param(call("server.shop:80"), [MESH], id="allowed at a Service and answered"),
        pytest.param(call("shop/server:9090", Outcome.RESET), [MESH], id="denied and reset"),
        pytest.param(call("shop/server:9090", Outcome.CLOSED), [MESH], id="denied and closed"),
        pytest.param(call("shop/server:9090"), [MESH, OPEN], id="allowed by the next mesh and answered"),
        pytest.param(call("shop/server:9090", Outcome.RESET), [OPEN, MESH], id="denied by the next mesh and reset"),
        pytest.param(call("shop/server:9090", Outcome.CLOSED_LATE), [OPEN, MESH], id="cut in the middle of its answer"),
        pytest.param(call("shop/server:8080", Outcome.TIMEOUT), [MESH, WITHOUT_SERVER], id="its destination went"),
        pytest.param(call("shop/server:8080", Outcome.UNREACHABLE), [WITHOUT_CLIENT, MESH], id="its source came"),
        pytest.param(call("shop/server:8080", Outcome.RESET), [MESH, AGAIN], id="its destination was replaced"),
        pytest.param(call("shop/server:8080", Outcome.TIMEOUT), [MESH, MOVED], id="another pod of its name came"),
    ],
)
def test_a_call_is_right_if_one_mesh_of_its_time_explains_it(made: Call, meshes: list[Mesh]) -> None:
    assert explain(made, meshes) == Explanation()


@pytest.mark.parametrize(
    ("made", "meshes", "why"),
    [
        pytest.param(call(outcome=Outcome.RESET), [MESH], "say allow (no DENY policy", id="allowed and reset"),
        pytest.param(call(outcome=Outcome.TIMEOUT), [MESH], "timeout>, and the policies", id="allowed and silent"),
        pytest.param(call("shop/server:9090"), [MESH], "say deny (AuthorizationPolicy", id="denied and answered"),
        pytest.param(call("shop/server:9090", Outcome.TIMEOUT), [MESH], "say deny", id="denied and silent"),
        pytest.param(call(outcome=Outcome.CLOSED_LATE), [MESH, MESH], "closed-late", id="cut, and nothing changed"),
        pytest.param(call(), [WITHOUT_SERVER], "is not at", id="answered by a pod that is not there"),
        pytest.param(call(outcome=Outcome.CORRUPTED), [MESH, WITHOUT_SERVER], "corrupted", id="other bytes came back"),
        pytest.param(call(), [], "say nothing", id="no mesh at all"),
    ],
)
def test_what_no_mesh_explains_is_a_failure_with_its_rule(made: Call, meshes: list[Mesh], why: str) -> None:
    explanation = explain(made, meshes)
    assert why in explanation.failure
    assert not explanation.wrong_identity


def test_an_answer_of_another_pod_is_a_wrong_identity() -> None:
    other = replace(BY["shop/server"], pod="shop/monitor")
    explanation = explain(call("server.shop:80", peer=other), [MESH])
    assert explanation.wrong_identity
    assert explanation.failure.endswith("answered by shop/monitor, not by shop/server")


HEIR = replace(SERVER, name="heir", service_account="heir")
SUCCEEDED = replace(OPEN, pods=tuple(HEIR if pod.key == "shop/server" else pod for pod in MESH.pods))
BY_HEIR = Peer(pod="shop/heir", server_port=8080, address=CLIENT.ipv4, port=40000)


def test_the_pod_that_has_the_address_of_one_that_went_may_answer_its_calls() -> None:
    assert explain(call(peer=BY_HEIR), [WITHOUT_SERVER, SUCCEEDED]) == Explanation()
    assert explain(call(peer=BY_HEIR), [OPEN, WITHOUT_SERVER, SUCCEEDED]) == Explanation()
    assert explain(call(outcome=Outcome.RESET), [WITHOUT_SERVER, SUCCEEDED]) == Explanation()


def test_the_pod_that_has_the_address_of_one_that_went_may_not_answer_whom_it_denies() -> None:
    denied = replace(SUCCEEDED, authorization_policies=MESH.authorization_policies)
    on_9090 = call("shop/server:9090", peer=BY_HEIR)
    assert "shop/server:9090 is not at" in explain(on_9090, [WITHOUT_SERVER, denied]).failure


def test_a_refusal_where_nobody_listens_is_right() -> None:
    refused = call(outcome=Outcome.CONNECT_REFUSED)
    assert explain(refused, [MESH]).failure
    assert explain(refused, [MESH], frozenset({("shop/server", 8080, 4)})) == Explanation()
    assert explain(refused, [MESH], frozenset({("shop/server", 8080, 6)})).failure


def test_the_tally_keeps_a_bounded_number_and_counts_all() -> None:
    tally = Tally()
    for _ in range(KEPT + 5):
        tally.took(call(outcome=Outcome.RESET), Explanation("why", wrong_identity=True))
        tally.broke(Broken("shop/client", "shop/server:8080", 1, "peer"))
    assert (tally.calls_made, tally.failed_new, tally.wrong_identity, tally.broken_open) == (KEPT + 5,) * 4
    assert (len(tally.failures), len(tally.broken)) == (KEPT, KEPT)
    assert tally.prove_new().result is Result.FAILED
    assert tally.prove_open().reason == (
        "1005 broke; the first: the connection of shop/client to shop/server:8080 was ended by 'peer'"
    )
    assert in_one_line(tally, (3, 4)) == (
        "<traffic: 1005 calls, failed_new 1005, 0 connections, broken_open 1005, in_plaintext 3, kept_plaintext 4,"
        " wrong_identity 1005>"
    )


def test_a_proof_needs_calls_and_an_answer() -> None:
    tally = Tally()
    assert (tally.prove_new().id, tally.prove_new().result) == ("failed-new", Result.CANNOT_TELL)
    tally.took(call("shop/server:9090", Outcome.RESET), Explanation())
    assert tally.prove_new().result is Result.CANNOT_TELL
    tally.took(call(), Explanation())
    proof = tally.prove_new()
    assert (proof.result, proof.control) == (Result.HELD, "1 calls were answered")
    assert proof.reason == "1 calls were refused, as policies say"


def test_a_proof_of_open_connections_needs_one_that_has_answered() -> None:
    tally = Tally(not_opened=3)
    assert (tally.prove_open().id, tally.prove_open().result) == ("broken-open", Result.CANNOT_TELL)
    assert "3 attempts were refused" in tally.prove_open().reason
    tally.opened = 2
    assert tally.prove_open().result is Result.CANNOT_TELL
    tally.asks_answered = 9
    assert (tally.prove_open().result, tally.prove_open().control) == (Result.HELD, "2 connections answered 9 times")


def test_a_pair_is_planned_in_each_mesh_anew() -> None:
    http, tcp = read_pairs([("shop/client", "http://server/x"), ("shop/client", "tcp://shop/server:9090")])
    planned = plan(MESH, http)
    assert planned is not None
    assert (planned.call.kind, planned.call.to, planned.call.path) == ("http", "server.shop:80", "/x")
    assert (planned.line.kind, planned.line.to) == ("tcp", "server.shop:80")
    assert plan(MOVED, tcp).call.address == IPv4Address("10.9.9.9")  # type: ignore[union-attr]
    assert plan(WITHOUT_SERVER, tcp) is None
    assert plan(WITHOUT_CLIENT, http) is None
    assert plan(MESH, Pair("shop/client", "tcp://192.0.2.1:80")) is None


def test_a_pod_outside_the_mesh_has_nobody_who_carries_a_services_address() -> None:
    (at_service, at_pod) = (Pair("shop/batch", "http://server/"), Pair("shop/batch", "tcp://shop/server:8080"))
    assert plan(MESH, at_service) is None
    assert plan(MESH, at_pod) is not None
    released = replace(
        MESH,
        pods=tuple(
            replace(pod, labels={DATAPLANE_MODE: "none"}) if pod.key == "shop/client" else pod for pod in MESH.pods
        ),
    )
    assert explain(call("server.shop:80", Outcome.UNREACHABLE), [MESH, released]) == Explanation()
    assert "not in the mesh" in explain(call("server.shop:80"), [released]).failure


def test_a_pair_of_another_form_is_refused() -> None:
    with pytest.raises(UsageError, match="is no pair"):
        read_pairs([("shop/client", "http://server", "more")])  # type: ignore[list-item]
