"""Which requests a campaign asks under drawn routes, and how what failed under them is made small."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from meshlab.fuzz.choose import MOST, candidates, choose
from meshlab.fuzz.example import Example, Stage, draw_routed
from meshlab.fuzz.reduce import called, fewer_pods
from meshlab.fuzz.reduce_routes import less_routes
from meshlab.fuzz.requests import oddities, shapes
from meshlab.fuzz.sign import seen_sign
from meshlab.fuzz.stories import stories
from meshlab.lab.sources import read
from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Backend,
    CallShape,
    CallStep,
    HttpRequest,
    HttpRule,
    Mesh,
    Operation,
    Route,
    Rule,
    Verdict,
)
from meshlab.play.faults import Wrong
from meshlab.play.moments import expecting
from meshlab.strategies.choices import Choices
from meshlab.strategies.routes import draw_routing
from meshlab.topology import dump, load

BASE = read("requests").topology
POSSIBLE = candidates(BASE.mesh)
ONE = next(service for service in BASE.mesh.services if service.name == "one")


def choices(seed: int) -> Choices:
    return Choices(Random(seed).randbytes(2000))  # noqa: S311


def example(seed: int) -> Example:
    return draw_routed(choices(seed), BASE.mesh, POSSIBLE, MOST)


def routed(*backends: Backend) -> Mesh:
    rule = HttpRule(backends=backends)
    route = Route(kind="VirtualService", name="r", namespace="shop", services=((ONE.key, None),), rules=(rule,))
    return replace(BASE.mesh, routes=(route,))


def test_an_odd_request_is_another_one_and_can_be_written() -> None:
    plain = [HttpRequest(path="/a/b", authority="one.shop"), HttpRequest(path="/?q=1", authority="one.shop:81")]
    odd = [request for seed in range(40) for request in oddities(choices(seed), BASE.mesh, plain)]
    assert len(set(odd) - set(plain)) > 100
    steps = [
        CallStep(source="shop/client", to="one.shop:80", expect=Verdict.ALLOW, shape=shape)
        for seed in range(10)
        for shape in shapes(BASE.mesh, ONE, 80, partial(oddities, choices(seed), BASE.mesh))
    ]
    topology = replace(BASE, steps=tuple(steps))
    assert load(dump(topology), "odd").steps == topology.steps
    twice = [dict(step.shape.headers) for step in steps if len({n.lower() for n, _ in step.shape.headers}) == 2]
    assert any(len(headers) == 3 for headers in twice), "a header that is there twice, in two cases"


def test_calls_of_an_example_are_on_both_sides_of_its_routes_and_policies() -> None:
    stages = [example(seed).stages[0] for seed in range(12)]
    assert all(len(stage.calls) <= MOST + 24 for stage in stages)
    told = [{one.decision.rule for one in stage.calls if one.call.is_read} for stage in stages]
    assert sum(len(rules) >= 3 for rules in told) >= 8
    allowed = {one.decision.allowed for stage in stages for one in stage.calls if one.call.is_read}
    assert allowed == {True, False}


def test_a_request_whose_outcomes_share_evenly_is_asked_until_both_are_seen() -> None:
    mesh = routed(Backend(service="one.shop", port=80, weight=50), Backend(service="two.shop", port=80, weight=50))
    chosen = choose(mesh, POSSIBLE)
    times = max(chosen.count(one) for one in chosen)
    assert times == 22, "0.5^22 is 2.4e-7"
    one = next(one for one in chosen if chosen.count(one) == times)
    wrong = Wrong("verdict", "text", one.call.source.key, one.call.to, one.call.family, shape=one.shape)
    (step,) = next(stories(BASE, Example((Stage(mesh, tuple(chosen)),)), [wrong], None)).steps
    assert isinstance(step, CallStep)
    assert (step.times, step.shape) == (times, one.shape)


def test_a_call_expects_what_the_policies_say_of_its_request() -> None:
    target = {"group": "", "kind": "Service", "name": "one"}
    rule = Rule(operations=(Operation(paths=("/admin*",)),))
    policy = AuthorizationPolicy(name="p", namespace="shop", action=Action.DENY, rules=(rule,), target_refs=(target,))
    plain = CallStep(source="shop/client", to="one.shop:80", expect=Verdict.ALLOW)
    admin = replace(plain, shape=CallShape(path="/./admin"))
    topology = replace(BASE, mesh=replace(BASE.mesh, authorization_policies=(policy,)), steps=(plain, admin))
    told = expecting(topology)
    assert told is not None
    assert [step.expect for step in told.steps if isinstance(step, CallStep)] == [Verdict.ALLOW, Verdict.DENY]


def test_smaller_routes_can_be_written_and_end_in_none() -> None:
    for seed in range(2):
        mesh = draw_routing(choices(seed), BASE.mesh)
        seen = 0
        while smaller := [*less_routes(mesh)]:
            mesh, seen = smaller[-1], seen + 1
            if seen % 4 == 0:  # to read a file takes some milliseconds
                again = load(dump(replace(BASE, mesh=mesh, expect=())), "less").mesh
                assert again.routes == mesh.routes
            assert seen < 60, "each is smaller than the one before"
        assert (mesh.routes, mesh.destination_rules) == ((), ())


def test_with_few_pods_the_waypoint_stays_and_the_backends_of_the_route() -> None:
    mesh = routed(Backend(service="two.shop", port=80))
    step = CallStep(source="shop/client", to="one.shop:80", expect=Verdict.ALLOW, family=4)
    topology = replace(BASE, mesh=mesh, steps=(step,), expect=())
    assert called(topology) == {"shop/client", "shop/gate", "shop/one-v1", "shop/one-v2", "shop/two"}
    short = replace(topology, steps=(replace(step, to="two.shop:80"),))
    fewest = next(fewer_pods(short))
    assert [pod.key for pod in fewest.mesh.pods] == ["shop/client", "shop/two", "shop/gate"]
    assert load(dump(fewest), "few").mesh == fewest.mesh


def test_which_pod_of_several_answered_does_not_make_another_failure() -> None:
    first, second, status = (
        seen_sign(Wrong("verdict", "text", seen=seen, expect=Verdict.ALLOW))
        for seen in (
            "shop/one-v1: shop/two should have answered",
            "shop/one-v2: shop/two should",
            "503: shop/two should",
        )
    )
    assert first == second != status
