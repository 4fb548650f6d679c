"""Traffic that goes on while a lab changes: what failed, what broke, and what passed in plaintext."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import DeadlineError, LabLostError, UsageError
from meshlab.model.report import Result

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.calls.background import Traffic

    LabFactory = Callable[..., AbstractContextManager[Lab]]

PAIRS = (("shop/client", "http://server:8080/hello"), ("shop/client", "tcp://shop/server:8080"))
DENY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""
DENY_PORT_9 = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-port-9, namespace: shop}
spec:
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
      to: [{operation: {ports: ["9"]}}]
"""


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory("two-nodes") as lab:
        yield lab


def results(traffic: Traffic) -> dict[str, Result]:
    return {proof.id: proof.result for proof in traffic.proofs}


def test_a_mesh_that_changes_nothing_fails_no_call_breaks_no_connection_and_shows_no_byte(lab: Lab) -> None:
    with lab.traffic(PAIRS, rate=100, open=5) as traffic:
        traffic.wait_for(lambda: traffic.calls_made >= 100 and traffic.opened == 10)
    assert traffic.failures == []
    assert (traffic.failed_new, traffic.broken_open, traffic.in_plaintext, traffic.kept_plaintext) == (0, 0, 0, 0)
    assert traffic.wrong_identity == traffic.skipped == 0
    assert results(traffic) == {
        "failed-new": Result.HELD,
        "broken-open": Result.HELD,
        "in-plaintext": Result.HELD,
    }, traffic.proofs
    new, held, plain = traffic.proofs
    assert new.control == f"{traffic.calls_made} calls were answered"
    assert held.control.startswith("10 connections answered ")
    assert "beacons seen in clear" in plain.control
    assert repr(traffic).startswith(
        f"<traffic: {traffic.calls_made} calls, failed_new 0, 10 connections, broken_open 0"
    )


def test_a_change_of_policies_explains_what_it_refuses_and_the_connections_that_it_cuts_are_counted(lab: Lab) -> None:
    with lab.traffic(PAIRS, rate=100, open=5) as traffic:
        traffic.wait_for(lambda: traffic.opened == 10)
        lab.apply(DENY_CLIENT)
        traffic.wait_for(lambda: traffic.broken_open == 10)
        refused = traffic.calls_made
        traffic.wait_for(lambda: traffic.calls_made > refused + 50)
        lab.delete(DENY_CLIENT)
        traffic.wait_for(lambda: traffic.opened == 20)
    assert traffic.failures == []
    assert traffic.in_plaintext == 0
    assert {broken.closed_by for broken in traffic.broken} <= {"peer", "peer-reset"}
    assert {broken.source for broken in traffic.broken} == {"shop/client"}
    assert {broken.to for broken in traffic.broken} == {"server.shop:8080", "shop/server:8080"}
    assert results(traffic)["failed-new"] is Result.HELD
    assert results(traffic)["broken-open"] is Result.FAILED


def test_a_refusal_that_no_policy_explains_is_a_failure(lab_factory: LabFactory) -> None:
    with (
        lab_factory("two-nodes", mutant="parts-of-a-rule-are-ored") as lab,
        lab.traffic(PAIRS, rate=100, open=0) as traffic,
    ):
        traffic.wait_for(lambda: traffic.calls_made >= 20)
        assert traffic.failed_new == 0
        lab.apply(DENY_PORT_9)
        traffic.wait_for(lambda: traffic.failed_new >= 10)
    assert "the policies of that time say allow (no DENY policy matches" in str(traffic.failures[0])
    assert traffic.failures[0].call.refused
    assert results(traffic)["failed-new"] is Result.FAILED
    assert traffic.proofs[0].reason.startswith(f"{traffic.failed_new} of {traffic.calls_made} calls: <call ")


def test_a_change_that_is_acknowledged_and_not_in_effect_is_seen_in_the_calls_after_it(lab_factory: LabFactory) -> None:
    with (
        lab_factory("two-nodes", mutant="stale-verdict-after-a-change") as lab,
        lab.traffic(PAIRS, rate=100, open=0) as traffic,
    ):
        traffic.wait_for(lambda: traffic.calls_made >= 20)
        lab.apply(DENY_CLIENT)
        traffic.wait_for(lambda: traffic.failed_new >= 10)
    assert traffic.failures[0].call.answered
    assert "deny (AuthorizationPolicy shop/no-client denies" in str(traffic.failures[0])


