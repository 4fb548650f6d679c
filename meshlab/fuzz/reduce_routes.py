"""The routes of a mesh, made smaller in one way after the other; and what hangs on them. Pure.

What comes out can be written: a rule keeps what it does, and where it replaces a part of the path, its matches keep
their paths, since these say which part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from meshlab.lab.calls.names import owner, routed
from meshlab.model import Backend, HeaderEdits, HttpRule, Mesh, RequestMatch, Route, Service, StringMatch

T = TypeVar("T", HttpRule, Backend)
_ROOT = StringMatch("segments", "/")


def less_routes(mesh: Mesh) -> Iterator[Mesh]:
    """``mesh`` with less in its routes; what takes most away comes first."""
    routes = mesh.routes
    if len(routes) > 1:
        yield replace(mesh, routes=())
    for place in range(len(routes)):
        yield replace(mesh, routes=(*routes[:place], *routes[place + 1 :]))
    for place in range(len(mesh.destination_rules)):
        rules = mesh.destination_rules
        yield replace(mesh, destination_rules=(*rules[:place], *rules[place + 1 :]))
    for place, route in enumerate(routes):
        for less in _less_route(route):
            yield replace(mesh, routes=(*routes[:place], less, *routes[place + 1 :]))


def routed_to(mesh: Mesh, to: str) -> set[str]:
    """The pods that a request to ``name.namespace:port`` may come to: the waypoint's, and those of its routes."""
    service = owner(mesh, to)
    waypoint = mesh.waypoint_of(service) if service is not None else None
    if waypoint is None:
        return set()
    reached = routed(mesh, service) if isinstance(service, Service) else []
    return {waypoint.key, *(pod.key for pod in reached)}


def without_strangers(mesh: Mesh) -> Mesh:
    """``mesh`` without routes and DestinationRules that are for Services which are not there."""
    keys = {service.key for service in mesh.services}
    return replace(
        mesh,
        routes=tuple(route for route in mesh.routes if any(key in keys for key, _ in route.services)),
        destination_rules=tuple(rule for rule in mesh.destination_rules if rule.service in keys),
    )


def _less_route(route: Route) -> Iterator[Route]:
    rules = route.rules
    if len(rules) > 1:
        yield from (replace(route, rules=(rule,)) for rule in rules)
        yield from (replace(route, rules=(*rules[:place], *rules[place + 1 :])) for place in range(len(rules)))
    for place, rule in enumerate(rules):
        for less in _less_rule(rule, is_virtual=route.kind == "VirtualService"):
            yield replace(route, rules=(*rules[:place], less, *rules[place + 1 :]))


def _less_rule(rule: HttpRule, *, is_virtual: bool) -> Iterator[HttpRule]:
    replaces = rule.rewrite is not None or rule.redirect is not None
    dropped: dict[str, Any] = {"rewrite": None, "abort": None, "delay": None, "timeout_s": None}
    yield from (replace(rule, **{name: none}) for name, none in dropped.items() if getattr(rule, name) is not None)
    if is_virtual and rule.matches and not replaces:
        yield replace(rule, matches=())
    for place, match in enumerate(rule.matches):
        others = (*rule.matches[:place], *rule.matches[place + 1 :])
        if others:
            yield replace(rule, matches=others)
        for less in _less_match(match, root=None if is_virtual else _ROOT, keeps_path=replaces):
            yield replace(rule, matches=(*rule.matches[:place], less, *rule.matches[place + 1 :]))
    yield from _fewer_backends(rule)
    yield from _less_edits(rule)
    for place, backend in enumerate(rule.backends):
        for less_backend in (*_less_edits(backend), *((replace(backend, subset=""),) if backend.subset else ())):
            yield replace(rule, backends=(*rule.backends[:place], less_backend, *rule.backends[place + 1 :]))


def _less_match(match: RequestMatch, root: StringMatch | None, *, keeps_path: bool) -> Iterator[RequestMatch]:
    plain = RequestMatch(path=match.path if keeps_path else root)
    for name in ("path", "method", "authority", "headers", "query", "port"):
        if getattr(match, name) != getattr(plain, name):
            less: dict[str, Any] = {name: getattr(plain, name)}
            yield replace(match, **less)


def _fewer_backends(rule: HttpRule) -> Iterator[HttpRule]:
    """Without one of several; the only one that is left gets everything."""
    for place in range(len(rule.backends) if len(rule.backends) > 1 else 0):
        left = (*rule.backends[:place], *rule.backends[place + 1 :])
        if len(left) == 1:
            left = (replace(left[0], weight=1),)
        if any(backend.weight for backend in left):
            yield replace(rule, backends=left)


def _less_edits(owner: T) -> Iterator[T]:
    for side in ("request_headers", "response_headers"):
        edits: HeaderEdits = getattr(owner, side)
        for verb in ("set", "add", "remove"):
            if getattr(edits, verb):
                nothing: dict[str, Any] = {verb: ()}
                less: dict[str, Any] = {side: replace(edits, **nothing)}
                yield replace(owner, **less)
