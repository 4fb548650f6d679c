"""The route configuration of a chain that reads HTTP: who may ask, and where requests go.

    one virtual host    its RBAC rules judge every request before a route acts
      routes            the entries in effect, one for each match, the first that matches wins
      a last route      404, so that a request that no route matches is judged by the RBAC rules, too

Of HTTPRoutes the entries of all are sorted by how specific they are; of VirtualServices the first one's stay as they
are. Without any entry everything goes to the Service that was called.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto,
https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule and of istio/istio ``pilot/pkg/networking/core``
(``listener_waypoint.go``, ``route/route.go``) and ``sortHTTPRoutes``
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from meshlab.model import (
    Action,
    Address,
    AuthorizationPolicy,
    Backend,
    HeaderEdits,
    HttpRule,
    Mesh,
    NamedMatch,
    Redirect,
    RequestMatch,
    Rewrite,
    StringMatch,
)
from meshlab.translate.envoy.forms import NOT_FOUND, Json, regex, typed
from meshlab.translate.envoy.rbac import rules
from meshlab.translate.envoy.serving import Served, Upstream, routes_in_effect, upstream

CONNECT = "connect"
"""Name of the routes of CONNECTs."""
ALLOW, DENY, FAULT = "allow", "deny", "fault"
"""Names of the HTTP filters that routes have a say in."""
_MAX_BODY_BYTES = 1 << 20
_AUTHORITY = frozenset({"host", ":authority"})
_EVERYTHING = StringMatch("segments", "/")
_RESPONSE_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_DEFAULT_PORTS = {("http", 80), ("https", 443)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule, and one of its matches."""

    rule: HttpRule
    match: RequestMatch
    gateway_api: bool
    """Whether it is of an HTTPRoute."""


def routes(mesh: Mesh, name: str, own: Upstream, policies: Collection[AuthorizationPolicy]) -> Json:
    """The route configuration ``name`` for calls to ``own``."""
    found = [_route(mesh, own, entry) for entry in entries(mesh, own)]
    default = {"match": {"prefix": "/"}, "route": {"cluster": own.name, "timeout": "0s"}}
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [*(found or [default]), {"match": {"prefix": ""}, "direct_response": {"status": 404}}],
        "typed_per_filter_config": _judged(policies, reads_http=True),
    }
    return {
        "name": name,
        "virtual_hosts": [host],
        "validate_clusters": False,
        "max_direct_response_body_size_bytes": _MAX_BODY_BYTES,
    }


def connects(judged: Iterable[Json]) -> Json:
    """The routes of CONNECTs, of which ``judged`` are some."""
    host = {"name": "any", "domains": ["*"], "routes": [*judged, _connect()]}
    return {"name": CONNECT, "validate_clusters": False, "virtual_hosts": [host]}


def connect(one: Served, policies: Collection[AuthorizationPolicy]) -> Json | None:
    """The route of CONNECTs to where bytes pass, which judges them; ``None`` where no policy does.

    The chain judges its connections, too. But its filter does so with the first byte that the client sends, when the
    server has been called, and a server that speaks first has been heard.

    Source: https://github.com/envoyproxy/envoy/issues/9023
    """
    judged = _judged(policies, reads_http=False, asked=one.address)
    host = f"[{one.address}]" if one.family == 6 else str(one.address)
    asked = {"prefix": f"{host}:"} if one.port is None else {"exact": f"{host}:{one.port}"}
    headers = [{"name": ":authority", "string_match": asked}]
    return {**_connect(headers), "typed_per_filter_config": judged} if judged else None


def _connect(headers: Sequence[Json] = ()) -> Json:
    upgrade = {"upgrade_type": "CONNECT", "connect_config": {}}
    return {
        "match": {"connect_matcher": {}, "headers": headers},
        "route": {"cluster": "main_internal", "timeout": "0s", "upgrade_configs": [upgrade]},
    }


