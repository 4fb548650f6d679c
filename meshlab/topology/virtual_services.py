"""VirtualService and DestinationRule: from checked documents to the model, refusing what Istio's API refuses.

Source: pkg/config/validation/validation.go of istio/istio, ValidateVirtualService and ValidateDestinationRule; for what
a waypoint makes of them, pilot/pkg/networking/core/listener_waypoint.go
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from meshlab.model import (
    Abort,
    Backend,
    Delay,
    DestinationRule,
    DirectResponse,
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
from meshlab.topology.shapes import service_key

_MESH = "mesh"
_HOWS: tuple[Matching, ...] = ("exact", "prefix", "regex")
_REDIRECT_STATUS = 301
_ANYTHING = "*"
"""No regular expression, but Istio takes it as one that matches everything."""


def virtual_service(document: Map, notes: Notes) -> Route:
    """A ``kind: VirtualService``; one without ``services`` has no effect."""
    metadata, spec = document.map("metadata"), document.map("spec")
    namespace = metadata.text("namespace", "default")
    if not {"http", "tcp", "tls"} & set(spec.key_places):
        notes.refuse(spec.place, "a VirtualService needs `http` or `tcp`: its rules")
    return Route(
        kind="VirtualService",
        name=metadata.text("name"),
        namespace=namespace,
        services=tuple(dict.fromkeys((key, None) for key in _services(spec, namespace, notes))),
        rules=tuple(_rule(rule, namespace, notes) for rule in spec.maps("http")),
        tcp=tuple(_tcp_rule(rule, namespace, notes) for rule in spec.maps("tcp")),
    )


def _services(spec: Map, namespace: str, notes: Notes) -> Iterator[str]:
    gateways = spec.texts("gateways")
    if gateways and _MESH not in gateways:
        why = f"the lab has no ingress, and '{_MESH}' is not among its gateways"
        notes.warn(spec.at("gateways"), f"the VirtualService has no effect: {why}")
        return
    for item, host in zip(spec.items("hosts"), spec.texts("hosts"), strict=True):
        if key := service_key(host, namespace):
            yield key
        elif host == "*":
            notes.refuse(item.place, "Istio refuses the host '*' in the mesh: name the Services")
        elif "*" in host:
            notes.refuse(item.place, f"the lab does not support the wildcard '{host}' yet: name the Services")
        else:
            why = "Istio takes a host with a dot as it stands, and a Service is NAME.NAMESPACE.svc.cluster.local"
            notes.warn(item.place, f"the host '{host}' has no effect: {why}")


def _whole(entry: Map, key: str) -> int | None:
    value = entry.value(key)
    return value if isinstance(value, int) else None


def _rule(rule: Map, namespace: str, notes: Notes) -> HttpRule:
    _refuse_what_does_not_go_together(rule, notes)
    timeout = shapes.milliseconds(rule.text("timeout"))
    return HttpRule(
        name=rule.text("name"),
        matches=tuple(_match(match, notes) for match in rule.maps("match")),
        backends=_backends(rule, namespace, notes),
        mirrors=tuple(_mirrors(rule, namespace, notes)),
        redirect=_redirect(rule, notes) if "redirect" in rule else None,
        direct_response=_direct_response(rule.map("directResponse")) if "directResponse" in rule else None,
        rewrite=_rewrite(rule, notes) if "rewrite" in rule else None,
        abort=_abort(rule.map("fault").map("abort"), notes) if "abort" in rule.map("fault") else None,
        delay=_delay(rule.map("fault").map("delay"), notes) if "delay" in rule.map("fault") else None,
        timeout_s=float(timeout) / 1000 if timeout else None,
        **_edits(rule.map("headers")),
    )


def _tcp_rule(rule: Map, namespace: str, notes: Notes) -> TcpRule:
    """A match without a port is one of every port."""
    if not rule.maps("route"):
        notes.refuse(rule.place, "a rule for TCP needs `route`")
    ports = [_whole(match, "port") for match in rule.maps("match")]
    every = None in ports
    return TcpRule(
        ports=() if every else tuple(dict.fromkeys(port for port in ports if port is not None)),
        backends=_backends(rule, namespace, notes),
    )


def _refuse_what_does_not_go_together(rule: Map, notes: Notes) -> None:
    answers = [key for key in ("route", "redirect", "directResponse") if key in rule]
    if len(answers) != 1 and "delegate" not in rule.key_places:
        found = f"this one has {' and '.join(answers)}" if answers else "this one has none"
        notes.refuse(rule.place, f"a rule has one of route, redirect and directResponse; {found}")
    if "mirror" in rule and "mirrors" in rule:
        notes.refuse(rule.at("mirrors"), "mirror and mirrors exclude each other")
    if "mirrorPercentage" in rule and "mirror" not in rule:
        notes.refuse(rule.at("mirrorPercentage"), "mirrorPercentage goes with mirror")
    for key in ("rewrite", "fault", "mirror", "mirrors"):
        if key in rule and answers and answers[0] != "route":
            notes.refuse(rule.at(key), f"{key} does not go with {answers[0]}")


# --- matches ---------------------------------------------------------------------------------------------------------


def _match(match: Map, notes: Notes) -> RequestMatch:
    return RequestMatch(
        path=_path(match, notes),
        method=_pseudo(match, "method", notes),
        authority=_pseudo(match, "authority", notes),
        headers=(
            *_named(match.map("headers"), notes, lower=True),
            *_named(match.map("withoutHeaders"), notes, lower=True, inverted=True),
        ),
        query=tuple(_named(match.map("queryParams"), notes)),
        port=_whole(match, "port"),
    )


def _path(match: Map, notes: Notes) -> StringMatch | None:
    path = _text(match, "uri", notes)
    ignores = match.value("ignoreUriCase") is True and path is not None and path.how != "regex"
    return replace(path, ignore_case=True) if path and ignores else path


def _pseudo(match: Map, key: str, notes: Notes) -> StringMatch | None:
    """What ``method`` or ``authority`` asks for, which a header of the name ``:method`` or ``:authority`` may say, too.

    Source: "pseudo header matches" in tests/integration/pilot/common/routing.go of istio/istio
    """
    headers = match.map("headers")
    if f":{key}" not in headers:
        return _text(match, key, notes)
    if key in match:
        notes.refuse(match.at(key), f"{key} is asked for twice, also as the header ':{key}'")
    return _text(headers, f":{key}", notes)


def _text(owner: Map, key: str, notes: Notes) -> StringMatch | None:
    """The text that is asked for; ``None`` where any will do."""
    entry = owner.map(key)
    given = [how for how in _HOWS if how in entry]
    if len(given) > 1:
        notes.refuse(entry.place, f"{' and '.join(given)} exclude each other")
    if not given:
        return None
    how, value = given[0], entry.text(given[0])
    if how == "regex" and value == _ANYTHING:
        return None
    if how == "regex" and not shapes.REGEX.takes(value):
        notes.refuse(entry.at("regex"), f"regex: '{value}' must be {shapes.REGEX.words}.")
    return StringMatch(how, value)


def _named(entries: Map, notes: Notes, *, lower: bool = False, inverted: bool = False) -> Iterator[NamedMatch]:
    known: set[str] = set()
    for key in entries.entries:
        if lower and key.startswith(":"):
            continue  # read by _pseudo
        name = key.lower() if lower else key
        if name in known:
            notes.refuse(entries.key_places[key], f"'{name}' is there twice, as the names of headers have no case")
        known.add(name)
        yield NamedMatch(name, _text(entries, key, notes), inverted=inverted)


# --- what becomes of a request ---------------------------------------------------------------------------------------


def _backends(rule: Map, namespace: str, notes: Notes) -> tuple[Backend, ...]:
    """A destination without a weight has none, unless it is the only one."""
    routes = rule.maps("route")
    weights = [_whole(route, "weight") or (1 if len(routes) == 1 else 0) for route in routes]
    if routes and not any(weights):
        notes.refuse(rule.at("route"), "the weights of several destinations must not all be 0")
    return tuple(
        replace(_place(route.map("destination"), namespace), weight=weight, **_edits(route.map("headers")))
        for route, weight in zip(routes, weights, strict=True)
    )


def _place(destination: Map, namespace: str) -> Backend:
    return Backend(
        service=service_key(destination.text("host"), namespace),
        port=_whole(destination.map("port"), "number") or 0,
        subset=destination.text("subset"),
    )


def _mirrors(rule: Map, namespace: str, notes: Notes) -> Iterator[Mirror]:
    """Without a percentage every request is copied; a percentage without a value is 0.

    Source: MirrorPercent in pilot/pkg/networking/core/route/route.go of istio/istio
    """
    found = [(rule.map("mirror"), rule, "mirrorPercentage")] if "mirror" in rule else []
    found += [(entry.map("destination"), entry, "percentage") for entry in rule.maps("mirrors")]
    for destination, owner, key in found:
        percent = owner.map(key).value("value") or 0 if key in owner else 100
        if not percent:
            notes.warn(owner.at(key), "nothing is mirrored: the percentage is 0")
        assert isinstance(percent, int | float)
        yield Mirror(backend=_place(destination, namespace), percent=float(percent))


def _edits(headers: Map) -> dict[str, Any]:
    return {f"{side}_headers": _edited(headers.map(side)) for side in ("request", "response")}


def _edited(edits: Map) -> HeaderEdits:
    pairs = {
        verb: tuple({name.lower(): value for name, value in edits.strings(verb).items()}.items())
        for verb in ("set", "add")
    }
    return HeaderEdits(**pairs, remove=tuple(name.lower() for name in edits.texts("remove")))


def _redirect(rule: Map, notes: Notes) -> Redirect:
    entry = rule.map("redirect")
    if "prefixRewrite" in entry and True in _whole_paths(rule):
        notes.refuse(entry.at("prefixRewrite"), "prefixRewrite does not go with an exact match, nor with a regex")
    if "uri" in entry and "prefixRewrite" in entry:
        notes.refuse(entry.at("prefixRewrite"), "uri and prefixRewrite exclude each other")
    return Redirect(
        status=_whole(entry, "redirectCode") or _REDIRECT_STATUS,
        scheme=entry.text("scheme") or None,
        authority=entry.text("authority") or None,
        port=_whole(entry, "port"),
        path=entry.text("uri") or None,
        prefix=entry.text("prefixRewrite") or None,
    )


def _direct_response(entry: Map) -> DirectResponse:
    return DirectResponse(status=_whole(entry, "status") or 0, body=entry.map("body").text("string"))


def _rewrite(rule: Map, notes: Notes) -> Rewrite:
    """A prefix that matched is replaced; of an exact match, or one by a regex, the whole path."""
    entry = rule.map("rewrite")
    uri, authority = entry.text("uri") or None, entry.text("authority") or None
    if uri is None and authority is None and "uriRegexRewrite" not in entry.key_places:
        notes.refuse(entry.place, "a rewrite needs uri or authority")
    whole = _whole_paths(rule)
    if uri is not None and len(whole) > 1:
        why = "it stands in the place of the prefix for one match, and of the whole path for another"
        notes.refuse(entry.at("uri"), f"{why}: write two rules")
    return Rewrite(authority=authority, **{"path" if True in whole else "prefix": uri})


def _whole_paths(rule: Map) -> set[bool]:
    """For each match, whether it is of the whole path; else it is of a prefix, which ``/`` is where none is given."""
    return {bool({"exact", "regex"} & set(match.map("uri").entries)) for match in rule.maps("match")} or {False}


def _abort(entry: Map, notes: Notes) -> Abort:
    return Abort(status=_whole(entry, "httpStatus") or 0, percent=_percent(entry, "abort", notes))


def _delay(entry: Map, notes: Notes) -> Delay:
    found = shapes.milliseconds(entry.text("fixedDelay"))
    return Delay(seconds=float(found or 0) / 1000, percent=_percent(entry, "delay", notes))


def _percent(entry: Map, what: str, notes: Notes) -> float:
    """Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPFaultInjection"""
    older, newer = entry.value("percent"), entry.map("percentage").value("value")
    value = (older or 0) if "percentage" not in entry else newer or 0
    if not value:
        notes.warn(entry.place, f"the {what} never happens: its percentage is 0 where it is not given")
    return float(value)


# --- DestinationRule -------------------------------------------------------------------------------------------------


def destination_rule(document: Map, notes: Notes) -> DestinationRule:
    """A ``kind: DestinationRule``."""
    metadata, spec = document.map("metadata"), document.map("spec")
    namespace = metadata.text("namespace", "default")
    service = service_key(spec.text("host"), namespace)
    if service and not service.endswith(f".{namespace}"):
        why = f"the lab does not support a DestinationRule of another namespace than its Service's ('{namespace}') yet"
        notes.refuse(spec.at("host"), f"the host '{spec.text('host')}' is refused: {why}")
    subsets: dict[str, dict[str, str]] = {}
    for subset in spec.maps("subsets"):
        name = subset.text("name")
        if name in subsets:
            notes.refuse(subset.at("name"), f"the subset '{name}' is there twice")
        subsets[name] = subset.strings("labels")
    return DestinationRule(name=metadata.text("name"), namespace=namespace, service=service, subsets=dict(subsets))