def test_a_denied_call_that_is_answered_is_a_failure(lab_factory: LabFactory) -> None:
    with (
        lab_factory("two-nodes", mutant="ignores-deny") as lab,
        lab.traffic([("shop/intruder", "http://server:8080/")], rate=50, open=0) as traffic,
    ):
        traffic.wait_for(lambda: traffic.failed_new >= 5)
    assert "deny (AuthorizationPolicy shop/no-intruders denies" in str(traffic.failures[0])
    assert traffic.wrong_identity == 0


@pytest.mark.parametrize("mutant", ["leaks-plaintext", "clear-on-15008"])
def test_bytes_in_plaintext_on_new_connections_are_seen(lab_factory: LabFactory, mutant: str) -> None:
    with lab_factory("two-nodes", mutant=mutant) as lab, lab.traffic(PAIRS, rate=50, open=1) as traffic:
        traffic.wait_for(lambda: traffic.calls_made >= 20)
    assert traffic.in_plaintext > 0
    assert "bytes in plaintext: TCP " in traffic.leaks[0]
    assert results(traffic)["in-plaintext"] is Result.FAILED


def test_a_capture_that_loses_packets_cannot_tell(lab_factory: LabFactory) -> None:
    with (
        lab_factory("two-nodes", mutant="capture-loses-packets") as lab,
        lab.traffic(PAIRS, rate=50, open=1) as traffic,
    ):
        traffic.wait_for(lambda: traffic.calls_made >= 20)
    assert results(traffic)["in-plaintext"] is Result.CANNOT_TELL


def test_a_pair_that_is_not_there_makes_no_call_and_of_no_call_nothing_is_proven(lab: Lab) -> None:
    with lab.traffic([("shop/nobody", "http://server:8080"), ("shop/client", "http://nobody")], rate=100) as traffic:
        traffic.wait_for(lambda: traffic.skipped >= 10)
    assert traffic.calls_made == traffic.failed_new == traffic.opened == 0
    assert set(results(traffic).values()) == {Result.CANNOT_TELL}
    assert traffic.proofs[0].reason == "no call was made"


def test_of_calls_that_are_all_refused_nothing_is_proven(lab: Lab) -> None:
    with lab.traffic([("shop/intruder", "http://server:8080")], rate=100) as traffic:
        traffic.wait_for(lambda: traffic.calls_made >= 10)
    assert traffic.failed_new == traffic.broken_open == 0
    assert results(traffic)["failed-new"] is Result.CANNOT_TELL
    assert "attempts were refused" in traffic.proofs[1].reason


def test_a_connection_that_nobody_answers_on_any_more_is_broken_by_silence(lab_factory: LabFactory) -> None:
    with (
        lab_factory("two-nodes") as lab,
        lab.traffic([("shop/client", "http://server:8080")], rate=0, open=3) as traffic,
    ):
        traffic.wait_for(lambda: traffic.opened == 3)
        lab.site.programs.end("echo@node-2", signal.SIGSTOP)
        traffic.wait_for(lambda: traffic.broken_open >= 3)
        lab.site.programs.end("echo@node-2", signal.SIGCONT)
    assert {broken.closed_by for broken in traffic.broken} == {"silence"}


def test_calls_of_traffic_do_not_pile_up_in_the_capture(lab: Lab) -> None:
    with lab.traffic(PAIRS, rate=100, open=0) as traffic:
        traffic.wait_for(lambda: traffic.calls_made >= 50)
        capture = lab.last_capture
        assert capture is not None
        assert capture._calls == {}


def test_what_is_asked_too_early_or_makes_no_sense_is_refused(lab: Lab) -> None:
    with lab.traffic(PAIRS, rate=10) as traffic, pytest.raises(UsageError, match="when traffic has stopped"):
        _ = traffic.in_plaintext
    with lab.traffic(PAIRS, rate=10) as traffic, pytest.raises(DeadlineError, match="<traffic: "):
        traffic.wait_for(lambda: False, timeout_s=0.1)
    with pytest.raises(UsageError, match="needs a pair at least"):
        lab.traffic([])
    with pytest.raises(UsageError, match="no pair of a source pod"):
        lab.traffic([("client", "http://server")])
    with pytest.raises(UsageError, match="is no URL"):
        lab.traffic([("shop/client", "ftp://server")])
    with pytest.raises(UsageError, match="not HOST:PORT"):
        lab.traffic([("shop/client", "tcp://server")])
    with pytest.raises(UsageError, match="rate=-1"):
        lab.traffic(PAIRS, rate=-1)
    with pytest.raises(UsageError, match="open=-1"):
        lab.traffic(PAIRS, open=-1)
    with lab.capture(), pytest.raises(UsageError, match="a capture of this lab is open"), lab.traffic(PAIRS):
        pass


