"""Which calls carry an identity, and what a Service comes to over its endpoints."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    ContainerPort,
    Mesh,
    Namespace,
    Operation,
    Pod,
    Rule,
    Service,
    ServicePort,
    Source,
    SpiffeId,
)
from meshlab.oracle import connection, expected


def pod(place: int, key: str, **labels: str) -> Pod:
    namespace, name = key.split("/")
    return Pod(
        name=name,
        namespace=namespace,
        node="node-1",
        ipv4=IPv4Address(f"10.0.0.{place}"),
        ipv6=IPv6Address(f"fd00::{place}"),
        labels=labels,
        service_account=name,
        ports=(ContainerPort(number=8080 + place, name="http"),),
    )


CLIENT, OUTSIDER = pod(1, "shop/client"), pod(2, "plain/outsider")
ONE, TWO = pod(3, "shop/server-0", app="server", version="one"), pod(4, "shop/server-1", app="server", version="two")
SERVICE = Service(
    name="server",
    namespace="shop",
    ipv4=IPv4Address("172.16.0.1"),
    ipv6=None,
    selector={"app": "server"},
    ports=(ServicePort(port=80, target_port="http"), ServicePort(port=81, target_port="nothing")),
)
DENY_ONE = AuthorizationPolicy(
    name="deny-one",
    namespace="shop",
    selector={"version": "one"},
    action=Action.DENY,
    rules=(Rule(sources=(Source(service_accounts=("client",)),)),),
)
DENY_8083 = replace(DENY_ONE, name="deny-8083", selector=None, rules=(Rule(operations=(Operation(ports=("8083",)),)),))


def mesh(*policies: AuthorizationPolicy) -> Mesh:
    return Mesh(
        namespaces=(
            Namespace(name="shop", labels={"istio.io/dataplane-mode": "ambient"}),
            Namespace(name="plain"),
        ),
        pods=(CLIENT, OUTSIDER, ONE, TWO),
        services=(SERVICE,),
        authorization_policies=policies,
        trust_domain="td",
    )


def test_between_two_enrolled_pods_the_proxy_sees_the_callers_identity() -> None:
    seen = connection(mesh(), CLIENT, ONE, 8083, 6)
    assert (seen.source, seen.source_ip) == (SpiffeId("td", "shop", "client"), CLIENT.ipv6)
    assert (seen.destination, seen.destination_ip, seen.port) == ("shop/server-0", ONE.ipv6, 8083)


def test_with_one_end_out_of_the_mesh_there_is_no_identity() -> None:
    assert connection(mesh(), OUTSIDER, ONE, 8083, 4).source is None
    assert connection(mesh(), CLIENT, OUTSIDER, 8082, 4).source is None


def test_endpoints_that_agree_give_the_services_verdict_and_its_rule_once() -> None:
    decision = expected(mesh(), CLIENT, SERVICE, 80, 4)
    assert (decision.passage, decision.rule) == ("allow", "no policy applies (at shop/server-0, shop/server-1)")


def test_endpoints_that_disagree_are_mixed_and_both_rules_are_said() -> None:
    decision = expected(mesh(DENY_ONE), CLIENT, SERVICE, 80, 4)
    assert decision.passage == "mixed"
    assert decision.rule == (
        "endpoints disagree: AuthorizationPolicy shop/deny-one denies: rule 1 (serviceAccounts client) "
        "(at shop/server-0); no policy applies (at shop/server-1)"
    )


def test_a_service_whose_every_endpoint_denies_is_denied() -> None:
    decision = expected(mesh(replace(DENY_ONE, selector={"app": "server"})), CLIENT, SERVICE, 80, 4)
    assert decision.passage == "deny"


def test_policy_judges_the_port_that_each_endpoint_resolves_for_itself() -> None:
    assert expected(mesh(DENY_8083), CLIENT, SERVICE, 80, 4).passage == "mixed"


def test_a_port_that_the_service_or_its_endpoints_lack_is_denied() -> None:
    assert expected(mesh(), CLIENT, SERVICE, 9, 4).rule == "server.shop has no port 9"
    nameless = expected(mesh(), CLIENT, SERVICE, 81, 4)
    assert (nameless.passage, nameless.rule) == ("deny", "server.shop has no endpoint for port 81")
