"""How a call is made follows from who is behind its target, whoever asks for it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshlab.lab.calls.names import Target, ports_of
from meshlab.lab.calls.requests import ask, is_echo, plan, speaks_first
from meshlab.model import (
    Backend,
    ContainerPort,
    HttpRule,
    Mesh,
    Namespace,
    Pod,
    Program,
    Route,
    Service,
    ServicePort,
    Waypoint,
)
from meshlab.model.addresses import pod4, pod6, service4, service6

GREETER = ContainerPort(number=25, server_first=True)
MAIL = Pod(
    name="mail",
    namespace="shop",
    node="node-1",
    ipv4=pod4(0, 0),
    ipv6=pod6(0, 0),
    labels={"app": "mail"},
    ports=(ContainerPort(number=80), GREETER),
)
REDIS = replace(MAIL, name="redis", ipv4=pod4(0, 1), ipv6=pod6(0, 1), program=Program(argv=("redis",)))
SERVICE = Service(
    name="mail",
    namespace="shop",
    ipv4=service4(0),
    ipv6=service6(0),
    selector={"app": "mail"},
    ports=(ServicePort(port=1000, target_port=7777),),
)


SHOP = Namespace(name="shop", labels={"istio.io/use-waypoint": "gate"})


def _target(to: str) -> Target:
    return Target(to, ip_address("10.0.0.1"), int(to.rpartition(":")[2]), 4)


MESH = Mesh(pods=(MAIL,), services=(SERVICE,))
BOTH = replace(MESH, pods=(MAIL, REDIS))


@pytest.mark.parametrize("to", ["10.0.0.9:15021", "nobody.shop:80", "shop/nobody:80"])
def test_of_an_address_that_nobody_has_no_echo_is_known(to: str) -> None:
    assert not is_echo(MESH, to)
    assert not plan(MESH, "shop/mail", _target(to)).echo


def test_behind_a_service_every_pod_must_be_the_echo() -> None:
    assert is_echo(MESH, "mail.shop:1000")
    assert not is_echo(BOTH, "mail.shop:1000")


@pytest.mark.parametrize(("program", "echo"), [(None, True), (REDIS.program, False)])
def test_what_answers_may_be_where_a_route_leads(program: Program | None, echo: bool) -> None:
    front = replace(SERVICE, name="front", selector={})
    rule = HttpRule(backends=(Backend(service=SERVICE.key, port=1000),))
    route = Route(kind="HTTPRoute", name="r", namespace="shop", services=((front.key, None),), rules=(rule,))
    mesh = Mesh(pods=(replace(MAIL, program=program),), services=(front, SERVICE), routes=(route,), namespaces=(SHOP,))
    assert not is_echo(mesh, "front.shop:1000"), "no waypoint reads the route"
    assert is_echo(replace(mesh, waypoints=(Waypoint(name="gate", namespace="shop"),)), "front.shop:1000") is echo


def test_only_the_echo_greets_where_its_port_says_so() -> None:
    assert speaks_first(MESH, "shop/mail:25")
    assert not speaks_first(BOTH, "shop/redis:25")
    assert (ask(MESH, "shop/x", _target("shop/mail:25")).kind, ask(BOTH, "shop/x", _target("shop/redis:25")).kind) == (
        "tcp",
        "http",
    )
    assert ask(MESH, "shop/x", _target("shop/mail:25")).mode == "server-first"


def test_a_user_gets_the_protocol_that_was_asked_for() -> None:
    assert plan(MESH, "shop/x", _target("shop/mail:25"), "http").kind == "http"
    assert plan(MESH, "shop/x", _target("shop/mail:25"), "tcp", half_close=True).mode == "half-close"


def test_a_verdict_is_asked_of_the_pods_behind_the_target_where_they_say_who_they_are() -> None:
    assert ask(MESH, "shop/x", _target("mail.shop:1000")).expect_peer == {"shop/mail"}
    assert ask(BOTH, "shop/x", _target("mail.shop:1000")).expect_peer == frozenset()
    assert plan(MESH, "shop/x", _target("mail.shop:1000")).expect_peer == frozenset()


def test_the_ports_of_a_pod_are_those_that_it_declares_and_those_that_services_lead_to() -> None:
    assert ports_of(MESH, MAIL) == [25, 80, 7777]
    assert ports_of(replace(MESH, services=()), MAIL) == [25, 80]