def test_a_lab_that_is_lost_is_said_and_nothing_hangs(lab_factory: LabFactory) -> None:
    def lose() -> None:
        with lab_factory("two-nodes") as lab, lab.traffic(PAIRS, rate=100) as traffic:
            traffic.wait_for(lambda: traffic.calls_made >= 10)
            lab.site.close()
            traffic.wait_for(lambda: False)

    with pytest.raises(LabLostError):
        lose()


def test_a_block_that_takes_no_time_has_a_call_before_it_and_one_behind_it(lab: Lab) -> None:
    with lab.traffic(PAIRS, rate=0.01, open=2) as traffic:
        before = traffic.calls_made, traffic.opened
    assert before == (2, 4)
    assert traffic.calls_made == 4
    assert set(results(traffic).values()) == {Result.HELD}


LIVE = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: live}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server}
    old/client: {node: node-1}
    old/server: {node: node-2, ports: [8080]}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: old}}
"""
SERVER = """
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop}
spec:
  nodeName: node-2
  serviceAccountName: server
  containers: [{name: c, image: any, ports: [{containerPort: 8080}]}]
"""
OLD = [("old/client", "http://shop%2Fserver:8080/"), ("old/client", "tcp://old/server:8080")]
SHOP = [("shop/client", "tcp://shop/server:8080")]


@pytest.fixture(scope="module")
def live(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(LIVE) as lab:
        yield lab


def test_enrolment_under_traffic_shows_no_byte_of_a_connection_that_began_behind_it(live: Lab) -> None:
    with live.traffic([*OLD, *SHOP], rate=100, open=3) as traffic:
        live.namespace("old").label({"istio.io/dataplane-mode": "ambient"})
    assert (traffic.in_plaintext, traffic.wrong_identity) == (0, 0)
    assert results(traffic)["in-plaintext"] is Result.HELD
    assert {broken.source for broken in traffic.broken} <= {"old/client"}
    with live.traffic([*OLD, *SHOP], rate=100, open=3) as traffic:
        live.namespace("old").label({"istio.io/dataplane-mode": None})
    assert (traffic.in_plaintext, traffic.wrong_identity) == (0, 0)


def test_a_pod_that_goes_and_comes_under_traffic_explains_what_fails_meanwhile(live: Lab) -> None:
    with live.traffic(SHOP, rate=100, open=3) as traffic:
        live.delete(SERVER)
        traffic.wait_for(lambda: traffic.broken_open == 3 and traffic.skipped >= 5)
        live.apply(SERVER)
        traffic.wait_for(lambda: traffic.opened == 6)
    assert traffic.failures == []
    assert traffic.in_plaintext == 0
    assert {broken.to for broken in traffic.broken} == {"shop/server:8080"}


def test_a_pod_that_goes_ends_the_connections_that_it_holds(live: Lab) -> None:
    line = live.pod("shop/server").connect("old/server:8080")
    assert line.alive
    live.delete(SERVER)
    assert line.closed_by == "the end of its pod"
    live.apply(SERVER)


def test_a_ztunnel_that_is_killed_breaks_what_it_carries_and_its_calls_fail(lab_factory: LabFactory) -> None:
    with lab_factory(LIVE) as lab:
        with lab.traffic(SHOP, rate=100, open=3) as traffic:
            lab.instance("ztunnel@node-1").kill()
            traffic.wait_for(lambda: traffic.broken_open == 3 and traffic.failed_new > 0)
            lab.instance("ztunnel@node-1").restart()
            traffic.wait_for(lambda: traffic.opened == 6)
        assert traffic.in_plaintext == 0
        assert results(traffic)["failed-new"] is results(traffic)["broken-open"] is Result.FAILED
        assert results(traffic)["in-plaintext"] is Result.HELD
