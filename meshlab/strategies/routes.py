"""Routes, and policies of requests, for the Services of a mesh whose requests a waypoint reads.

    http_routes(mesh)        one HTTPRoute or VirtualService
    request_policies(mesh)   one AuthorizationPolicy of a waypoint, with every field of L7 in it sooner or later
    routings(mesh)           ``mesh`` with some of both, mostly about one Service, in place of its own

Words are few and near each other, so that rules overlap: ``/a`` is a prefix of ``/a/b`` and of ``/ab``, but no segment
of the latter. Weights are mostly 0 or all of it, and an abort strikes always, so that what comes of a request is
mostly certain. Whatever these give, Istio's API server takes: ``topology.dump`` writes it and ``topology.load`` reads
it back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from hypothesis import strategies as st

from meshlab.model import (
    FAMILIES,
    WAYPOINT_CLASS,
    Abort,
    Action,
    AuthorizationPolicy,
    Backend,
    Condition,
    Connection,
    DirectResponse,
    Family,
    HeaderEdits,
    HttpRule,
    Mesh,
    NamedMatch,
    Operation,
    Redirect,
    RequestMatch,
    Rewrite,
    Route,
    Rule,
    Service,
    ServicePort,
    Source,
    StringMatch,
)
from meshlab.model.route import Matching
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.near import CONDITION, SOURCE, Near, ValuesOf

Kind = Literal["HTTPRoute", "VirtualService"]
KINDS: tuple[Kind, Kind] = ("HTTPRoute", "VirtualService")
PATHS = ("/a", "/a/b", "/ab", "/A", "/b", "/a/b/c")
NAMES = ("x-a", "x-b", "x-ab")
TEXTS = ("1", "12", "a", "A")
_METHODS = ("GET", "PUT", "POST", "DELETE")
_CHOICES = 160
_GATEWAY_API = "gateway.networking.k8s.io"
_ACTIONS: dict[Kind, tuple[str, ...]] = {
    "HTTPRoute": ("route", "route", "route", "route", "rewrite", "rewrite", "redirect"),
    "VirtualService": (
        "route",
        "route",
        "route",
        "route",
        "rewrite",
        "rewrite",
        "redirect",
        "answer",
        "abort",
        "abort",
    ),
}


def http_routes(mesh: Mesh, name: str = "generated") -> st.SearchStrategy[Route]:
    """An HTTPRoute or a VirtualService for a Service of ``mesh``.

    Raises:
        ValueError: a waypoint reads the requests to none of them.
    """
    _ = places_read(mesh)
    return drawn(lambda choices: draw_route(RouteDrawing.about(choices, mesh), name), _CHOICES // 2)


def request_policies(mesh: Mesh, name: str = "generated") -> st.SearchStrategy[AuthorizationPolicy]:
    """An AuthorizationPolicy for a Service of ``mesh`` or for its waypoint. Raises as ``http_routes``."""
    _ = places_read(mesh)
    return drawn(lambda choices: draw_request_policy(RouteDrawing.about(choices, mesh), name), _CHOICES // 4)


def routings(mesh: Mesh) -> st.SearchStrategy[Mesh]:
    """``mesh`` with generated routes, policies of requests, or both, and none of its own. Raises as ``http_routes``."""
    _ = places_read(mesh)
    return drawn(lambda choices: draw_routing(choices, mesh), _CHOICES)


def places_read(mesh: Mesh) -> list[tuple[Service, ServicePort]]:
    """The ports of Services whose requests a waypoint reads.

    Raises:
        ValueError: there is none.
    """
    places = [
        (service, port) for service in mesh.services for port in service.ports if mesh.reads_requests(service, port)
    ]
    if not places:
        raise ValueError("no waypoint reads a request: no Service behind one has a port that is declared http")
    return places


@dataclass(frozen=True, slots=True)
class RouteDrawing:
    """What all parts of one example share."""

    choices: Choices
    mesh: Mesh
    service: Service
    port: ServicePort
    near: Near
    """A call to that port, as the waypoint sees it."""
    kind: Kind

    @classmethod
    def about(cls, choices: Choices, mesh: Mesh) -> RouteDrawing:
        service, port = choices.one_of(places_read(mesh))
        caller = choices.one_of([pod for pod in mesh.pods if mesh.is_enrolled(pod)] or mesh.pods)
        family: Family = choices.one_of([family for family in FAMILIES if service.address(family)] or FAMILIES)
        seen = Connection(
            source=caller.identity(mesh.trust_domain),
            source_ip=caller.address(family),
            destination=(mesh.endpoints(service) or mesh.pods)[0].key,
            destination_ip=service.address(family) or caller.address(family),
            port=port.port,
        )
        return cls(choices, mesh, service, port, Near(mesh, seen), choices.one_of(KINDS))

    def anew(self) -> RouteDrawing:
        """About another Service, or the same one with routes of the same kind."""
        other = RouteDrawing.about(self.choices, self.mesh)
        return replace(other, kind=self.kind) if other.service == self.service else other

    @property
    def host(self) -> str:
        return f"{self.service.name}.{self.service.namespace}"


def draw_routing(choices: Choices, mesh: Mesh) -> Mesh:
    """Routes alone, policies alone, or both: a policy hides what a route would have done."""
    drawing = RouteDrawing.about(choices, mesh)
    routes, policies = choices.one_of(((1, 0), (1, 0), (2, 0), (1, 1), (1, 1), (2, 2), (0, 1), (0, 2)))
    drawings = [drawing, *(drawing.anew() for _ in range(1, max(routes, policies)))]
    kinds = {each.service.key: each.kind for each in reversed(drawings)}
    drawings = [replace(each, kind=kinds[each.service.key]) for each in drawings]
    return replace(
        mesh,
        routes=tuple(draw_route(each, f"route-{number}") for number, each in enumerate(drawings[:routes])),
        authorization_policies=tuple(
            draw_request_policy(each, f"request-{number}") for number, each in enumerate(drawings[:policies])
        ),
        peer_authentications=(),
    )


# --- routes ----------------------------------------------------------------------------------------------------------


def draw_route(drawing: RouteDrawing, name: str) -> Route:
    """For one Service; two times in three its last rule takes every request that is left."""
    choices, kind = drawing.choices, drawing.kind
    port = choices.one_of((None, drawing.port.port)) if kind == "HTTPRoute" else None
    rules = [
        _rule(drawing, choices.several(lambda: _match(drawing), least=2)) for _ in range(choices.one_of((1, 2, 3)))
    ]
    if choices.one_of((True, True, False)):
        rules.append(_rule(drawing, (RequestMatch(path=_ROOT),) if kind == "HTTPRoute" else ()))
    return Route(
        kind=kind,
        name=name,
        namespace=drawing.service.namespace,
        services=((drawing.service.key, port),),
        rules=tuple(rules),
    )


_ROOT = StringMatch("segments", "/")
"""What an HTTPRoute means where it names no path."""


def _match(drawing: RouteDrawing) -> RequestMatch:
    choices, virtual = drawing.choices, drawing.kind == "VirtualService"
    common = (("path",), ("path",), ("headers",), ("method",), ("query",), ("path", "headers"), ("path", "method"))
    parts = choices.one_of((*common, *((("authority",), ("port",)) if virtual else ())))
    path = _path(drawing) if "path" in parts else None if virtual else _ROOT
    return RequestMatch(
        path=path,
        method=StringMatch("exact", choices.one_of(_METHODS)) if "method" in parts else None,
        authority=StringMatch("exact", choices.one_of((drawing.host, "x.example"))) if "authority" in parts else None,
        headers=_named(drawing) if "headers" in parts else (),
        query=(NamedMatch("q", StringMatch("exact", choices.one_of(TEXTS))),) if "query" in parts else (),
        port=choices.one_of([port.port for port in drawing.service.ports]) if "port" in parts else None,
    )


def _path(drawing: RouteDrawing) -> StringMatch:
    choices = drawing.choices
    how: Matching
    if drawing.kind == "HTTPRoute":
        how = choices.one_of(("exact", "segments"))
        return StringMatch(how, choices.one_of(PATHS))
    how = choices.one_of(("exact", "prefix"))
    return StringMatch(how, choices.one_of(PATHS), ignore_case=choices.one_of((False, False, False, True)))


def _named(drawing: RouteDrawing) -> tuple[NamedMatch, ...]:
    """One header or two; of a VirtualService, also that one is there, that its value begins so, or none of it."""
    choices, virtual = drawing.choices, drawing.kind == "VirtualService"

    def one(name: str) -> NamedMatch:
        how: Matching = choices.one_of(("exact", "prefix")) if virtual else "exact"
        value = StringMatch(how, choices.one_of(TEXTS))
        if not virtual:
            return NamedMatch(name, value)
        return NamedMatch(name, choices.one_of((value, value, None)), inverted=choices.one_of((False, False, True)))

    found = [one(name) for name in dict.fromkeys(choices.several(lambda: choices.one_of(NAMES)))]
    return tuple(sorted(found, key=lambda each: each.inverted))


def _rule(drawing: RouteDrawing, matches: tuple[RequestMatch, ...]) -> HttpRule:
    choices = drawing.choices
    action = choices.one_of(_ACTIONS[drawing.kind])
    rule = HttpRule(matches=matches)
    edits: dict[str, Any] = {}
    if choices.one_of((False, True)):
        edits = {choices.one_of(("request_headers", "response_headers")): _edits(drawing)}
    match action:
        case "redirect":
            return replace(rule, redirect=_redirect(drawing, matches), **edits)
        case "answer":
            body = choices.one_of(("", "drawn"))
            return replace(rule, direct_response=DirectResponse(status=choices.one_of((200, 404, 503)), body=body))
        case "abort":
            abort = Abort(status=choices.one_of((500, 418, 503)), percent=choices.one_of((100.0, 100.0, 100.0, 50.0)))
            return replace(rule, backends=_backends(drawing), abort=abort, **edits)
        case "rewrite":
            return replace(rule, backends=_backends(drawing), rewrite=_rewrite(drawing, matches), **edits)
        case _:
            return replace(rule, backends=_backends(drawing), **edits)


def _backends(drawing: RouteDrawing) -> tuple[Backend, ...]:
    """One, or two of which one gets nothing; rarely two that share."""
    choices = drawing.choices
    weights = choices.one_of(((1,), (1,), (100, 0), (0, 100), (0, 100), (50, 50)))
    first, *others = (_backend(drawing, weight) for weight in weights)
    return (first, *others)


def _backend(drawing: RouteDrawing, weight: int) -> Backend:
    """A Service of the namespace, mostly one that is there; of a VirtualService, often a subset of it."""
    choices, mesh, virtual = drawing.choices, drawing.mesh, drawing.kind == "VirtualService"
    around = [
        (service, port)
        for service in mesh.services
        for port in service.ports
        if service.namespace == drawing.service.namespace and not mesh.is_of_waypoint(service)
    ]
    service, port = choices.one_of([(drawing.service, drawing.port), *around])
    subsets = [name for rule in mesh.destination_rules if rule.service == service.key for name in rule.subsets]
    subset = choices.one_of([*subsets, ""]) if virtual and subsets else ""
    key = f"absent.{service.namespace}" if choices.rarely() else service.key
    side = choices.one_of(("", "", "", "request_headers", "response_headers"))
    edits: dict[str, Any] = {side: _edits(drawing)} if side else {}
    return Backend(service=key, port=port.port, subset=subset, weight=weight, **edits)


def _edits(drawing: RouteDrawing) -> HeaderEdits:
    """One verb or two, each of another header."""
    choices = drawing.choices
    verbs = dict.fromkeys(choices.several(lambda: choices.one_of(("remove", "set", "add"))))
    first = choices.number()
    names = [NAMES[(first + place) % len(NAMES)] for place in range(len(NAMES))]
    made: dict[str, Any] = {}
    for verb, name in zip(verbs, names, strict=False):
        made[verb] = (name,) if verb == "remove" else ((name, choices.one_of(TEXTS)),)
    return HeaderEdits(**made)


def _rewrite(drawing: RouteDrawing, matches: tuple[RequestMatch, ...]) -> Rewrite:
    """Of the path, in the form that the matches allow, of the authority, or of both."""
    choices = drawing.choices
    key = _replaceable(drawing, matches)
    path = {key: choices.one_of(("/", "/z", "/z/"))} if key else {}
    authority = "y.example" if not path or choices.one_of((False, False, True)) else None
    return Rewrite(authority=authority, **path)


def _redirect(drawing: RouteDrawing, matches: tuple[RequestMatch, ...]) -> Redirect:
    choices = drawing.choices
    key = _replaceable(drawing, matches)
    if drawing.kind == "VirtualService" and key == "path":
        key = choices.one_of(("path", ""))
    path = {key: choices.one_of(("/z", "/z/y"))} if key and choices.one_of((True, True, False)) else {}
    return Redirect(
        status=choices.one_of((301, 302, 303, 307, 308)),
        scheme=choices.one_of((None, None, "http", "https")),
        authority=choices.one_of((None, "z.example")) if path else "z.example",
        port=choices.one_of((None, None, 8443)),
        **path,
    )


def _replaceable(drawing: RouteDrawing, matches: tuple[RequestMatch, ...]) -> str:
    """What of a path these matches let a rule replace: ``path``, ``prefix``, or nothing."""
    hows = {match.path.how if match.path else "prefix" for match in matches} or {"prefix"}
    if drawing.kind == "HTTPRoute":
        return drawing.choices.one_of(("prefix", "path")) if hows == {"segments"} else "path"
    return {frozenset({"exact"}): "path", frozenset({"prefix"}): "prefix"}.get(frozenset(hows), "")


# --- policies --------------------------------------------------------------------------------------------------------


OPERATION_FIELDS = ("paths", "not_paths", "methods", "not_methods", "hosts", "not_hosts", "ports", "not_ports")


def draw_request_policy(drawing: RouteDrawing, name: str) -> AuthorizationPolicy:
    choices, mesh, service = drawing.choices, drawing.mesh, drawing.service
    action = choices.one_of((Action.ALLOW, Action.DENY))
    waypoint = mesh.waypoint_of(service)
    assert waypoint is not None, "its requests are read"
    kind = choices.one_of(("Service", "Service", "Service", "Gateway", "GatewayClass"))
    target, namespace = {
        "Service": ({"group": "", "kind": kind, "name": service.name}, service.namespace),
        "Gateway": ({"group": _GATEWAY_API, "kind": kind, "name": waypoint.name}, waypoint.namespace),
        "GatewayClass": ({"group": _GATEWAY_API, "kind": kind, "name": WAYPOINT_CLASS}, mesh.root_namespace),
    }[kind]
    return AuthorizationPolicy(
        name=name,
        namespace=namespace,
        action=action,
        rules=choices.several(lambda: _policy_rule(drawing)),
        target_refs=(target,),
    )


def _policy_rule(drawing: RouteDrawing) -> Rule:
    choices = drawing.choices
    parts = choices.one_of((("to",), ("to",), ("from",), ("when",), ("from", "to"), ("to", "when"), ("from", "when")))
    return Rule(
        sources=choices.several(lambda: _source(drawing)) if "from" in parts else (),
        operations=choices.several(lambda: _operation(drawing)) if "to" in parts else (),
        conditions=(_condition(drawing),) if "when" in parts else (),
    )


def _source(drawing: RouteDrawing) -> Source:
    """One field, mostly a principal; a value and rarely a second one."""
    choices = drawing.choices
    name = choices.one_of(("principals", "principals", "not_principals", *SOURCE))
    return Source(**_values(drawing, SOURCE, name))


def _operation(drawing: RouteDrawing) -> Operation:
    choices, host, port = drawing.choices, drawing.host, drawing.port.port
    texts: dict[str, tuple[str, ...]] = {
        "paths": (*PATHS, "/a*", "/a/*", "*b", "*/b", "/a/{*}", "/a/{**}", "/{*}/b", "*"),
        "methods": (*_METHODS, "P*", "*T", "*"),
        "hosts": (host, f"{host}:{port}", f"{host}*", f"*.{drawing.service.namespace}", "x.example", host.upper(), "*"),
        "ports": (str(port), str(port + 1)),
    }
    names = dict.fromkeys(choices.several(lambda: choices.one_of(OPERATION_FIELDS)))
    some = {name: partial(choices.one_of, texts[name.removeprefix("not_")]) for name in names}
    return Operation(**{name: choices.several(make) for name, make in some.items()})


def _condition(drawing: RouteDrawing) -> Condition:
    choices = drawing.choices
    values = choices.one_of(("values", "not_values"))
    if choices.one_of((True, True, False)):
        key, texts = f"request.headers[{choices.one_of(NAMES)}]", (*TEXTS, "1*", "*2", "*")
        return Condition(key=key, **{values: choices.several(lambda: choices.one_of(texts))})
    key = choices.one_of(tuple(CONDITION))
    return Condition(key=key, **{values: _values(drawing, CONDITION, key)[key]})


def _values(drawing: RouteDrawing, fields: ValuesOf, name: str) -> dict[str, tuple[str, ...]]:
    values = fields[name](drawing.near).all
    return {name: drawing.choices.several(lambda: drawing.choices.one_of(values))}
