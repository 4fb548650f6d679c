"""Which requests a check asks of a Service port behind a waypoint: on both sides of every match. Pure.

A plain request comes first. Then, for each match of each rule, and for each operation and header of each policy that
binds there, come the requests that it matches, and for each of its parts one that differs from those in that part
alone. Who is allowed by name is claimed to be the caller in a header, too, which must change nothing.
For each rule of a RequestAuthentication come tokens that nobody signed: no private key is known here.

    path exact /a         ->  /a                          /ax
    path prefix /a        ->  /a   /a/x                   /ax
    header a exact 1      ->  a: 1                        a: 1x    no a
    tokens of issuer a    ->                              text that is no token    one of a    one of another issuer
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from meshlab.apps import language
from meshlab.model import (
    AuthorizationPolicy,
    HttpRequest,
    HttpRule,
    JwtRule,
    Mesh,
    NamedMatch,
    Operation,
    RequestAuthentication,
    RequestMatch,
    Route,
    Service,
    ServicePort,
    StringMatch,
)
from meshlab.oracle import http
from meshlab.oracle.requests import CLIENT_CERTIFICATE

MOST = 64
"""So many requests at most are asked of one Service port."""
_HEADER_KEY = re.compile(r"request\.headers\[(.+)\]")
_OTHER_METHOD = "PUT"
_LATE_S = 0.5
"""By so much a slow answer is later than its rule waits."""
_FAR_S = 1 << 33
"""A time that has not come, in seconds since 1970."""
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Questions:
    """The requests that a check sends to one Service port."""

    requests: tuple[HttpRequest, ...]
    """Each once, the plain one first."""
    unasked: tuple[str, ...] = ()
    """What the check leaves out, and why, each as a sentence."""


def written(request: HttpRequest) -> str:
    """The request in a few words: ``GET server.shop/a``, ``PUT server.shop/ with x-a: 1``."""
    headers = f" with {', '.join(f'{name}: {value}' for name, value in request.headers)}" if request.headers else ""
    return f"{request.method} {request.authority}{request.path}{headers}"


def questions(mesh: Mesh, service: Service, port: ServicePort) -> Questions:
    """The requests for a Service port whose requests a waypoint reads; each is there once."""
    waypoint = mesh.waypoint_of(service)
    assert waypoint is not None, "only a waypoint reads requests"
    plain = HttpRequest(authority=_authority(service, port))
    routes = http.routes_of(mesh, service, port)
    policies = [one for one in mesh.authorization_policies if http.binds(one, mesh, waypoint, service)]
    reading = [one for one in mesh.request_authentications if http.binds(one, mesh, waypoint, service)]
    unasked = dict.fromkeys(chain(*(_without_example(route) for route in routes), map(_unsigned, reading)))
    found = dict.fromkeys(
        chain(
            [plain],
            *(_of_route(plain, route) for route in routes),
            *(_of_policy(plain, policy) for policy in policies),
            *(_of_tokens(plain, rule) for one in reading for rule in one.rules),
        )
    )
    kept = tuple(found)[:MOST]
    if left := len(found) - len(kept):
        unasked[f"{service.key}:{port.port} would be asked {len(found)} requests, of which {left} were left out"] = None
    return Questions(kept, tuple(unasked))


def _authority(service: Service, port: ServicePort) -> str:
    """As a client of the Service has it."""
    name = f"{service.name}.{service.namespace}"
    return name if port.port == 80 else f"{name}:{port.port}"


# --- of a route ------------------------------------------------------------------------------------------------------


def _of_route(plain: HttpRequest, route: Route) -> Iterator[HttpRequest]:
    for rule in route.rules:
        for match in rule.matches:
            hit = _hit(plain, match)
            if hit is None:
                continue
            yield hit
            yield from _more(hit, match)
            yield from _misses(hit, match)
            if match.path is not None and not match.query:
                yield replace(hit, path=_joined(hit.path, "x=1"))
            yield from _edited_already(hit, rule)
            if rule.timeout_s is not None and rule.timeout_s + _LATE_S < language.MOST_DELAY_S:
                yield _slow(hit, rule.timeout_s + _LATE_S)


def _hit(plain: HttpRequest, match: RequestMatch) -> HttpRequest | None:
    """A request that ``match`` matches; ``None`` where no example of one of its parts is known."""
    path = _example(match.path)
    method = _example(match.method)
    authority = _example(match.authority)
    headers = [(each.name, _example(each.value)) for each in match.headers if not each.inverted]
    query = [(each.name, _example(each.value)) for each in match.query if not each.inverted]
    texts = [path, method, authority, *(text for _, text in (*headers, *query))]
    if any(text is None for text in texts):
        return None
    asked = "&".join(f"{name}={text}" for name, text in query)
    return replace(
        plain,
        path=(path or plain.path) + (f"?{asked}" if asked else ""),
        method=method or plain.method,
        authority=authority or plain.authority,
        headers=tuple((name, text or "x") for name, text in headers),
    )


def _more(hit: HttpRequest, match: RequestMatch) -> Iterator[HttpRequest]:
    """Other requests that match, at the edge of a prefix."""
    path, _, query = hit.path.partition("?")
    if match.path is not None and match.path.how in ("prefix", "segments") and path != "/":
        yield replace(hit, path=_joined(f"{path.rstrip('/')}/x", query))


def _edited_already(hit: HttpRequest, rule: HttpRule) -> Iterator[HttpRequest]:
    """The same, with a header of each name that the rule or a backend of it edits."""
    edits = (rule.request_headers, *(backend.request_headers for backend in rule.backends))
    names = [name for each in edits for name in (*dict((*each.set, *each.add)), *each.remove)]
    for name in dict.fromkeys(names):
        if name not in dict(hit.headers) and name not in ("host", ":authority"):
            yield replace(hit, headers=(*hit.headers, (name, "own")))


def _slow(hit: HttpRequest, seconds: float) -> HttpRequest:
    """The same, but that the built-in echo takes so long to answer."""
    mark = "&" if "?" in hit.path else "?"
    return replace(hit, path=f"{hit.path}{mark}delay={round(seconds * 1000)}ms", takes_s=seconds)


def _misses(hit: HttpRequest, match: RequestMatch) -> Iterator[HttpRequest]:
    """Requests that differ from ``hit`` in one part, which no longer matches."""
    path, _, query = hit.path.partition("?")
    if match.path is not None and path != "/":
        yield replace(hit, path=_joined(f"{path}x" if match.path.how in ("exact", "segments") else f"/x{path}", query))
    if match.method is not None:
        yield replace(hit, method=_OTHER_METHOD if hit.method != _OTHER_METHOD else "GET")
    if match.authority is not None:
        yield replace(hit, authority=f"x-{hit.authority}")
    for each in match.headers:
        yield from _other_headers(hit, each)
    for each in match.query:
        yield replace(hit, path=_joined(path, _other_query(query, each)))


def _other_headers(hit: HttpRequest, each: NamedMatch) -> Iterator[HttpRequest]:
    if each.name.startswith(":"):
        return
    others = tuple(pair for pair in hit.headers if pair[0] != each.name)
    if each.inverted:
        yield replace(hit, headers=(*others, (each.name, _example(each.value) or "x")))
        return
    yield replace(hit, headers=others)
    if each.value is not None:
        yield replace(hit, headers=(*others, (each.name, f"x{_example(each.value)}x")))


def _other_query(query: str, each: NamedMatch) -> str:
    left = [pair for pair in query.split("&") if pair and pair.partition("=")[0] != each.name]
    if each.inverted:
        left.append(f"{each.name}={_example(each.value) or 'x'}")
    return "&".join(left)


def _joined(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def _example(match: StringMatch | None) -> str | None:
    """A text that matches: empty where there is nothing to match; ``None`` where none is known, of an expression."""
    if match is None:
        return ""
    if match.how != "regex":
        return match.value
    plain = re.sub(r"\\(.)", r"\1", re.sub(r"\.[*+]\??", "x", match.value)).strip("^$")
    candidates = (plain, re.sub(r"[()?*+|\[\]]", "", plain), "x", "/x", "1", "/")
    return next((text for text in candidates if re.fullmatch(match.value, text)), None)


def _without_example(route: Route) -> Iterator[str]:
    """What of a route nobody asks, for want of a request that matches."""
    for number, rule in enumerate(route.rules, 1):
        if any(_hit(HttpRequest(), match) is None for match in rule.matches):
            yield f"{route.kind} {route.key}: no request is known that a match of rule {number} matches"


# --- of a policy -----------------------------------------------------------------------------------------------------


def _of_policy(plain: HttpRequest, policy: AuthorizationPolicy) -> Iterator[HttpRequest]:
    for rule in policy.rules:
        headers = tuple(
            (named[1].lower(), _like((*condition.values, *condition.not_values)[0]))
            for condition in rule.conditions
            if (named := _HEADER_KEY.fullmatch(condition.key))
        )
        base = replace(plain, headers=headers)
        if headers:
            yield base
            yield plain
        for source in rule.sources:
            for principal in source.principals[:1]:
                said = (CLIENT_CERTIFICATE, f"URI=spiffe://{principal.replace('*', 'x')}")
                yield replace(base, headers=(*headers, said))
        for operation in rule.operations:
            for request in _of_operation(base, operation):
                yield request
                if headers:
                    yield replace(request, headers=())


def _of_operation(base: HttpRequest, operation: Operation) -> Iterator[HttpRequest]:
    paths = (*operation.paths, *operation.not_paths)
    methods = (*operation.methods, *operation.not_methods)
    hosts = (*operation.hosts, *operation.not_hosts)
    hit = replace(
        base,
        path=_path(paths[0]) if paths else base.path,
        method=_method(methods[0]) if methods else base.method,
        authority=_like(hosts[0]) if hosts else base.authority,
    )
    yield hit
    for path in paths:
        yield replace(hit, path=_path(path))
        yield replace(hit, path=f"{_path(path).rstrip('/')}x")
        yield replace(hit, path=f"/x/..{_path(path)}")
        yield replace(hit, path=f"{_path(path)}?x=1")
    for method in methods:
        yield replace(hit, method=_method(method))
    if methods:
        yield replace(
            hit, method=next(name for name in (_OTHER_METHOD, "GET", "POST", "DELETE") if name not in methods)
        )
    for host in hosts:
        yield replace(hit, authority=_like(host).upper())
    if hosts:
        yield replace(hit, authority=f"x-{hit.authority}")


def _like(pattern: str) -> str:
    """A text that a pattern of a policy matches."""
    return pattern.replace("*", "x")


def _method(pattern: str) -> str:
    """A method that a pattern of a policy matches, of those that a proxy need not refuse if it can be."""
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return next((name for name in _METHODS if expression.fullmatch(name)), _like(pattern))


def _path(pattern: str) -> str:
    text = pattern.replace("{**}", "x/y").replace("{*}", "x").replace("*", "x")
    return text if text.startswith("/") else f"/{text}"


# --- of a token ------------------------------------------------------------------------------------------------------


def _of_tokens(plain: HttpRequest, rule: JwtRule) -> Iterator[HttpRequest]:
    for token in ("no-token", _forged(rule, rule.issuer), _forged(rule, f"not-{rule.issuer}")):
        if rule.from_params and not rule.from_headers:
            yield replace(plain, path=f"{plain.path}?{rule.from_params[0]}={token}")
        else:
            name, prefix = rule.from_headers[0] if rule.from_headers else ("authorization", "Bearer ")
            yield replace(plain, headers=((name, f"{prefix}{token}"),))


def _forged(rule: JwtRule, issuer: str) -> str:
    """A token that is right but for its signature, which is the same each time."""
    algorithm, size = ("RS256", 256) if '"RSA"' in rule.jwks else ("ES256", 64)
    claims = {"iss": issuer, "sub": "nobody", "exp": _FAR_S, "aud": list(rule.audiences)}
    parts = (json.dumps({"alg": algorithm, "typ": "JWT"}).encode(), json.dumps(claims).encode(), bytes(range(size)))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def _unsigned(one: RequestAuthentication) -> str:
    return f"RequestAuthentication {one.key}: no request with a good token is asked, for want of a private key"
