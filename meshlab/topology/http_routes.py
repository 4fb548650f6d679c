"""HTTPRoute and TCPRoute: from a checked document to the model.

A waypoint honours a route for the Services that are its parents, and those of its own namespace only. Gateways, which
may be parents too, are where an ingress would listen; the lab has none.

Source: https://gateway-api.sigs.k8s.io/mesh/ and https://gateway-api.sigs.k8s.io/reference/spec/#httproute,
https://gateway-api.sigs.k8s.io/reference/spec/#tcproute
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from meshlab.model import (
    Backend,
    HeaderEdits,
    HttpRule,
    Mirror,
    NamedMatch,
    Redirect,
    RequestMatch,
    Rewrite,
    Route,
    StringMatch,
    TcpRule,
)
from meshlab.model.route import Matching
from meshlab.topology import shapes
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes

REQUEST_HEADERS, RESPONSE_HEADERS = "requestHeaderModifier", "responseHeaderModifier"
FILTERS = {
    "RequestHeaderModifier": REQUEST_HEADERS,
    "ResponseHeaderModifier": RESPONSE_HEADERS,
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
}
"""Type -> the key that such a filter has."""
PATH_TYPES: dict[str, Matching] = {"Exact": "exact", "PathPrefix": "segments", "RegularExpression": "regex"}
_REDIRECT_STATUS = 302


def http_route(document: Map, notes: Notes) -> Route:
    """A ``kind: HTTPRoute``; one without ``services`` has no effect."""
    metadata, spec = document.map("metadata"), document.map("spec")
    namespace = metadata.text("namespace", "default")
    rules = spec.maps("rules") or (Map(spec.place),)  # the API server adds one that matches everything
    route = Route(
        kind="HTTPRoute",
        name=metadata.text("name"),
        namespace=namespace,
        services=tuple(dict.fromkeys(_services(spec, namespace, notes))),
        rules=tuple(_rule(rule, namespace, notes) for rule in rules),
    )
    _warn_without_services(route, metadata, notes)
    return route


def tcp_route(document: Map, notes: Notes) -> Route:
    """A ``kind: TCPRoute``; one without ``services`` has no effect."""
    metadata, spec = document.map("metadata"), document.map("spec")
    namespace = metadata.text("namespace", "default")
    rules = spec.maps("rules")
    if len(rules) != 1:
        notes.refuse(
            spec.at("rules"), f"a TCPRoute has one rule, since nothing tells connections apart, not {len(rules)}"
        )
    for rule in rules:
        if not rule.maps("backendRefs"):
            notes.refuse(rule.place, "a rule of a TCPRoute needs backendRefs")
    route = Route(
        kind="TCPRoute",
        name=metadata.text("name"),
        namespace=namespace,
        services=tuple(dict.fromkeys(_services(spec, namespace, notes))),
        tcp=tuple(
            TcpRule(backends=tuple(_backend(backend, namespace, notes) for backend in rule.maps("backendRefs")))
            for rule in rules
        ),
    )
    _warn_without_services(route, metadata, notes)
    return route


def _warn_without_services(route: Route, metadata: Map, notes: Notes) -> None:
    if not route.services:
        message = f"the {route.kind} '{route.key}' has no effect: no Service of its namespace is among its parentRefs"
        notes.warn(metadata.at("name"), message)


def _services(spec: Map, namespace: str, notes: Notes) -> Iterator[tuple[str, int | None]]:
    for parent in spec.maps("parentRefs"):
        kind, name = parent.text("kind", "Gateway"), parent.text("name")
        where = parent.text("namespace", namespace)
        if kind != "Service":
            why = "the lab has no ingress, and only Services can be parents in a mesh"
            notes.warn(parent.place, f"the parent {kind} '{name}' has no effect: {why}")
        elif parent.text("group", "gateway.networking.k8s.io") not in ("", "core"):
            notes.refuse(parent.at("group"), "a Service is of the group '': write `group: \"\"`")
        elif where != namespace:
            why = f"a waypoint honours routes of the Service's own namespace only, and this one is of '{namespace}'"
            notes.warn(parent.at("namespace"), f"the parent Service '{name}.{where}' has no effect: {why}")
        else:
            yield f"{name}.{namespace}", _whole(parent, "port")


def _whole(entry: Map, key: str) -> int | None:
    value = entry.value(key)
    return value if isinstance(value, int) else None


def _rule(rule: Map, namespace: str, notes: Notes) -> HttpRule:
    matches = rule.maps("matches") or (Map(rule.place),)
    timeout = shapes.milliseconds(rule.map("timeouts").text("request"))
    made: dict[str, Any] = _filtered(rule, namespace, notes)
    if "redirect" in made and ("rewrite" in made or rule.maps("backendRefs")):
        notes.refuse(rule.place, "a rule with a RequestRedirect has neither backendRefs nor a URLRewrite")
    if "redirect" in made and "mirrors" in made:
        notes.refuse(rule.place, "a rule with a RequestRedirect mirrors nothing, since it sends nothing on")
    if any(made[key].prefix is not None for key in ("redirect", "rewrite") if key in made):
        for match in matches:
            if match.map("path").text("type", "PathPrefix") != "PathPrefix":
                notes.refuse(match.place, "ReplacePrefixMatch needs a match of the type PathPrefix in every match")
    return HttpRule(
        name=rule.text("name"),
        matches=tuple(_match(match, notes) for match in matches),
        backends=tuple(_backend(backend, namespace, notes) for backend in rule.maps("backendRefs")),
        timeout_s=float(timeout) / 1000 if timeout else None,
        **made,
    )


# --- matches ---------------------------------------------------------------------------------------------------------


def _match(match: Map, notes: Notes) -> RequestMatch:
    method = match.text("method")
    return RequestMatch(
        path=_path(match.map("path"), notes),
        method=StringMatch("exact", method) if method else None,
        headers=_named(match.maps("headers"), notes, lower=True),
        query=_named(match.maps("queryParams"), notes, lower=False),
    )


def _path(path: Map, notes: Notes) -> StringMatch:
    how, value = PATH_TYPES[path.text("type", "PathPrefix")], path.text("value", "/")
    _hold(path, value, shapes.REGEX if how == "regex" else shapes.ROUTE_PATH, notes)
    return StringMatch(how, value)


def _named(entries: Iterable[Map], notes: Notes, *, lower: bool) -> tuple[NamedMatch, ...]:
    found: dict[str, NamedMatch] = {}
    for entry in entries:
        name = entry.text("name").lower() if lower else entry.text("name")
        how, value = PATH_TYPES[entry.text("type", "Exact")], entry.text("value")
        if how == "regex":
            _hold(entry, value, shapes.REGEX, notes)
        if name in found:
            notes.refuse(entry.at("name"), f"'{name}' is there twice in one match")
        found[name] = NamedMatch(name, StringMatch(how, value))
    return tuple(found.values())


def _hold(entry: Map, value: str, shape: shapes.Shape, notes: Notes) -> None:
    if not shape.takes(value):
        notes.refuse(entry.at("value"), f"value: '{value}' must be {shape.words}.")


# --- backends and filters --------------------------------------------------------------------------------------------


def _backend(entry: Map, namespace: str, notes: Notes) -> Backend:
    if entry.text("namespace", namespace) != namespace:
        why = "it needs a ReferenceGrant, which the lab does not read; route to a Service of the route's namespace"
        notes.refuse(entry.at("namespace"), f"a backend in the namespace '{entry.text('namespace')}' is refused: {why}")
    weight = _whole(entry, "weight")
    return Backend(
        service=f"{entry.text('name')}.{namespace}",
        port=_whole(entry, "port") or 0,
        weight=1 if weight is None else weight,
        **_filtered(entry, namespace, notes),
    )


def _filtered(owner: Map, namespace: str, notes: Notes) -> dict[str, Any]:
    """What the filters of a rule or of a backend come to, under the names of the model."""
    made: dict[str, Any] = {}
    for entry in owner.maps("filters"):
        kind = entry.text("type")
        key = FILTERS.get(kind, "")
        if not key:
            continue  # already noted by the table
        if others := [other for other in FILTERS.values() if other in entry and other != key]:
            notes.refuse(entry.at(others[0]), f"{others[0]} does not go with the type {kind}")
        if key not in entry:
            notes.refuse(entry.place, f"a filter of the type {kind} needs the key '{key}'")
        if kind == "RequestMirror":
            made["mirrors"] = (*made.get("mirrors", ()), _mirror(entry.map(key), namespace, notes))
            continue
        name, value = _filter(key, entry.map(key), notes)
        if name in made:
            notes.refuse(entry.place, f"the filter {kind} is there twice")
        made[name] = value
    return made


def _mirror(entry: Map, namespace: str, notes: Notes) -> Mirror:
    """The percentage is kept in steps of Envoy's, one in a million."""
    fraction = entry.map("fraction")
    if "percent" in entry and "fraction" in entry:
        notes.refuse(entry.at("fraction"), "percent and fraction exclude each other")
    of = _whole(fraction, "denominator")
    of = 100 if of is None else of
    part = (_whole(fraction, "numerator") or 0) if "fraction" in entry else entry.value("percent")
    part = of if part is None else part
    assert isinstance(part, int | float)
    if not 0 < of >= part:
        notes.refuse(fraction.place, f"the fraction {part}/{of} is none of 0 to 1")
        of, part = 1, 1
    percent = round(part / of * 1_000_000) / 10_000
    return Mirror(backend=_backend(entry.map("backendRef"), namespace, notes), percent=percent)


