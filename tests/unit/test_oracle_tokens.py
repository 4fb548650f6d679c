"""Which tokens the oracle takes, where it finds them, and what a policy makes of what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from test_oracle_http import MESH

from meshlab import TokenIssuer
from meshlab.model import (
    AuthorizationPolicy,
    Condition,
    HttpRequest,
    JwtRule,
    Mesh,
    RequestAuthentication,
    Rule,
    Source,
    Status,
)
from meshlab.oracle import expected
from meshlab.oracle.tokens import Passed, Rejected, authenticate

NOW_S = 1_700_000_000.0
ISSUER = TokenIssuer("https://me.example")
RULE = JwtRule(issuer=ISSUER.name, jwks=ISSUER.jwks)
MALFORMED = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"


def bearing(token: str, **fields: Any) -> HttpRequest:
    return HttpRequest(headers=(("authorization", f"Bearer {token}"), ("x-other", "1")), **fields)


def said(rule: JwtRule, token: str) -> str:
    """What is wrong with a token; nothing where it is good."""
    found = authenticate([rule], bearing(token), NOW_S)
    return found.why if isinstance(found, Rejected) else ""


def signed(key: Any, algorithm: str, **head: str) -> str:
    return jwt.encode({"iss": ISSUER.name, "sub": "a"}, key, algorithm=algorithm, headers=head)


def test_a_request_without_a_token_passes_as_it_is_and_as_nobody() -> None:
    request = HttpRequest(headers=(("authorization", "Basic eA=="),))
    assert authenticate([RULE], request, NOW_S) == Passed(request, {})
    assert authenticate([], bearing("x"), NOW_S) == Passed(bearing("x"), {})


@pytest.mark.parametrize("forwards", [False, True])
def test_a_good_token_says_who_asks_and_goes_on_only_where_the_rule_says_so(forwards: bool) -> None:
    request = bearing(ISSUER.token("a", scope="read write"))
    found = authenticate([replace(RULE, forward_original_token=forwards)], request, NOW_S)
    assert isinstance(found, Passed)
    assert found.claims == {"iss": ISSUER.name, "sub": "a", "scope": ["read", "write"]}
    assert found.request == (request if forwards else HttpRequest(headers=(("x-other", "1"),)))


@pytest.mark.parametrize(
    ("rule", "claims", "fault"),
    [
        (RULE, {"exp": NOW_S - 61}, "Jwt is expired"),
        (RULE, {"exp": NOW_S - 59}, ""),
        (RULE, {"nbf": NOW_S + 61}, "Jwt not yet valid"),
        (RULE, {"nbf": NOW_S + 59}, ""),
        (RULE, {"iss": "x"}, "Jwt issuer is not configured"),
        (replace(RULE, issuer=""), {"iss": "x"}, ""),
        (replace(RULE, audiences=("shop",)), {}, "Audiences in Jwt are not allowed"),
        (replace(RULE, audiences=("shop",)), {"aud": "other"}, "Audiences in Jwt are not allowed"),
        (replace(RULE, audiences=("shop",)), {"aud": ["other", "https://shop/"]}, ""),
        (replace(RULE, jwks=TokenIssuer("x").jwks), {}, "Jwt verification fails"),
    ],
)
def test_a_rule_takes_a_token_or_says_why_not(rule: JwtRule, claims: dict[str, Any], fault: str) -> None:
    assert said(rule, ISSUER.token(**claims)) == fault


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.c", f"{ISSUER.token()}.x"])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert said(RULE, token) == MALFORMED


def test_only_a_key_of_the_issuer_and_of_the_algorithm_verifies() -> None:
    of_rsa = rsa.generate_private_key(65537, 2048)
    key = jwt.algorithms.RSAAlgorithm.to_jwk(of_rsa.public_key())
    rule = replace(RULE, jwks=f'{{"keys": [{key}]}}')
    assert [said(rule, signed(of_rsa, algorithm)) for algorithm in ("RS256", "RS512", "PS256")] == ["", "", ""]
    assert said(rule, signed(ec.generate_private_key(ec.SECP256R1()), "ES256")) == "Jwt verification fails"
    unsigned = jwt.encode({"iss": ISSUER.name}, "", algorithm="none")
    assert said(rule, unsigned) == "Jwt verification fails"
    named = replace(RULE, jwks=rule.jwks.replace('"kty"', '"kid": "one", "kty"'))
    assert said(named, signed(of_rsa, "RS256", kid="two")) == "Jwt verification fails"
    assert said(named, signed(of_rsa, "RS256", kid="one")) == ""


def test_a_token_is_looked_for_where_its_rule_says() -> None:
    token = ISSUER.token()
    placed = replace(RULE, from_headers=(("x-token", "t:"),), from_params=("t",))
    found = authenticate([RULE], HttpRequest(path=f"/a?x=1&access_token={token}"), NOW_S)
    assert isinstance(found, Passed)
    assert found.request.path == "/a?x=1"
    assert authenticate([placed], bearing("x"), NOW_S) == Passed(bearing("x"), {})
    for request in (HttpRequest(headers=(("x-token", f"t:{token}"),)), HttpRequest(path=f"/?t={token}")):
        found = authenticate([placed], request, NOW_S)
        assert isinstance(found, Passed)
        assert (found.request, found.claims["sub"]) == (HttpRequest(), "someone")


def test_one_rule_that_takes_a_token_is_enough() -> None:
    other = TokenIssuer("other")
    rules = [JwtRule(issuer="other", jwks=other.jwks), RULE]
    assert isinstance(authenticate(rules, bearing(ISSUER.token()), NOW_S), Passed)
    assert isinstance(authenticate(rules, bearing(other.token()), NOW_S), Passed)
    assert authenticate(rules, bearing(other.token(exp=1)), NOW_S) == Rejected(401, "Jwt is expired")
    assert authenticate(rules, bearing(TokenIssuer("x").token()), NOW_S) == Rejected(
        401, "Jwt issuer is not configured"
    )


# --- what comes of a request -----------------------------------------------------------------------------------------

REF = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gate"}


def allowing(rule: Rule, **fields: Any) -> Mesh:
    return replace(
        MESH,
        request_authentications=(
            RequestAuthentication(name="r", namespace="shop", rules=(RULE,), **{"target_refs": (REF,), **fields}),
        ),
        authorization_policies=(AuthorizationPolicy(name="p", namespace="shop", rules=(rule,), target_refs=(REF,)),),
    )


def status(mesh: Mesh, request: HttpRequest) -> int:
    """200 where a server gets the request."""
    due = expected(mesh, mesh.pods[0], mesh.services[0], 80, 4, request, NOW_S)
    return due.ways[0].response.code if isinstance(due.ways[0].response, Status) else 200


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("*", 200),
        (f"{ISSUER.name}/a", 200),
        (f"{ISSUER.name}/*", 200),
        ("https://me.example*", 403),
        ("*/a", 200),
        ("*a", 200),
        (f"{ISSUER.name}/b", 403),
        (ISSUER.name, 403),
        ("x*", 403),
    ],
)
def test_a_principal_is_compared_part_by_part(pattern: str, code: int) -> None:
    request = bearing(ISSUER.token("a"))
    when = Condition(key="request.auth.principal", values=(pattern,))
    assert status(allowing(Rule(sources=(Source(request_principals=(pattern,)),))), request) == code
    assert status(allowing(Rule(conditions=(when,))), request) == code
    assert status(allowing(Rule(sources=(Source(not_request_principals=(pattern,)),))), request) == 603 - code
    assert status(allowing(Rule(sources=(Source(request_principals=(pattern,)),))), HttpRequest()) == 403


@pytest.mark.parametrize(
    ("key", "claims"),
    [
        ("request.auth.audiences", {"aud": ["other", "value"]}),
        ("request.auth.audiences", {"aud": "value"}),
        ("request.auth.presenter", {"azp": "value"}),
        ("request.auth.claims[scope]", {"scope": "other value"}),
        ("request.auth.claims[a][b-c]", {"a": {"b-c": ["value"]}}),
    ],
)
def test_a_condition_reads_a_text_or_a_list_of_texts(key: str, claims: dict[str, Any]) -> None:
    mesh = allowing(Rule(conditions=(Condition(key=key, values=("val*",)),)))
    assert status(mesh, bearing(ISSUER.token(**claims))) == 200
    assert status(mesh, bearing(ISSUER.token(aud="x", azp="x", scope="x", a={"b-c": 1}))) == 403
    assert status(mesh, HttpRequest()) == 403


def test_a_bad_token_is_refused_before_any_policy_and_by_no_selector() -> None:
    everybody = Rule(sources=(Source(not_request_principals=("x",)),))
    assert status(allowing(everybody), bearing("x")) == 401
    assert status(allowing(everybody, target_refs=(), selector={}), bearing("x")) == 200
    assert status(allowing(everybody, target_refs=({**REF, "name": "other"},)), bearing("x")) == 200