def _judged(
    policies: Collection[AuthorizationPolicy], *, reads_http: bool, asked: Address | None = None
) -> dict[str, Json]:
    """What the RBAC filters have to go by, by their names."""
    return {
        filter_: typed("filters.http.rbac.v3.RBACPerRoute", {"rbac": {"rules": some}})
        for filter_, action in ((DENY, Action.DENY), (ALLOW, Action.ALLOW))
        if (some := rules(policies, action, reads_http=reads_http, asked=asked)) is not None
    }


# --- which entries ---------------------------------------------------------------------------------------------------


def entries(mesh: Mesh, own: Upstream) -> list[Entry]:
    """Those for calls to ``own``, in the order in which they are tried."""
    counted = routes_in_effect(mesh, own)
    gateway_api = bool(counted) and counted[0].kind == "HTTPRoute"
    found = [
        Entry(rule, match, gateway_api)
        for route in counted
        for rule in route.rules
        for match in rule.matches or (RequestMatch(),)
        if match.port in (None, own.port.port)
    ]
    return sorted(found, key=_precedence) if gateway_api else found


def _precedence(entry: Entry) -> tuple[int, ...]:
    """Less is tried earlier. The Gateway API leaves open where a regular expression stands: in Istio it is last."""
    match = entry.match
    path = match.path or _EVERYTHING
    rank = ("exact", "segments", "prefix", "regex").index(path.how)
    return rank, -len(path.value), match.method is None, -len(match.headers), -len(match.query)


def upstreams(mesh: Mesh, own: Upstream) -> Iterator[Upstream]:
    """Where the entries send requests."""
    for entry in entries(mesh, own):
        for backend in (*entry.rule.backends, *(mirror.backend for mirror in entry.rule.mirrors)):
            if (found := _upstream(mesh, own, backend)) is not None:
                yield found


def _upstream(mesh: Mesh, own: Upstream, backend: Backend) -> Upstream | None:
    return upstream(mesh, backend, own.port.port, own.family)


# --- one entry -------------------------------------------------------------------------------------------------------


def _route(mesh: Mesh, own: Upstream, entry: Entry) -> Json:
    rule = entry.rule
    faults = _faults(rule)
    return {
        **({"name": rule.name} if rule.name else {}),
        "match": _match(entry),
        **_action(mesh, own, entry),
        **({"typed_per_filter_config": {FAULT: faults}} if faults else {}),
    }


def _match(entry: Entry) -> Json:
    match = entry.match
    named = {":method": match.method, ":authority": match.authority}
    pseudo = [NamedMatch(name, value) for name, value in named.items() if value is not None]
    return {
        **_path(match.path or _EVERYTHING),
        "headers": [_header(each) for each in (*match.headers, *pseudo)],
        "query_parameters": [{"name": each.name, **_value(each.value)} for each in match.query],
    }


def _path(path: StringMatch) -> Json:
    cased = {"case_sensitive": not path.ignore_case}
    match path.how:
        case "exact":
            return {"path": path.value, **cased}
        case "prefix":
            return {"prefix": path.value, **cased}
        case "segments":
            value = path.value.rstrip("/")
            return {"path_separated_prefix": value, **cased} if value else {"prefix": "/"}
        case "regex":
            return _text(path)


def _header(header: NamedMatch) -> Json:
    """A header that is missing has no value that matches, so that it is one that does not match."""
    value = _value(header.value)
    inverted = {"invert_match": True} if header.inverted else {}
    missing = {"treat_missing_header_as_empty": True} if header.inverted and "string_match" in value else {}
    return {"name": header.name, **value, **inverted, **missing}


def _value(value: StringMatch | None) -> Json:
    """Every text begins with an empty one, and Envoy refuses to be asked for that."""
    if value is None or (value.how == "prefix" and not value.value):
        return {"present_match": True}
    return {"string_match": _text(value)}


