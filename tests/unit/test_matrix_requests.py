"""Which requests a check asks behind a waypoint, and how it judges what came of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import cycle, islice

import pytest
from test_oracle_http import MESH, ONE, TWO, path_is, policy, routed

from meshlab.lab.proving.judging import judge
from meshlab.lab.proving.matrix import PlannedCell, calls_to_count, cells, unasked
from meshlab.lab.proving.questions import questions
from meshlab.model import (
    Abort,
    Action,
    Call,
    Delay,
    HeaderEdits,
    HttpRequest,
    HttpRule,
    Mesh,
    Mirror,
    NamedMatch,
    Node,
    Operation,
    Outcome,
    Peer,
    Redirect,
    RequestMatch,
    Rewrite,
    Rule,
    StringMatch,
    Topology,
)
from meshlab.model.report import Result


def asked(mesh: Mesh) -> list[str]:
    found = questions(mesh, mesh.services[0], mesh.services[0].ports[0]).requests
    return [f"{one.method} {one.path}{''.join(f' {name}:{value}' for name, value in one.headers)}" for one in found]


def test_a_plain_request_comes_first_and_stays_alone_where_nothing_is_to_be_matched() -> None:
    assert asked(MESH) == ["GET /"]


@pytest.mark.parametrize(
    ("match", "requests"),
    [
        (path_is("exact", "/a"), ["GET /", "GET /a", "GET /ax", "GET /a?x=1"]),
        (path_is("segments", "/a"), ["GET /", "GET /a", "GET /a/x", "GET /ax", "GET /a?x=1"]),
        (path_is("prefix", "/a"), ["GET /", "GET /a", "GET /a/x", "GET /x/a", "GET /a?x=1"]),
        (RequestMatch(headers=(NamedMatch("h", StringMatch("exact", "1")),)), ["GET /", "GET / h:1", "GET / h:x1x"]),
        (RequestMatch(headers=(NamedMatch("h", None, inverted=True),)), ["GET /", "GET / h:x"]),
        (RequestMatch(method=StringMatch("exact", "PUT")), ["GET /", "PUT /"]),
        (RequestMatch(query=(NamedMatch("q", StringMatch("exact", "1")),)), ["GET /", "GET /?q=1"]),
        (path_is("regex", "/v.*"), ["GET /", "GET /vx", "GET /x/vx", "GET /vx?x=1"]),
    ],
)
def test_each_match_is_asked_on_both_sides(match: RequestMatch, requests: list[str]) -> None:
    assert asked(routed(HttpRule(matches=(match,), backends=(ONE,)))) == requests


def test_a_header_that_a_rule_edits_is_sent_with_a_value_of_its_own() -> None:
    rule = HttpRule(matches=(path_is("exact", "/a"),), backends=(ONE,), request_headers=HeaderEdits(add=(("h", "1"),)))
    assert asked(routed(rule)) == ["GET /", "GET /a", "GET /ax", "GET /a?x=1", "GET /a h:own"]


def test_of_an_expression_without_an_example_the_check_says_that_nobody_asks() -> None:
    mesh = routed(HttpRule(matches=(path_is("regex", "/[a-c]{3}[0-9]+"),), backends=(ONE,)))
    found = questions(mesh, mesh.services[0], mesh.services[0].ports[0])
    assert found.unasked == ("HTTPRoute shop/r: no request is known that a match of rule 1 matches",)
    assert unasked(mesh) == [*found.unasked]


def test_a_policys_operations_are_asked_on_both_sides_also_round_a_corner() -> None:
    denying = policy(Action.DENY, Rule(operations=(Operation(paths=("/admin*",), methods=("GET",)),)))
    found = asked(replace(MESH, authorization_policies=(denying,)))
    assert found == ["GET /", "GET /adminx", "GET /adminxx", "GET /x/../adminx", "GET /adminx?x=1", "PUT /adminx"]


def cell(mesh: Mesh, path: str = "/", **more: object) -> PlannedCell:
    planned = cells(Topology(name="t", nodes=(Node(name="node-1"),), mesh=mesh))
    return next(
        replace(one, **more)  # type: ignore[arg-type]
        for one in planned
        if one.source.name == "client"
        and one.to == "shop.shop"
        and one.request is not None
        and one.request.path == path
    )


def call(of: PlannedCell, pod: str = "", status: int = 200, **more: object) -> Call:
    """What came of one: an answer of the echo in ``pod``, or a status of the waypoint's own."""
    share = next((share for share in of.due.shares if share.request is not None), None)
    seen = share.request if share and share.request else HttpRequest()
    peer = Peer(
        pod=f"shop/{pod}",
        server_port=8080,
        address=ip_address("10.0.0.4"),
        port=1,
        method=seen.method,
        path=seen.path,
        headers={"host": seen.authority, **dict(seen.headers)},
    )
    given: dict[str, object] = {
        "number": 1,
        "source": "shop/client",
        "to": "shop.shop:80",
        "family": 4,
        "source_ip": ip_address("10.0.0.1"),
        "source_port": 1,
        "destination_ip": of.address,
        "port": 80,
        "canary": b"",
        "outcome": Outcome.OK if pod and status == 200 else Outcome.HTTP_STATUS,
        "started_ns": 0,
        "ended_ns": 1,
        "request": of.request,
        "status": status,
        "peer": peer if pod else None,
        **more,
    }
    return Call(**given)  # type: ignore[arg-type]


