"""What a waypoint does with a request: whether it is allowed, which rule of a route takes it, and what comes of it.

    normalise -> authenticate (the token) -> authorize (DENY, then ALLOW)
        -> abort or delay -> the rule that matches -> one of its backends

Of a rule's edits of headers and those of its backend, the backend's come last, but for the authority, where the rule's
wins: so Istio makes them, whether there is one backend or several.

What is random is a list of outcomes with their chances. An outcome is an answer of the waypoint's own, or the request
as it is sent on, with the pods that may get it. What the server's node proxy says of that is not judged here.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/,
https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule and, for the order of the stages,
https://github.com/istio/istio/blob/master/pilot/pkg/networking/core/listener_waypoint.go
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from meshlab.model import (
    AuthorizationPolicy,
    Backend,
    Connection,
    Decision,
    HeaderEdits,
    HttpRequest,
    HttpRule,
    JwtRule,
    Mesh,
    PodPort,
    Redirect,
    RequestAuthentication,
    RequestMatch,
    Route,
    Service,
    ServicePort,
    StringMatch,
    Verdict,
    Waypoint,
)
from meshlab.model.gateway import WAYPOINT_CLASS
from meshlab.model.route import NO_HTTP, RouteKind
from meshlab.oracle.decide import judged_by
from meshlab.oracle.matching import NOBODY, Claims
from meshlab.oracle.requests import matches, normalised
from meshlab.oracle.tokens import Rejected, authenticate

BAD_REQUEST = 400
DENIED = 403
NO_ROUTE = 404
UNAVAILABLE = 503
TIMED_OUT = 504
_BROKEN = {"HTTPRoute": 500, "VirtualService": 503}
"""What a share of the requests gets whose backend is not there."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = ("host", ":authority")


