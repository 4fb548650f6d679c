"""Whether the token of a request is good, by the JwtRules in effect, and what it says.

    no token at any place of a rule  -> passes, as nobody
    a rule accepts a token           -> passes, as its issuer and subject, and the token is taken out of the request
    no rule accepts one              -> 401; 403 where the token is for another audience, as Envoy answers

A rule looks at a token in Envoy's order: its form, its issuer, its time, its audience, its signature. Clocks may differ
by a minute. What is said of a bad token is in Envoy's words.

Source: https://istio.io/latest/docs/reference/config/security/jwt/,
https://github.com/envoyproxy/envoy/tree/main/source/extensions/filters/http/jwt_authn (``authenticator.cc``,
``filter.cc``) and https://github.com/istio/istio/blob/master/pilot/pkg/security/authn/policy_applier.go
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jwt

from meshlab.model import HttpRequest, JwtRule
from meshlab.oracle.matching import NOBODY, Claims
from meshlab.oracle.requests import header_values, query_of

UNAUTHORIZED = 401
FORBIDDEN = 403
SKEW_S = 60
_BEARER = (("authorization", "Bearer "),)
_PARAMETER = ("access_token",)
_ALGORITHMS = ("EdDSA", *(f"{family}{size}" for family in ("ES", "HS", "PS", "RS") for size in (256, 384, 512)))
_LISTS = ("scope", "permission")
"""Claims whose texts are lists of words."""
_MALFORMED = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
_UNKNOWN_ISSUER = "Jwt issuer is not configured"
_OTHER_AUDIENCE = "Audiences in Jwt are not allowed"


@dataclass(frozen=True, slots=True)
class Passed:
    request: HttpRequest
    """Without the token, unless the rule lets it go on."""
    claims: Claims


@dataclass(frozen=True, slots=True)
class Rejected:
    status: int
    why: str


def authenticate(rules: Iterable[JwtRule], request: HttpRequest, now_s: float) -> Passed | Rejected:
    """Look for tokens in a request, and judge them.

    Args:
        now_s: when it came, in seconds since 1970.
    """
    faults: list[str] = []
    for rule in sorted(rules, key=lambda rule: rule.issuer):
        for token, without in _tokens(rule, request):
            said = _read(rule, token, now_s)
            if not isinstance(said, str):
                return Passed(request if rule.forward_original_token else without, said)
            faults.append(said)
    if not faults:
        return Passed(request, NOBODY)
    why = next((fault for fault in faults if fault != _UNKNOWN_ISSUER), _UNKNOWN_ISSUER)
    return Rejected(FORBIDDEN if why == _OTHER_AUDIENCE else UNAUTHORIZED, why)


def _tokens(rule: JwtRule, request: HttpRequest) -> Iterator[tuple[str, HttpRequest]]:
    """What stands at the places of a rule, each with the request without it."""
    is_default = not rule.from_headers and not rule.from_params
    for name, prefix in _BEARER if is_default else rule.from_headers:
        text = ",".join(header_values(request, name)) or None
        if text is not None and text.startswith(prefix):
            left = tuple(pair for pair in request.headers if pair[0] != name)
            yield text.removeprefix(prefix), replace(request, headers=left)
    for name in _PARAMETER if is_default else rule.from_params:
        text = query_of(request, name)
        if text is not None:
            yield text, replace(request, path=_without_parameter(request.path, name))


def _without_parameter(whole: str, name: str) -> str:
    path, _, query = whole.partition("?")
    left = "&".join(pair for pair in query.split("&") if pair.partition("=")[0] != name)
    return f"{path}?{left}" if left else path


def _read(rule: JwtRule, token: str, now_s: float) -> Claims | str:
    """The claims of a token that ``rule`` accepts, or why it accepts none."""
    try:
        whole = jwt.decode_complete(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return _MALFORMED
    claims: dict[str, Any] = whole["payload"]
    if rule.issuer and claims.get("iss") != rule.issuer:
        return _UNKNOWN_ISSUER
    if _number(claims, "nbf", now_s) > now_s + SKEW_S:
        return "Jwt not yet valid"
    if _number(claims, "exp", now_s) < now_s - SKEW_S:
        return "Jwt is expired"
    if rule.audiences and _audiences(claims.get("aud")).isdisjoint(_audiences(list(rule.audiences))):
        return _OTHER_AUDIENCE
    if not any(_is_signed_with(key, token, whole["header"]) for key in json.loads(rule.jwks)["keys"]):
        return "Jwt verification fails"
    return {
        name: value.split() if name in _LISTS and isinstance(value, str) else value for name, value in claims.items()
    }


def _number(claims: Claims, name: str, default: float) -> float:
    value = claims.get(name)
    return value if isinstance(value, int | float) and value else default


def _audiences(given: object) -> frozenset[str]:
    """Without scheme and last slash, as Envoy compares them."""
    texts = given if isinstance(given, list) else [given]
    return frozenset(
        text.removeprefix("https://").removeprefix("http://").removesuffix("/")
        for text in texts
        if isinstance(text, str)
    )


def _is_signed_with(key: Mapping[str, Any], token: str, head: Mapping[str, Any]) -> bool:
    """Whether ``key`` may have signed the token, by its name and its algorithm, and did."""
    differ = any(name in key and name in head and key[name] != head[name] for name in ("kid", "alg"))
    if differ or head.get("alg") not in _ALGORITHMS:
        return False
    try:
        jwt.PyJWS().decode(token, jwt.PyJWK(dict(key), head.get("alg")), algorithms=_ALGORITHMS)
    except (jwt.PyJWTError, ValueError):
        return False
    return True