def _text(text: StringMatch) -> Json:
    if text.how == "regex":
        return regex(f"(?i:{text.value})" if text.ignore_case else text.value)
    return {text.how: text.value, **({"ignore_case": True} if text.ignore_case else {})}


def _action(mesh: Mesh, own: Upstream, entry: Entry) -> Json:
    rule = entry.rule
    if rule.redirect is not None:
        moved = _redirect(rule.redirect, entry, own.port.port)
        return {"redirect": moved, **_edits("response", rule.response_headers)}
    if rule.direct_response is not None:
        body = {"body": {"inline_string": rule.direct_response.body}} if rule.direct_response.body else {}
        answer = {"status": rule.direct_response.status, **body}
        return {"direct_response": answer, **_edits("response", rule.response_headers)}
    clusters = _clusters(mesh, own, entry)
    if not clusters:
        return {"direct_response": {"status": 500 if entry.gateway_api else 503}}
    authority = _authority(rule)
    mirrors = [
        {"cluster": found.name, "runtime_fraction": {"default_value": _percentage(mirror.percent)}}
        for mirror in rule.mirrors
        if mirror.percent and (found := _upstream(mesh, own, mirror.backend)) is not None
    ]
    return {
        "route": {
            "weighted_clusters": {"clusters": clusters},
            "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR" if entry.gateway_api else "SERVICE_UNAVAILABLE",
            "timeout": _seconds(rule.timeout_s or 0.0),
            **({"request_mirror_policies": mirrors} if mirrors else {}),
            **(_rewrite(rule.rewrite, entry) if rule.rewrite is not None else {}),
            **({"host_rewrite_literal": authority} if authority else {}),
        }
    }


def _clusters(mesh: Mesh, own: Upstream, entry: Entry) -> list[Json]:
    """With their weights; none where no request may go anywhere, since Envoy refuses weights that are all 0.

    The only backend of a VirtualService gets everything, whatever its weight.
    """
    backends = entry.rule.backends
    alone = len(backends) == 1 and not entry.gateway_api
    return [_cluster(mesh, own, each, entry.rule, each.weight or 1) for each in backends if each.weight or alone]


def _cluster(mesh: Mesh, own: Upstream, backend: Backend, rule: HttpRule, weight: int) -> Json:
    found = _upstream(mesh, own, backend)
    authority = _set_authority(backend.request_headers) if not _authority(rule) else None
    return {
        "name": NOT_FOUND if found is None else found.name,
        "weight": weight,
        **_edits("request", _one_after_the_other(rule.request_headers, backend.request_headers)),
        **_edits("response", _one_after_the_other(rule.response_headers, backend.response_headers)),
        **({"host_rewrite_literal": authority} if authority else {}),
    }


def _faults(rule: HttpRule) -> Json:
    delay, abort = rule.delay, rule.abort
    faults: dict[str, Any] = {}
    if delay is not None and delay.seconds:
        faults["delay"] = {"fixed_delay": _seconds(delay.seconds), "percentage": _percentage(delay.percent)}
    if abort is not None:
        faults["abort"] = {"http_status": abort.status, "percentage": _percentage(abort.percent)}
    return typed("filters.http.fault.v3.HTTPFault", faults) if faults else {}


def _percentage(percent: float) -> Json:
    return {"numerator": round(percent * 10_000), "denominator": "MILLION"}


