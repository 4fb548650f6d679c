"""A waypoint that is missing, unready, stopped, crashed or for other traffic lets nothing through, where destinations
insist on it: nothing reaches the server, by its own count, on any way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshlab.lab import Lab, open_lab
from meshlab.model import Call
from meshlab.topology import load

FILE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: insisted-on}
spec:
  profile: %s
  pods:
    shop/client: {serviceAccount: client}
    shop/server: {ports: [8080], serviceAccount: server, labels: {app: server}}
    plain/guest: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: server}]
  rules: [{to: [{operation: {methods: [GET]}}]}]
"""
GATEWAY = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gate, namespace: shop%s}\n"
SPEC = "spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n"
SHORT_S = 1.0


def killed(lab: Lab) -> None:
    lab.instance("waypoint@shop/gate").kill()


def stopped(lab: Lab) -> None:
    lab.instance("waypoint@shop/gate").pause()


def deleted(lab: Lab) -> None:
    lab.delete(GATEWAY % "")


def scoped_elsewhere(lab: Lab) -> None:
    lab.apply(GATEWAY % ", labels: {istio.io/waypoint-for: none}" + SPEC)


def calls(lab: Lab) -> dict[str, Call]:
    """By the Service, to read and to write; round the waypoint; and from outside the mesh."""
    client, guest = lab.pod("shop/client"), lab.pod("plain/guest")
    ways = {
        "service": client.plan_http("http://server/", timeout_s=SHORT_S),
        "write": client.plan_http("http://server/", method="PUT", timeout_s=SHORT_S),
        "round": client.plan_http("http://shop%2Fserver:8080/", method="PUT", timeout_s=SHORT_S),
        "outside": guest.plan_http("http://shop%2Fserver:8080/", method="PUT", timeout_s=SHORT_S),
    }
    return dict(zip(ways, lab.calls(list(ways.values())), strict=True))


@pytest.mark.parametrize("waypoint", ["envoy", "reference"])
@pytest.mark.parametrize("happens", [killed, stopped, deleted, scoped_elsewhere])
def test_required_lets_nothing_through(waypoint: str, happens: Callable[[Lab], None]) -> None:
    with open_lab(load(FILE % "required", "required.yaml"), waypoint=waypoint) as lab:
        before = calls(lab)
        assert before["service"].ok  # the control: what is allowed arrives
        assert [before[name].answered for name in ("round", "outside")] == [False, False]
        assert before["write"].status == 403
        happens(lab)
        since_ns = before["outside"].ended_ns
        after = calls(lab)
        assert {name: call.answered for name, call in after.items()} == dict.fromkeys(after, False)
        counted = lab.arrivals(list(after.values()), since_ns)
        assert not counted.canaries & {call.number for call in after.values()}
        if happens is stopped:
            lab.instance("waypoint@shop/gate").resume()


def test_under_advisory_what_goes_round_is_answered() -> None:
    with open_lab(load(FILE % "advisory", "advisory.yaml")) as lab:
        killed(lab)
        after = calls(lab)
        assert {name: call.answered for name, call in after.items()} == {
            "service": False,
            "write": False,
            "round": True,
            "outside": True,
        }