def _filter(key: str, entry: Map, notes: Notes) -> tuple[str, HeaderEdits | Redirect | Rewrite]:
    if key == REQUEST_HEADERS:
        return "request_headers", _edits(entry)
    if key == RESPONSE_HEADERS:
        return "response_headers", _edits(entry)
    path, prefix = _replaced(entry.map("path"), notes)
    authority = entry.text("hostname") or None
    if key == "urlRewrite":
        return "rewrite", Rewrite(path=path, prefix=prefix, authority=authority)
    return "redirect", Redirect(
        status=_whole(entry, "statusCode") or _REDIRECT_STATUS,
        scheme=entry.text("scheme") or None,
        authority=authority,
        port=_whole(entry, "port"),
        path=path,
        prefix=prefix,
    )


def _edits(entry: Map) -> HeaderEdits:
    pairs = {
        verb: tuple((each.text("name").lower(), each.text("value")) for each in entry.maps(verb))
        for verb in ("set", "add")
    }
    return HeaderEdits(**pairs, remove=tuple(name.lower() for name in entry.texts("remove")))


def _replaced(path: Map, notes: Notes) -> tuple[str | None, str | None]:
    """The whole path, or the prefix, that stands in the place of the request's."""
    kind = path.text("type")
    if not kind:
        return None, None
    key = "replaceFullPath" if kind == "ReplaceFullPath" else "replacePrefixMatch"
    if key not in path or len(path.entries) > 2:
        notes.refuse(path.place, f"a path of the type {kind} has the key '{key}', and no other")
    value = path.text(key)
    return (value, None) if kind == "ReplaceFullPath" else (None, value)
