"""RequestAuthentications of a file and of a change: where their keys are, what is written again, and what is sent."""

from __future__ import annotations

import json

import pytest
from test_waypoint_envoy import GATE, OWN

from meshlab.errors import TopologyError
from meshlab.lab.proving.questions import questions
from meshlab.model import JwtRule, Topology
from meshlab.topology import dump, load, read
from meshlab.topology.changes import load_manifests, replaced, without
from meshlab.translate import for_envoy
from meshlab.translate.for_envoy import LISTENER_TYPE

KEYS = '{"keys": [{"kty": "EC"}]}'
WORLD = f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: tokens}}
spec:
  urls: {{"https://a.example/keys": '{KEYS}'}}
  pods: {{shop/client: {{}}, shop/server: {{ports: [8080], labels: {{app: server}}}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: server, namespace: shop}},
 spec: {{selector: {{app: server}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gate, namespace: shop}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
"""
TOKENS = """
---
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: server}]
  jwtRules: [%s]
"""
BY_URL = "{issuer: a, jwksUri: 'https://a.example/keys'}"
PLACED = f"{{issuer: b, jwks: '{KEYS}', fromHeaders: [{{name: X-Token}}], fromParams: [t], forwardOriginalToken: true}}"


def rules(topology: Topology) -> tuple[JwtRule, ...]:
    return tuple(rule for one in topology.mesh.request_authentications for rule in one.rules)


def test_the_keys_are_in_the_rule_or_at_a_url_of_the_lab() -> None:
    topology = load(WORLD + TOKENS % f"{BY_URL}, {PLACED}", "tokens.yaml")
    placed = JwtRule(
        issuer="b", jwks=KEYS, from_headers=(("x-token", ""),), from_params=("t",), forward_original_token=True
    )
    assert rules(topology) == (JwtRule(issuer="a", jwks=KEYS), placed)
    assert load(dump(topology), "dumped.yaml") == topology


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("{issuer: a, jwksUri: 'https://b.example'}", "nothing is at 'https://b.example': write what is read there"),
        ("{issuer: a, jwksUri: a.example}", "a URL of http or https"),
        ("{audiences: [a]}", "neither an issuer nor keys"),
        ("{issuer: a}", "no keys, or write the keys themselves as `jwks`"),
        ("{issuer: a, jwks: x}", "the keys are no JWKS"),
        ("{issuer: a, jwks: '{\"keys\": []}'}", "the keys are no JWKS"),
        ("{issuer: a, jwks: '[]'}", "the keys are no JWKS"),
        (PLACED.replace("X-Token", "a b"), "the name of a header"),
    ],
)
def test_without_keys_a_rule_is_refused(rule: str, why: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(WORLD + TOKENS % rule, "tokens.yaml")
    assert why in str(refused.value)


def test_without_a_target_it_has_no_effect_and_a_warning_says_so() -> None:
    elsewhere = "{issuer: a, jwksUri: 'https://b.example'}"
    text = WORLD + (TOKENS % elsewhere).replace(
        'targetRefs: [{kind: Service, group: "", name: server}]', "selector: {}"
    )
    reading = read(text, "tokens.yaml")
    (warning,) = [warning for warning in reading.warnings if "RequestAuthentication" in warning.message]
    assert "a waypoint honours one with targetRefs only" in warning.message
    assert load(dump(reading.topology), "dumped.yaml") == reading.topology


def test_a_change_brings_another_one_and_takes_it_away() -> None:
    topology = load(WORLD, "tokens.yaml")
    applied = load_manifests(TOKENS % BY_URL, "<apply>", topology)
    assert [one.key for one in applied.request_authentications] == ["shop/tokens"]
    other = replaced(TOKENS % PLACED, "<replace>", load(WORLD + TOKENS % BY_URL, "tokens.yaml"))
    assert [rule.issuer for one in other.request_authentications for rule in one.rules] == ["b"]
    assert without(TOKENS % "{}", "<delete>", load(WORLD + TOKENS % BY_URL, "tokens.yaml")) == topology.mesh


# --- what becomes of it ----------------------------------------------------------------------------------------------


def filters(text: str) -> list[dict[str, object]]:
    """The HTTP filters of the first chain that an Envoy is sent."""
    chain = for_envoy.resources(load(text, "tokens.yaml").mesh, GATE, OWN)[LISTENER_TYPE]["main_internal"]
    return list(chain["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"])


def test_an_envoy_verifies_tokens_before_anything_else_and_needs_none() -> None:
    (first, *others) = filters(WORLD + TOKENS % BY_URL)
    assert others == filters(WORLD)
    assert json.loads(json.dumps(first["typed_config"])) == {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "bypass_cors_preflight": True,
        "providers": {
            "origins-0": {
                "issuer": "a",
                "audiences": [],
                "local_jwks": {"inline_string": KEYS},
                "from_headers": [],
                "from_params": [],
                "forward": False,
                "payload_in_metadata": "payload",
                "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]},
            }
        },
        "rules": [
            {
                "match": {"prefix": "/"},
                "requires": {"requires_any": {"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}},
            }
        ],
    }


def test_of_several_providers_one_has_to_verify_what_is_there() -> None:
    (first, *_) = filters(WORLD + TOKENS % f"{PLACED}, {BY_URL}")
    either = [{"provider_name": "origins-0"}, {"provider_name": "origins-1"}]
    missing = [{"requires_any": {"requirements": [one, {"allow_missing": {}}]}} for one in either]
    config = first["typed_config"]
    assert isinstance(config, dict)
    assert [config["providers"][name]["issuer"] for name in ("origins-0", "origins-1")] == ["a", "b"]
    assert config["rules"][0]["requires"] == {
        "requires_any": {"requirements": [*either, {"requires_all": {"requirements": missing}}]}
    }


def test_a_check_asks_with_tokens_that_nobody_signed_and_says_what_it_cannot_ask() -> None:
    mesh = load(WORLD + TOKENS % f"{BY_URL}, {PLACED}", "tokens.yaml").mesh
    service = next(service for service in mesh.services if service.key == "server.shop")
    asked = questions(mesh, service, service.ports[0])
    plain, *others = asked.requests
    assert plain.headers == ()
    assert [request.headers[0][0] for request in others] == ["authorization"] * 3 + ["x-token"] * 3
    assert asked.unasked == (
        "RequestAuthentication shop/tokens: no request with a good token is asked, for want of a private key",
    )
    assert asked == questions(mesh, service, service.ports[0]), "the cells of two checks are the same"
