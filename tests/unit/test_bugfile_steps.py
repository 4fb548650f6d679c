"""``spec.steps``: what is read, what is refused and where, and that it is written as it was read."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace

import pytest

from meshlab.errors import TopologyError
from meshlab.model import CallShape, CallStep, PolicyStep, Verdict
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


def _sending(how: str) -> str:
    return f'{{call: {{from: shop/client, to: "shop/server:8080", {how}}}, expect: allow}}'


def test_steps_are_read_in_order_and_written_as_they_were_read() -> None:
    topology = load(f"{HEAD}    - {{{CALL}, expect: allow}}\n    - replace: [{POLICY}]\n    - apply: [{POLICY}]\n", "x")
    call, change, addition = topology.steps
    assert call == CallStep(source="shop/client", to="shop/server:8080", expect=Verdict.ALLOW)
    assert isinstance(change, PolicyStep)
    assert isinstance(addition, PolicyStep)
    assert (change.replaces, addition.replaces) == (True, False)
    assert [policy.key for policy in change.authorization_policies] == ["shop/none"]
    assert load(dump(topology), "again") == topology


SHAPES = [
    CallShape(kind="tcp", mode="half-close", body_bytes=65537, body_seed=9),
    CallShape(method="POST", mode="echo-body", body_bytes=1 << 20, body_seed=65535),
    CallShape(method="HEAD"),
    CallShape(),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.kind} {shape.mode} {shape.method}")
def test_what_a_call_sends_is_written_in_one_line_and_read_again(shape: CallShape) -> None:
    topology = load(f"{HEAD}    - {{{CALL}, expect: allow}}\n", "x")
    (call,) = topology.steps
    assert isinstance(call, CallStep)
    shaped = replace(topology, steps=(replace(call, shape=shape),))
    assert load(dump(shaped), "again") == shaped
    assert len(dump(shaped)) < len(dump(topology)) + 120


def test_a_body_is_what_its_seed_makes_of_it_on_every_machine() -> None:
    body = CallShape(body_bytes=1 << 20, body_seed=7).body()
    assert len(body) == 1 << 20
    assert body[:8].hex() == hashlib.shake_256(b"7").hexdigest(8)
    assert CallShape(body_bytes=100, body_seed=7).body() == body[:100]
    assert len(zlib.compress(body)) > len(body), "it has no pattern"


def test_a_call_says_its_path_and_its_headers() -> None:
    topology = load(
        f"{HEAD}    - {_sending('path: /a?b, headers: {x-a: b}')}\n".replace("expect: deny", "expect: allow"), "x"
    )
    (step,) = topology.steps
    assert isinstance(step, CallStep)
    assert (step.shape.path, step.shape.headers) == ("/a?b", (("x-a", "b"),))
    assert load(dump(topology), "again") == topology


def test_an_empty_replace_takes_every_policy_away() -> None:
    topology = load(f"{HEAD}    - replace: []\n", "x")
    assert topology.steps == (PolicyStep(replaces=True),)
    assert load(dump(topology), "again") == topology


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (f"{{{CALL}}}", "a call needs the key 'expect'"),
        (f"{{{CALL}, expect: perhaps}}", "must be one of alive, allow, closed, deny"),
        (f"{{{CALL}, expect: alive}}", "what a call expects must be one of allow, deny"),
        (
            "{expect: allow}",
            "a step does one thing: call, apply, replace, delete, push, connect, ask, restart, kill, stop, ",
        ),
        (f"{{{CALL}, expect: allow, apply: []}}", "not call and apply"),
        ("{apply: [], expect: deny}", "only a call, ask or traffic has something to expect"),
        ('{call: {from: shop/cliant, to: "shop/server:8080"}, expect: deny}', "Did you mean 'shop/client'?"),
        ('{call: {from: shop/client, to: "shop/server:80"}, expect: deny}', "declares no port 80"),
        ("{call: {from: shop/client}, expect: deny}", "needs the key 'to'"),
        (f"{{apply: [{POLICY}, {POLICY}]}}", "the AuthorizationPolicy 'shop/none' is already on line 8"),
        (
            "{apply: [{apiVersion: meshlab.dev/v1alpha1, kind: Lab, metadata: {name: a}}]}",
            "a Lab cannot change while it runs",
        ),
        ("{apply: [{kind: Wrong}]}", "kind 'Wrong' is not supported"),
        (f"{{apply: {POLICY}}}", "must be a list"),
        (_sending("mode: half-close"), "half-close is of kind: tcp"),
        (_sending("mode: echo-body, kind: tcp"), "echo-body asks an HTTP answer for the body"),
        (_sending("mode: echo-body, method: HEAD"), "echo-body asks an HTTP answer for the body"),
        (_sending("method: POST, kind: tcp"), "method is of kind: http"),
        (_sending("path: /x, kind: tcp"), "path is of kind: http"),
        (_sending("headers: {a: b}, kind: tcp"), "headers is of kind: http"),
        (_sending("path: x"), "must be an absolute path"),
        (_sending("method: post"), "must be an HTTP method in capitals"),
        (_sending("body: {bytes: 16777217}"), "must be a whole number of bytes, at most 16777216"),
        (_sending("body: {seed: 1}"), "needs the key 'bytes'"),
    ],
)
def test_a_wrong_step_is_refused_with_its_place(step: str, message: str) -> None:
    with pytest.raises(TopologyError, match=r"bug\.yaml:8:") as refused:
        load(f"{HEAD}    - {step}\n", "bug.yaml")
    assert message in str(refused.value)
