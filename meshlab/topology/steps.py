"""``spec.steps``: calls with what should come of them, and changes of policies between them, in order.

steps:
  - {call: {from: shop/client, to: "shop/server:8080"}, expect: allow}
  - replace: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, ...}]    # or apply
  - {call: {from: shop/client, to: "shop/server:8080", family: 6, kind: tcp, mode: half-close}, expect: deny}
  - {call: {from: shop/client, to: "shop/server:8080", method: POST, body: {bytes: 65537, seed: 1}}, expect: allow}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshlab.model import (
    FAMILIES,
    AuthorizationPolicy,
    CallShape,
    CallStep,
    Expectation,
    PeerAuthentication,
    PolicyStep,
    Step,
    Verdict,
)
from meshlab.topology.check import check, check_kind
from meshlab.topology.expect import Ends, faults
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes
from meshlab.topology.policies import authorization_policy, peer_authentication

_VERBS = ("call", "apply", "replace")
_POLICIES = ("AuthorizationPolicy", "PeerAuthentication")


def steps(entries: tuple[Map, ...], ends: Ends, notes: Notes) -> tuple[Step, ...]:
    """The steps that hold; every other is an issue."""
    return tuple(step for entry in entries if (step := _step(entry, ends, notes)) is not None)


def _step(entry: Map, ends: Ends, notes: Notes) -> Step | None:
    verbs = [verb for verb in _VERBS if verb in entry]
    if len(verbs) != 1:
        said = f"not {' and '.join(verbs)}" if verbs else "and has none"
        notes.refuse(entry.place, f"a step does one thing: {', '.join(_VERBS)}; {said}")
        return None
    if verbs == ["call"]:
        return _call(entry, ends, notes)
    if "expect" in entry:
        notes.refuse(entry.at("expect"), "only a call has something to expect")
    return _change(entry, verbs[0], notes)


def _call(entry: Map, ends: Ends, notes: Notes) -> CallStep | None:
    call, expect = entry.map("call"), entry.text("expect")
    if not expect:
        notes.refuse(entry.place, "a call needs the key 'expect': allow or deny")
    if not expect or "from" not in call or "to" not in call:
        return None
    family = call.value("family")
    row = Expectation(
        source=call.text("from"),
        to=call.text("to"),
        verdict=Verdict(expect),
        family=family if family in FAMILIES else None,  # type: ignore[arg-type]  # a literal, by the test
    )
    found = faults(row, ends)
    for key, fault in found:
        notes.refuse(call.at(key), fault)
    if found:
        return None
    shape = _shape(call, notes)
    return CallStep(source=row.source, to=row.to, expect=row.verdict, family=row.family, shape=shape)


def _shape(call: Map, notes: Notes) -> CallShape:
    body, given = call.map("body"), _given_of(call)
    shape = CallShape(**given, body_bytes=_whole(body, "bytes"), body_seed=_whole(body, "seed"))
    if shape.mode == "half-close" and shape.kind == "http":
        notes.refuse(call.at("mode"), "half-close is of kind: tcp; an HTTP request ends by its length")
    if shape.mode == "echo-body" and (shape.kind == "tcp" or shape.method == "HEAD"):
        notes.refuse(call.at("mode"), "echo-body asks an HTTP answer for the body: not kind: tcp, nor method: HEAD")
    if shape.kind == "tcp" and "method" in call:
        notes.refuse(call.at("method"), "a method is of kind: http")
    return shape


def _given_of(call: Map) -> dict[str, Any]:
    return {key: call.text(key) for key in ("kind", "mode", "method") if key in call}


def _whole(body: Map, key: str) -> int:
    value = body.value(key)
    return value if isinstance(value, int) else 0


def _change(entry: Map, verb: str, notes: Notes) -> PolicyStep:
    rules: dict[str, AuthorizationPolicy] = {}
    modes: dict[str, PeerAuthentication] = {}
    for kind, document in _documents(entry.maps(verb), notes):
        if kind == "AuthorizationPolicy":
            policy = authorization_policy(document, notes)
            rules[_only(policy.key, rules, kind, document, notes)] = policy
        else:
            mode = peer_authentication(document, notes)
            modes[_only(mode.key, modes, kind, document, notes)] = mode
    return PolicyStep(
        authorization_policies=tuple(rules.values()),
        peer_authentications=tuple(modes.values()),
        replaces=verb == "replace",
    )


def _documents(manifests: tuple[Map, ...], notes: Notes) -> Iterator[tuple[str, Map]]:
    for manifest in manifests:
        kind = check_kind(manifest, notes)
        if kind in _POLICIES:
            yield kind, check(kind, manifest, notes)
        elif kind:
            notes.refuse(manifest.at("kind"), f"a {kind} is fixed: steps change {' and '.join(_POLICIES)}")


def _only(key: str, known: Mapping[str, object], kind: str, document: Map, notes: Notes) -> str:
    if key in known:
        notes.refuse(document.map("metadata").at("name"), f"the {kind} '{key}' is in this step twice")
    return key