def judged(of: PlannedCell, *calls: Call) -> tuple[Result, str]:
    made = judge(of, calls)
    return made.result, made.reason


def test_a_403_that_is_right_holds_and_an_answer_in_its_place_does_not() -> None:
    denied = cell(replace(MESH, authorization_policies=(policy(),)))
    made = judge(denied, [call(denied, status=403)])
    assert (made.result, made.expected, made.seen, made.response) == (Result.HELD, "deny", "deny", "403")
    assert judged(denied, call(denied, "one")) == (Result.FAILED, "shop/one: 403 should have answered")
    assert judged(denied, call(denied, status=404)) == (Result.FAILED, "404: 403 should have answered")


def test_a_request_at_the_wrong_backend_fails() -> None:
    one = cell(routed(HttpRule(backends=(ONE,))))
    assert judged(one, call(one, "one"))[0] is Result.HELD
    assert judged(one, call(one, "two")) == (Result.FAILED, "shop/two: shop/one should have answered")
    assert judged(one, call(one, status=503)) == (Result.FAILED, "503: shop/one should have answered")


def test_a_server_that_saw_the_client_itself_was_reached_round_the_waypoint() -> None:
    one = cell(routed(HttpRule(backends=(ONE,))))
    right = call(one, "one")
    assert right.peer is not None
    result, reason = judged(one, replace(right, peer=replace(right.peer, address=ip_address("10.0.0.1"))))
    assert result is Result.FAILED
    assert "the server saw the client at 10.0.0.1" in reason


def test_what_the_server_saw_is_compared_with_what_the_rule_makes_of_the_request() -> None:
    rule = HttpRule(
        matches=(path_is("segments", "/a"),),
        backends=(ONE,),
        rewrite=Rewrite(prefix="/b", authority="other"),
        request_headers=HeaderEdits(set=(("x", "1"),), remove=("gone",)),
        response_headers=HeaderEdits(set=(("y", "2"),), remove=("z",)),
    )
    one = cell(routed(rule), "/a/x")
    right = call(one, "one", headers={"y": "2"})
    assert right.peer is not None
    assert judged(one, right)[0] is Result.HELD
    headers = right.peer.headers
    for wrong in (
        replace(right, peer=replace(right.peer, path="/a/x")),
        replace(right, peer=replace(right.peer, headers={**headers, "host": "shop.shop"})),
        replace(right, peer=replace(right.peer, headers={**headers, "x": "0"})),
        replace(right, headers={}),
        replace(right, headers={"y": "2", "z": "3"}),
    ):
        assert judged(one, wrong)[0] is Result.FAILED


def test_an_answers_headers_are_edited_by_the_rule_and_then_by_the_backend() -> None:
    last = replace(ONE, response_headers=HeaderEdits(set=(("y", "2"),), add=(("z", "3"),)))
    rule = HttpRule(backends=(last,), response_headers=HeaderEdits(add=(("y", "1"),), remove=("z",)))
    one = cell(routed(rule))
    assert judged(one, call(one, "one", headers={"y": "2", "z": "3"}))[0] is Result.HELD
    for wrong in ({"y": "2, 1", "z": "3"}, {"y": "1", "z": "3"}, {"y": "2"}, {"y": "2", "z": "0, 3"}):
        assert judged(one, call(one, "one", headers=wrong))[0] is Result.FAILED


def test_a_pattern_of_methods_is_asked_with_a_method_that_exists() -> None:
    rule = Rule(operations=(Operation(methods=("P*",)), Operation(not_methods=("*T",)), Operation(methods=("*",))))
    mesh = replace(routed(HttpRule(backends=(ONE,))), authorization_policies=(policy(Action.DENY, rule),))
    service = mesh.services[0]
    methods = {request.method for request in questions(mesh, service, service.ports[0]).requests}
    assert methods <= {"GET", "POST", "PUT", "DELETE"}
    assert {"GET", "POST"} <= methods


