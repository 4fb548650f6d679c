"""``spec.steps``: what is read, what is refused and where, and that it is written as it was read."""

from __future__ import annotations

import pytest

from meshlab.errors import TopologyError
from meshlab.model import CallStep, PolicyStep, Verdict
from meshlab.topology import dump, load

HEAD = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: steps}
spec:
  pods: {shop/client: {}, shop/server: {ports: [8080]}}
  steps:
"""
POLICY = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: none, namespace: shop}}"
CALL = 'call: {from: shop/client, to: "shop/server:8080"}'


def test_steps_are_read_in_order_and_written_as_they_were_read() -> None:
    topology = load(f"{HEAD}    - {{{CALL}, expect: allow}}\n    - replace: [{POLICY}]\n    - apply: [{POLICY}]\n", "x")
    call, change, addition = topology.steps
    assert call == CallStep(source="shop/client", to="shop/server:8080", expect=Verdict.ALLOW)
    assert isinstance(change, PolicyStep)
    assert isinstance(addition, PolicyStep)
    assert (change.replaces, addition.replaces) == (True, False)
    assert [policy.key for policy in change.authorization_policies] == ["shop/none"]
    assert load(dump(topology), "again") == topology


def test_an_empty_replace_takes_every_policy_away() -> None:
    topology = load(f"{HEAD}    - replace: []\n", "x")
    assert topology.steps == (PolicyStep(replaces=True),)
    assert load(dump(topology), "again") == topology


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (f"{{{CALL}}}", "a call needs the key 'expect'"),
        (f"{{{CALL}, expect: perhaps}}", "must be one of allow, deny"),
        ("{expect: allow}", "a step does one thing: call, apply, replace; and has none"),
        (f"{{{CALL}, expect: allow, apply: []}}", "not call and apply"),
        ("{apply: [], expect: deny}", "only a call has something to expect"),
        ('{call: {from: shop/cliant, to: "shop/server:8080"}, expect: deny}', "Did you mean 'shop/client'?"),
        ('{call: {from: shop/client, to: "shop/server:80"}, expect: deny}', "declares no port 80"),
        ("{call: {from: shop/client}, expect: deny}", "needs the key 'to'"),
        (f"{{apply: [{POLICY}, {POLICY}]}}", "is in this step twice"),
        ("{apply: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]}", "a Namespace is fixed"),
        ("{apply: [{kind: Wrong}]}", "kind 'Wrong' is not supported"),
        (f"{{apply: {POLICY}}}", "must be a list"),
    ],
)
def test_a_wrong_step_is_refused_with_its_place(step: str, message: str) -> None:
    with pytest.raises(TopologyError, match=r"bug\.yaml:8:") as refused:
        load(f"{HEAD}    - {step}\n", "bug.yaml")
    assert message in str(refused.value)