@dataclass(frozen=True, slots=True)
class Answered:
    """The waypoint answers by itself."""

    status: int
    location: str = ""
    """Of a redirect."""
    body: str | None = None
    """``None``: any."""
    bad_token: str = ""
    """What is wrong with the token of the request."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy of the request goes to one of some pods as well."""

    chance: Fraction
    pods: tuple[PodPort, ...]
    """One at least."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The request goes on to one of some pods."""

    pods: tuple[PodPort, ...]
    """One at least."""
    request: HttpRequest
    """As it is sent on."""
    timeout_s: float | None = None
    """After so long the client gets 504."""
    copies: tuple[Copied, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """What becomes of a share of equal requests."""

    chance: Fraction
    outcome: Answered | Forwarded
    rule: str
    """By which rule, as a sentence."""
    delay_s: float = 0.0
    """How long the waypoint waits first."""
    response_headers: tuple[HeaderEdits, ...] = ()
    """Done to the answer, in this order."""


@dataclass(frozen=True, slots=True)
class Came:
    """A request at a waypoint, and where it came to."""

    waypoint: Waypoint
    service: Service
    port: ServicePort
    connection: Connection
    """From the client to the address of the Service: the client's identity and address, what was dialled."""
    request: HttpRequest
    now_s: float = 0.0
    """When, in seconds since 1970: tokens expire."""


def authorize(
    mesh: Mesh,
    waypoint: Waypoint,
    service: Service | None,
    connection: Connection,
    request: HttpRequest | None,
    claims: Claims = NOBODY,
) -> Decision:
    """What the policies that bind to ``waypoint``, or to ``service``, say of a connection or of a request on it.

    Args:
        claims: what the token of the request says.

    Source: https://istio.io/latest/docs/ambient/usage/l7-features/#targeting-policies-or-routing-rules
    """
    bound = [
        policy
        for policy in mesh.authorization_policies
        if not policy.dry_run and binds(policy, mesh, waypoint, service)
    ]
    return judged_by(sorted(bound, key=lambda policy: policy.key), connection, request, claims, at_waypoint=True)


def jwt_rules(mesh: Mesh, waypoint: Waypoint, service: Service) -> list[JwtRule]:
    """The rules for tokens that bind to ``waypoint``, or to ``service``."""
    bound = [policy for policy in mesh.request_authentications if binds(policy, mesh, waypoint, service)]
    return [rule for policy in bound for rule in policy.rules]


def shares(mesh: Mesh, came: Came, unhealthy: Sequence[str] = ()) -> tuple[Share, ...]:
    """What becomes of a request; the chances add up to one."""
    if came.request == NO_HTTP:
        return (Share(Fraction(1), Answered(BAD_REQUEST), _no_http(came.service, came.port)),)
    came = replace(came, request=normalised(came.request))
    checked = authenticate(jwt_rules(mesh, came.waypoint, came.service), came.request, came.now_s)
    if isinstance(checked, Rejected):
        answer = Answered(checked.status, bad_token=checked.why)
        return (Share(Fraction(1), answer, f"a RequestAuthentication refuses the token: {checked.why}"),)
    came = replace(came, request=checked.request)
    decision = authorize(mesh, came.waypoint, came.service, came.connection, came.request, checked.claims)
    if decision.verdict is Verdict.DENY:
        return (Share(Fraction(1), Answered(DENIED), decision.rule),)
    taken = _taken(mesh, came)
    if taken is None:
        rule = f"no rule of a route of {came.service.key} matches"
        return (Share(Fraction(1), Answered(NO_ROUTE), rule),)
    return tuple(_with_faults(taken, list(_routed(mesh, came, taken, unhealthy))))


def _no_http(service: Service, port: ServicePort) -> str:
    return (
        f"port {port.port} of {service.key} is declared {port.protocol}, and what comes is no HTTP: declare it tcp"
        " (appProtocol, or the beginning of its name), or take the Service from its waypoint"
    )


# --- who may ---------------------------------------------------------------------------------------------------------


_Policy = AuthorizationPolicy | RequestAuthentication


def binds(policy: _Policy, mesh: Mesh, waypoint: Waypoint, service: Service | None) -> bool:
    """Whether one of the targets of ``policy`` is the waypoint, its class, or the Service that is called."""
    return any(
        _is_target(target["kind"], target["name"], policy, mesh, waypoint, service) for target in policy.target_refs
    )


def _is_target(kind: str, name: str, policy: _Policy, mesh: Mesh, waypoint: Waypoint, service: Service | None) -> bool:
    match kind:
        case "Gateway":
            return (name, policy.namespace) == (waypoint.name, waypoint.namespace)
        case "Service":
            return service is not None and (name, policy.namespace) == (service.name, service.namespace)
        case "GatewayClass":
            return (name, policy.namespace) == (WAYPOINT_CLASS, mesh.root_namespace)
        case _:
            return False


# --- which rule ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Taken:
    """The rule that takes a request, and the match by which it does."""

    rule: HttpRule
    match: RequestMatch
    name: str
    """Of its route and of itself, for a sentence."""
    kind: RouteKind = "HTTPRoute"

    @property
    def broken(self) -> int:
        """The status of a share whose backend is not there."""
        return _BROKEN[self.kind]


def _taken(mesh: Mesh, came: Came) -> _Taken | None:
    """Where no rule is for the port, as where there is no route, the Service's own endpoints get everything."""
    possible = _rules(mesh, came.service, came.port)
    if not possible:
        own = HttpRule(backends=(Backend(service=came.service.key, port=came.port.port),))
        return _Taken(own, RequestMatch(), f"{came.service.key} (without a route)")
    return next((one for one in possible if matches(one.match, came.request, came.port.port)), None)


def _rules(mesh: Mesh, service: Service, port: ServicePort) -> list[_Taken]:
    """Every rule for ``port`` of ``service`` with each of its matches, in the order in which they are looked at."""
    routes = routes_of(mesh, service, port)
    each = [
        _Taken(
            rule, match, f"{route.kind} {route.key}: rule {number}{f' ({rule.name})' if rule.name else ''}", route.kind
        )
        for route in routes
        for number, rule in enumerate(route.rules, 1)
        for match in rule.matches or (RequestMatch(),)
        if match.port in (None, port.port)
    ]
    return sorted(each, key=lambda one: _precedence(one.match)) if routes and routes[0].kind == "HTTPRoute" else each


def routes_of(mesh: Mesh, service: Service, port: ServicePort) -> list[Route]:
    """The routes in effect for ``port`` of ``service``: every HTTPRoute; of the other kinds the oldest one only."""
    routes = [route for route in mesh.routes if _is_for(route, mesh, service, port)]
    return routes if routes and routes[0].kind == "HTTPRoute" else routes[:1]


def _is_for(route: Route, mesh: Mesh, service: Service, port: ServicePort) -> bool:
    """A waypoint honours routes of its own namespace, and of the Service's."""
    waypoint = mesh.waypoint_of(service)
    near = {service.namespace, waypoint.namespace if waypoint else service.namespace}
    named = any(key == service.key and number in (None, port.port) for key, number in route.services)
    return named and route.namespace in near


def _precedence(match: RequestMatch) -> tuple[int, int, bool, int, int]:
    """Less comes first: exact path, the longest prefix, a method, the most headers, the most query parameters.

    An expression comes behind the prefixes, which the Gateway API leaves open. No path is the prefix of all.
    """
    path = match.path or StringMatch("segments", "/")
    rank = {"exact": 0, "segments": 1, "prefix": 1, "regex": 2}[path.how]
    return (rank, -len(path.value), match.method is None, -len(match.headers), -len(match.query))


# --- what it does ----------------------------------------------------------------------------------------------------


def _with_faults(taken: _Taken, routed: Sequence[Share]) -> Iterator[Share]:
    """A delay comes first, and an abort after it; each strikes by itself."""
    delay, abort = taken.rule.delay, taken.rule.abort
    delayed = Fraction(0) if delay is None else _percent(delay.percent)
    aborted = Fraction(0) if abort is None else _percent(abort.percent)
    for delay_s, chance in ((0.0, 1 - delayed), (delay.seconds if delay else 0.0, delayed)):
        if abort is not None and chance * aborted:
            yield Share(chance * aborted, Answered(abort.status), f"{taken.name} aborts", delay_s)
        for share in routed:
            if left := chance * (1 - aborted) * share.chance:
                yield replace(share, chance=left, delay_s=delay_s)


def _percent(percent: float) -> Fraction:
    """Envoy draws with a resolution of one in a million."""
    return Fraction(round(percent * 10_000), 1_000_000)


def _routed(mesh: Mesh, came: Came, taken: _Taken, unhealthy: Sequence[str]) -> Iterator[Share]:
    one, rule = Fraction(1), taken.rule
    if rule.redirect is not None:
        location = _location(came, rule.redirect, taken)
        yield Share(one, Answered(rule.redirect.status, location), f"{taken.name} redirects")
        return
    if rule.direct_response is not None:
        answer = Answered(rule.direct_response.status, body=rule.direct_response.body or None)
        yield Share(one, answer, f"{taken.name} answers", response_headers=(rule.response_headers,))
        return
    total = sum(backend.weight for backend in rule.backends)
    if not total:
        yield Share(one, Answered(taken.broken), f"{taken.name} has no backend")
        return
    for backend in rule.backends:
        if backend.weight:
            yield replace(_to_backend(mesh, came, taken, backend, unhealthy), chance=Fraction(backend.weight, total))


def _to_backend(mesh: Mesh, came: Came, taken: _Taken, backend: Backend, unhealthy: Sequence[str]) -> Share:
    one, rule = Fraction(1), taken.rule
    name = f"{taken.name} sends to {named(backend, came.port)}"
    response_headers = (rule.response_headers, backend.response_headers)
    pods = endpoints(mesh, backend, came.port, unhealthy)
    if pods is None:
        return Share(one, Answered(taken.broken), f"{name}, which is not there")
    if not pods:
        return Share(one, Answered(UNAVAILABLE), f"{name}, which has no endpoint", response_headers=response_headers)
    request = _edited(came.request, rule.request_headers)
    authority = request.authority if request.authority != came.request.authority else None
    request = _edited(request, backend.request_headers)
    request = _rewritten(replace(request, authority=authority or request.authority), taken)
    forwarded = Forwarded(pods, request, rule.timeout_s, tuple(_copied(mesh, came, rule, unhealthy)))
    return Share(one, forwarded, name, response_headers=response_headers)


def _copied(mesh: Mesh, came: Came, rule: HttpRule, unhealthy: Sequence[str]) -> Iterator[Copied]:
    """Only what is sent on is copied. Envoy appends ``-shadow`` to the host of a copy, which is left open here."""
    for mirror in rule.mirrors:
        pods, chance = endpoints(mesh, mirror.backend, came.port, unhealthy), _percent(mirror.percent)
        if pods and chance:
            yield Copied(chance, pods)


def endpoints(
    mesh: Mesh, backend: Backend, called: ServicePort, unhealthy: Sequence[str] = ()
) -> tuple[PodPort, ...] | None:
    """The pods of a backend; ``None`` where its Service, the port or the subset is not there."""
    service = next((service for service in mesh.services if service.key == backend.service), None)
    wanted = backend.port or (called.port if service is None or len(service.ports) > 1 else service.ports[0].port)
    port = next((port for port in service.ports if port.port == wanted), None) if service else None
    labels = mesh.subset(service, backend.subset) if service else None
    if service is None or port is None or labels is None:
        return None
    return tuple(
        PodPort(pod.key, number)
        for pod, number in mesh.backends(service, port)
        if labels.items() <= pod.labels.items() and pod.key not in unhealthy
    )


def named(backend: Backend, called: ServicePort) -> str:
    subset = f" ({backend.subset})" if backend.subset else ""
    return f"{backend.service}:{backend.port or called.port}{subset}"


# --- what is changed -------------------------------------------------------------------------------------------------


def _rewritten(request: HttpRequest, taken: _Taken) -> HttpRequest:
    rewrite = taken.rule.rewrite
    if rewrite is None:
        return request
    path = _other_path(request.path, taken.match, rewrite.path, rewrite.prefix)
    return replace(request, path=path, authority=rewrite.authority or request.authority)


def _other_path(whole: str, match: RequestMatch, full: str | None, prefix: str | None) -> str:
    """The path with another one in its place, or with another prefix; the query stays.

    A prefix of segments keeps the slash between itself and the rest: ``/a`` -> ``/`` makes ``/a/b`` to ``/b``. One of
    characters is replaced as it stands. Where an exact path or an expression matched, all of it is replaced.
    """
    path, mark, query = whole.partition("?")
    if full is not None:
        return full + mark + query
    if prefix is None:
        return whole
    found = match.path
    if found is None:
        rest = path[1:]
    elif found.how == "segments":
        rest = path[len(found.value.rstrip("/")) :]
        return (prefix.rstrip("/") + rest or "/") + mark + query
    elif found.how == "prefix":
        rest = path[len(found.value) :]
    else:
        rest = ""
    return prefix + rest + mark + query


def _edited(request: HttpRequest, edits: HeaderEdits) -> HttpRequest:
    """What is removed goes first."""
    authority, headers = request.authority, [pair for pair in request.headers if pair[0] not in edits.remove]
    for name, value in edits.set:
        if name in _AUTHORITY:
            authority = value
        else:
            headers = [pair for pair in headers if pair[0] != name] + [(name, value)]
    for name, value in edits.add:
        if name in _AUTHORITY:
            authority = value
        else:
            headers.append((name, value))
    return replace(request, authority=authority, headers=tuple(headers))


def _location(came: Came, redirect: Redirect, taken: _Taken) -> str:
    """Where a redirect leads. One of an HTTPRoute that names neither port nor scheme means the port that was called."""
    of_gateway_api = taken.kind == "HTTPRoute"
    scheme = redirect.scheme or "http"
    host = redirect.authority or came.request.authority
    port = redirect.port or (came.port.port if of_gateway_api and redirect.scheme is None else None)
    if port is not None:
        bare = host if redirect.authority else _without_port(host)
        host = bare if port == _DEFAULT_PORTS.get(scheme) else f"{bare}:{port}"
    elif redirect.scheme and not redirect.authority and (of_gateway_api or host.endswith(":80")):
        host = _without_port(host)  # a VirtualService keeps a port that is not HTTP's own, as Envoy does
    return f"{scheme}://{host}{_other_path(came.request.path, taken.match, redirect.path, redirect.prefix)}"


def _without_port(authority: str) -> str:
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() else authority