def test_the_location_of_a_redirect_is_compared_as_a_place() -> None:
    one = cell(routed(HttpRule(redirect=Redirect(status=302, path="/new"))))
    assert judged(one, call(one, status=302, headers={"location": "http://shop.shop:80/new"}))[0] is Result.HELD
    assert judged(one, call(one, status=302, headers={"location": "http://shop.shop/old"}))[0] is Result.FAILED


def test_an_answer_that_does_not_wait_as_long_as_it_should_fails() -> None:
    one = cell(routed(HttpRule(backends=(ONE,), delay=Delay(seconds=0.5))))
    assert judged(one, call(one, "one", ended_ns=510_000_000))[0] is Result.HELD
    assert judged(one, call(one, "one", ended_ns=490_000_000))[0] is Result.FAILED


def canary(one: int, two: int) -> PlannedCell:
    mesh = routed(HttpRule(backends=(replace(ONE, weight=one), replace(TWO, weight=two))))
    return cell(mesh, counted=True)


def answers(of: PlannedCell, one: int, two: int) -> list[Call]:
    return [call(of, name) for name, number in (("one", one), ("two", two)) for _ in range(number)]


@pytest.mark.parametrize(
    ("one", "two", "result"),
    [(180, 20, Result.HELD), (160, 40, Result.HELD), (20, 180, Result.FAILED), (200, 0, Result.FAILED)],
)
def test_weights_are_told_by_counting(one: int, two: int, result: Result) -> None:
    of = canary(90, 10)
    assert of.calls == 200
    made = judge(of, answers(of, one, two))
    assert made.result is result
    if result is Result.FAILED:
        assert "by chance less often than 1e-06" in made.reason


def test_so_many_calls_are_made_that_the_smallest_share_shows() -> None:
    of = canary(95, 5)
    assert calls_to_count(of.due) == 297
    assert judge(of, answers(of, 297, 0)).result is Result.FAILED


def test_a_fault_that_strikes_now_and_then_has_its_share() -> None:
    of = cell(routed(HttpRule(backends=(ONE,), abort=Abort(status=418, percent=50))), counted=True)
    calls = list(islice(cycle([call(of, "one"), call(of, status=418)]), 200))
    made = judge(of, calls)
    assert (made.result, made.seen, made.response) == (Result.HELD, "mixed", "100 x 418, 100 x shop/one")
    assert judge(of, calls[::2] * 2).result is Result.FAILED


def test_of_one_caller_a_random_request_is_counted_and_of_the_others_it_is_asked_once() -> None:
    mesh = routed(HttpRule(backends=(ONE, TWO)))
    planned = cells(Topology(name="t", nodes=(Node(name="node-1"),), mesh=mesh))
    random = [one for one in planned if not one.due.is_certain]
    assert sorted(one.calls for one in random) == [1, 1, 200]


# --- copies ----------------------------------------------------------------------------------------------------------


def mirrored(percent: float, arriving: float, *, at: str = "shop/two") -> tuple[Result, str]:
    """What a check says where so large a part of the copies of requests to ``one`` reached a pod."""
    of = cell(routed(HttpRule(backends=(ONE,), mirrors=(Mirror(backend=TWO, percent=percent),))), counted=percent < 100)
    calls = [call(of, "one", number=number) for number in range(of.calls)]
    copied = round(arriving * len(calls))
    received = {one.number: {"shop/one": 1, **({at: 1} if one.number < copied else {})} for one in calls}
    found = judge(of, calls, received=received)
    return found.result, found.reason


def test_copies_have_to_reach_their_mirror() -> None:
    assert mirrored(100, 1)[0] is Result.HELD
    assert mirrored(100, 0) == (Result.FAILED, "copies of 0 of 1 requests reached shop/two, which should get 1 of them")
    assert mirrored(100, 1, at="shop/three") == (
        Result.FAILED,
        "a request also reached shop/three, where no copy of it should go",
    )


def test_copies_of_some_requests_are_counted() -> None:
    assert mirrored(20, 0.2)[0] is Result.HELD
    for arriving in (0.0, 0.5, 1.0):
        result, reason = mirrored(20, arriving)
        assert (result, "which should get 0.2 of them" in reason) == (Result.FAILED, True)


def test_a_copy_may_go_to_the_pod_that_answers() -> None:
    of = cell(routed(HttpRule(backends=(ONE,), mirrors=(Mirror(backend=ONE),))))
    for times, result in ((2, Result.HELD), (1, Result.FAILED)):
        assert judge(of, [call(of, "one")], received={1: {"shop/one": times}}).result is result
