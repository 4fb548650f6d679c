"""Where a waypoint sends connections whose bytes it does not read, and how a check counts that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_matrix_requests import call
from test_oracle_http import MESH, ONE, TWO, pod, policy

from meshlab.lab.calls.names import behind
from meshlab.lab.proving.judging import judge
from meshlab.lab.proving.matrix import PlannedCell, cells
from meshlab.model import Action, Backend, HttpRule, Mesh, Node, Outcome, Route, Rule, TcpRule, Topology
from meshlab.model.report import Result
from meshlab.oracle import expected

TO_BOTH = TcpRule(backends=(replace(ONE, weight=3), TWO))


def mesh(*rules: TcpRule, kind: Any = "VirtualService", protocol: str = "tcp", **more: Any) -> Mesh:
    """One whose ports are not read, with these rules for ``shop.shop``."""
    services = tuple(
        replace(each, ports=tuple(replace(port, protocol=protocol) for port in each.ports)) for each in MESH.services
    )
    route = Route(kind=kind, name="r", namespace="shop", services=(("shop.shop", None),), tcp=rules)
    return replace(MESH, services=services, **{"routes": (route,) if rules else (), **more})


def comes_to(of: Mesh) -> dict[str, float]:
    """Pods -> chance; nothing where nobody routes."""
    due = expected(of, of.pods[0], of.services[0], 80, 4)
    assert not due.is_read
    return {
        " ".join(way.path.server.pod.removeprefix("shop/") for way in share.ways): float(share.chance)
        for share in due.shares
    }


def test_a_connection_goes_to_one_of_the_backends_by_their_weights() -> None:
    assert comes_to(mesh(TO_BOTH)) == comes_to(mesh(TO_BOTH, kind="TCPRoute")) == {"one": 0.75, "two": 0.25}


def test_a_subset_is_part_of_a_service() -> None:
    backends = tuple(Backend(service="shop.shop", port=0, subset=name) for name in ("v1", "v2"))
    assert comes_to(mesh(TcpRule(backends=backends))) == {"one": 0.5, "two": 0.5}


@pytest.mark.parametrize(
    ("rules", "shares"),
    [
        ((), {}),
        ((TcpRule(ports=(81,), backends=(ONE,)),), {}),
        ((TcpRule(ports=(81, 80), backends=(ONE,)), TO_BOTH), {"one": 1.0}),
        ((TcpRule(backends=(TWO,)), TcpRule(ports=(80,), backends=(ONE,))), {"two": 1.0}),
    ],
    ids=["no rule", "none for the port", "the first for the port", "the first for every port"],
)
def test_the_first_rule_for_the_port_decides(rules: tuple[TcpRule, ...], shares: dict[str, float]) -> None:
    assert comes_to(mesh(*rules)) == shares


def test_of_several_routes_the_oldest_decides() -> None:
    made = mesh(TO_BOTH)
    younger = replace(made.routes[0], name="younger", tcp=(TcpRule(backends=(TWO,)),))
    assert comes_to(replace(made, routes=(*made.routes, younger))) == {"one": 0.75, "two": 0.25}


def test_rules_for_tcp_say_nothing_of_requests() -> None:
    read = mesh(TO_BOTH, protocol="http")
    (share,) = expected(read, read.pods[0], read.services[0], 80, 4).shares
    assert [way.path.server.pod for way in share.ways] == ["shop/one", "shop/two"]


@pytest.mark.parametrize("missing", [Backend(service="gone.shop", port=80), replace(ONE, subset="v9")])
def test_a_share_that_leads_nowhere_is_refused(missing: Backend) -> None:
    of = mesh(TcpRule(backends=(ONE, missing)))
    due = expected(of, of.pods[0], of.services[0], 80, 4)
    assert due.passage == "mixed"
    assert due.answering == {"shop/one"}
    assert [str(path) for path in due.shares[1].ways[0].kept_from] == [
        "shop/client -> shop/gate -> shop/one",
        "shop/client -> shop/gate -> shop/two",
    ]
    nobody = mesh(TcpRule(backends=(replace(ONE, weight=0),)), kind="TCPRoute")
    assert expected(nobody, nobody.pods[0], nobody.services[0], 80, 4).passage == "deny"


def test_who_is_denied_is_not_routed() -> None:
    denied = mesh(TO_BOTH, authorization_policies=(policy(Action.DENY, Rule()),))
    assert (comes_to(denied), expected(denied, denied.pods[0], denied.services[0], 80, 4).passage) == ({}, "deny")


def test_behind_a_port_are_the_pods_that_it_is_routed_to() -> None:
    elsewhere = replace(MESH.services[1], selector={"app": "other"}, name="other", ports=mesh().services[1].ports)
    of = mesh(
        TcpRule(backends=(Backend(service="other.shop", port=80),)),
        pods=(*MESH.pods, pod(5, "x", labels={"app": "other"})),
    )
    of = replace(of, services=(*of.services, elsewhere))
    assert [pod.key for pod, _ in behind(of, "shop.shop:80")] == ["shop/x"]


# --- what a check counts ---------------------------------------------------------------------------------------------


def counted(of: Mesh) -> PlannedCell:
    planned = cells(Topology(name="t", nodes=(Node(name="node-1"),), mesh=of))
    return next(one for one in planned if one.source.name == "client" and one.to == "shop.shop")


def answers(of: PlannedCell, **numbers: int) -> list[Any]:
    return [call(of, name, request=None) for name, number in numbers.items() for _ in range(number)]


def test_connections_are_counted_as_requests_are() -> None:
    cell = counted(mesh(TO_BOTH))
    assert (cell.counted, cell.calls, cell.oracle) == (True, 200, "allow")
    assert judge(cell, answers(cell, one=150, two=50)).result is Result.HELD
    for numbers in ({"one": 50, "two": 150}, {"one": 200}):
        found = judge(cell, answers(cell, **numbers))
        assert (found.result, "should get" in found.reason) == (Result.FAILED, True)


def test_a_share_that_is_refused_is_counted() -> None:
    cell = counted(mesh(TcpRule(backends=(ONE, Backend(service="gone.shop", port=80)))))
    refused = [call(cell, status=0, request=None, outcome=Outcome.RESET)] * 100
    assert judge(cell, [*answers(cell, one=100), *refused]).result is Result.HELD
    few = judge(cell, [*answers(cell, one=180), *refused[:20]])
    assert (few.result, "nobody" in few.reason or "shop/one" in few.reason) == (Result.FAILED, True)
    assert judge(cell, [*answers(cell, one=100, two=1), *refused]).result is Result.FAILED


def test_an_http_rule_beside_rules_for_tcp_stays_for_requests() -> None:
    both = mesh(TO_BOTH)
    route = replace(both.routes[0], rules=(HttpRule(backends=(TWO,)),))
    assert comes_to(replace(both, routes=(route,))) == {"one": 0.75, "two": 0.25}