def _seconds(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


# --- paths -----------------------------------------------------------------------------------------------------------


def _rewrite(rewrite: Rewrite, entry: Entry) -> Json:
    if rewrite.path is not None:
        return {"regex_rewrite": _replacing("^.*$", rewrite.path)}
    return {} if rewrite.prefix is None else _prefix_replaced(rewrite.prefix, entry)


def _redirect(redirect: Redirect, entry: Entry, called: int) -> Json:
    """Without a port a VirtualService keeps the request's; an HTTPRoute means the scheme's, or the one called.

    The port that the scheme implies is not written.
    """
    port = redirect.port
    if port is None and entry.gateway_api and redirect.scheme is None:
        port = called
    written = port if port is not None and (redirect.scheme or "http", port) not in _DEFAULT_PORTS else None
    if entry.gateway_api and redirect.scheme and port is None and not redirect.authority:
        written = dict(_DEFAULT_PORTS).get(redirect.scheme)  # or else the port of the request's host would stay
    return {
        "response_code": _RESPONSE_CODES[redirect.status],
        **({"scheme_redirect": redirect.scheme} if redirect.scheme else {}),
        **({"host_redirect": redirect.authority} if redirect.authority else {}),
        **({"port_redirect": written} if written is not None else {}),
        **({"path_redirect": redirect.path} if redirect.path else {}),
        **(_prefix_replaced(redirect.prefix, entry) if redirect.prefix is not None else {}),
    }


def _prefix_replaced(by: str, entry: Entry) -> Json:
    """Whole segments are replaced without doubling a slash or losing the first one; characters as they stand.

    ``/foo`` by ``/``: ``/foo/bar`` becomes ``/bar``, and ``/foo`` becomes ``/``.
    ``/`` by ``/new``: ``/bar`` becomes ``/new/bar``.
    """
    path = entry.match.path or _EVERYTHING
    if path.how != "segments" or not entry.gateway_api:
        return {"prefix_rewrite": by} if by else {}
    matched, by = path.value.rstrip("/"), by.rstrip("/")
    cased = "(?i)" if path.ignore_case else ""
    if matched and by:
        return {"regex_rewrite": _replacing(f"{cased}^{re.escape(matched)}", by)}
    return {"regex_rewrite": _replacing(f"{cased}^{re.escape(matched)}/?", f"{by}/")}


def _replacing(pattern: str, text: str) -> Json:
    return {"pattern": {"regex": pattern}, "substitution": text.replace("\\", r"\\")}


# --- headers ---------------------------------------------------------------------------------------------------------


def _authority(rule: HttpRule) -> str | None:
    rewritten = rule.rewrite.authority if rule.rewrite is not None else None
    return rewritten or _set_authority(rule.request_headers)


def _set_authority(edits: HeaderEdits) -> str | None:
    return next((value for name, value in (*edits.set, *edits.add) if name in _AUTHORITY), None)


def _one_after_the_other(first: HeaderEdits, then: HeaderEdits) -> HeaderEdits:
    """A rule's edits, and those of a backend of it, which have the last word.

    Envoy has them the other way round where a rule has several backends.
    """
    undone = {*then.remove, *(name for name, _ in then.set)}
    left = HeaderEdits(
        set=tuple(each for each in first.set if each[0] not in undone),
        add=tuple(each for each in first.add if each[0] not in undone),
    )
    return HeaderEdits(set=left.set + then.set, add=left.add + then.add, remove=first.remove + then.remove)


def _edits(of: str, edits: HeaderEdits) -> Json:
    added = [
        *(_written(name, value, "OVERWRITE_IF_EXISTS_OR_ADD") for name, value in edits.set if _is_free(name)),
        *(_written(name, value, "APPEND_IF_EXISTS_OR_ADD") for name, value in edits.add if _is_free(name)),
    ]
    removed = [name for name in edits.remove if _is_free(name)]
    return {
        **({f"{of}_headers_to_add": added} if added else {}),
        **({f"{of}_headers_to_remove": removed} if removed else {}),
    }


def _is_free(name: str) -> bool:
    """Whether it is an ordinary header: Envoy has other ways for the authority, and none for the rest."""
    return name != "host" and not name.startswith(":")


def _written(name: str, value: str, how: str) -> Json:
    """``%`` begins a command in Envoy's values, and an empty value is dropped unless one asks to keep it."""
    header = {"key": name, "value": value.replace("%", "%%")}
    return {"header": header, "append_action": how, "keep_empty_value": True}
