"""Routes and DestinationRules -> the manifests that ``http_routes`` and ``virtual_services`` read as the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshlab.model import (
    Backend,
    DestinationRule,
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
from meshlab.topology.http_routes import FILTERS, PATH_TYPES, REQUEST_HEADERS, RESPONSE_HEADERS
from meshlab.topology.writing import given, headed

_NETWORKING = "networking.istio.io/v1"
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_TYPES = {how: name for name, how in PATH_TYPES.items()}
_FILTER_TYPES = {key: name for name, key in FILTERS.items()}
_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def http_route(route: Route) -> dict[str, Any]:
    if route.kind == "VirtualService":
        about = headed(route.kind, _NETWORKING, route.name, route.namespace)
        hosts = [_host(service) for service, _ in route.services]
        http, tcp = [_virtual_rule(rule) for rule in route.rules], [_tcp_rule(rule) for rule in route.tcp]
        return {**about, "spec": {"hosts": hosts, **(given(http=http, tcp=tcp) or {"http": []})}}
    parents = [
        {"group": "", "kind": "Service", "name": service.partition(".")[0], **given(port=port)}
        for service, port in route.services
    ]
    about = headed(route.kind, _GATEWAY_API, route.name, route.namespace)
    rules = [_gateway_rule(rule) for rule in route.rules]
    rules += [{"backendRefs": [_backend_ref(backend) for backend in rule.backends]} for rule in route.tcp]
    return {**about, "spec": {"parentRefs": parents, "rules": rules}}


def destination_rule(rule: DestinationRule) -> dict[str, Any]:
    subsets = [{"name": name, **given(labels=dict(labels))} for name, labels in rule.subsets.items()]
    about = headed("DestinationRule", _NETWORKING, rule.name, rule.namespace)
    return {**about, "spec": {"host": _host(rule.service), **given(subsets=subsets)}}


def _host(service: str) -> str:
    return f"{service}.svc.cluster.local"


def _there(**values: Any) -> dict[str, Any]:
    """``values`` without those that are ``None``."""
    return {name: value for name, value in values.items() if value is not None}


def _duration(seconds: float | None) -> str:
    """In the parts that both APIs read: at most five digits each."""
    left, text = round((seconds or 0) * 1000), ""
    for unit, size in _UNITS_MS.items():
        number, left = divmod(left, size)
        text += f"{number}{unit}" if number else ""
    return text


# --- HTTPRoute -------------------------------------------------------------------------------------------------------


def _gateway_rule(rule: HttpRule) -> dict[str, Any]:
    filters = _header_filters(rule)
    filters += [_filter("requestMirror", **_gateway_mirror(mirror)) for mirror in rule.mirrors]
    if rule.redirect:
        filters.append(_filter("requestRedirect", statusCode=rule.redirect.status, **_redirected(rule.redirect)))
    if rule.rewrite:
        filters.append(_filter("urlRewrite", **_replaced(rule.rewrite)))
    return given(
        name=rule.name,
        matches=[_gateway_match(match) for match in rule.matches],
        filters=filters,
        backendRefs=[_backend_ref(backend) for backend in rule.backends],
        timeouts=given(request=_duration(rule.timeout_s)),
    )


def _gateway_mirror(mirror: Mirror) -> dict[str, Any]:
    backend = _backend_ref(mirror.backend)
    del backend["weight"]
    fraction = {"numerator": round(mirror.percent * 10_000), "denominator": 1_000_000}
    return {"backendRef": backend, **({} if mirror.percent == 100 else {"fraction": fraction})}


def _gateway_match(match: RequestMatch) -> dict[str, Any]:
    return given(
        path={"type": _TYPES[match.path.how], "value": match.path.value} if match.path else None,
        method=match.method.value if match.method else "",
        headers=[_gateway_value(each) for each in match.headers],
        queryParams=[_gateway_value(each) for each in match.query],
    )


def _gateway_value(match: NamedMatch) -> dict[str, Any]:
    assert match.value is not None, "a match of an HTTPRoute always asks for a value"
    return {"type": _TYPES[match.value.how], "name": match.name, "value": match.value.value}


def _backend_ref(backend: Backend) -> dict[str, Any]:
    name = backend.service.partition(".")[0]
    about = {"kind": "Service", "name": name, "port": backend.port, "weight": backend.weight}
    return {**about, **given(filters=_header_filters(backend))}


def _header_filters(owner: HttpRule | Backend) -> list[dict[str, Any]]:
    sides = ((REQUEST_HEADERS, owner.request_headers), (RESPONSE_HEADERS, owner.response_headers))
    return [_filter(key, **_edits(edits)) for key, edits in sides if edits != HeaderEdits()]


def _filter(key: str, **fields: Any) -> dict[str, Any]:
    return {"type": _FILTER_TYPES[key], key: fields}


def _edits(edits: HeaderEdits) -> dict[str, Any]:
    lists = {verb: [{"name": n, "value": v} for n, v in getattr(edits, verb)] for verb in ("set", "add")}
    return given(**lists, remove=list(edits.remove))


def _redirected(redirect: Redirect) -> dict[str, Any]:
    return {**_there(scheme=redirect.scheme, port=redirect.port), **_replaced(redirect)}


def _replaced(change: Redirect | Rewrite) -> dict[str, Any]:
    path: dict[str, Any] = {}
    if change.path is not None:
        path = {"type": "ReplaceFullPath", "replaceFullPath": change.path}
    elif change.prefix is not None:
        path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": change.prefix}
    return {**_there(hostname=change.authority), **given(path=path)}


# --- VirtualService --------------------------------------------------------------------------------------------------


def _virtual_rule(rule: HttpRule) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if rule.redirect:
        redirect = rule.redirect
        answer["redirect"] = {
            **_there(scheme=redirect.scheme, authority=redirect.authority, port=redirect.port),
            **_there(uri=redirect.path, prefixRewrite=redirect.prefix),
            "redirectCode": redirect.status,
        }
    if rule.direct_response:
        body = given(string=rule.direct_response.body)
        answer["directResponse"] = {"status": rule.direct_response.status, **given(body=body)}
    if rule.rewrite:
        uri = rule.rewrite.prefix if rule.rewrite.path is None else rule.rewrite.path
        answer["rewrite"] = _there(uri=uri, authority=rule.rewrite.authority)
    return {
        **given(
            name=rule.name,
            match=[_virtual_match(match) for match in rule.matches],
            route=[_destination(backend) for backend in rule.backends],
            mirrors=[
                {"destination": _place(mirror.backend), "percentage": {"value": mirror.percent}}
                for mirror in rule.mirrors
            ],
        ),
        **answer,
        **given(fault=_fault(rule), timeout=_duration(rule.timeout_s), headers=_header_edits(rule)),
    }


def _tcp_rule(rule: TcpRule) -> dict[str, Any]:
    return {
        **given(match=[{"port": port} for port in rule.ports]),
        "route": [_destination(backend) for backend in rule.backends],
    }


def _virtual_match(match: RequestMatch) -> dict[str, Any]:
    texts = {"uri": match.path, "method": match.method, "authority": match.authority}
    return {
        **{key: _text(text) for key, text in texts.items() if text},
        **given(
            ignoreUriCase=match.path is not None and match.path.ignore_case,
            headers=_values(each for each in match.headers if not each.inverted),
            withoutHeaders=_values(each for each in match.headers if each.inverted),
            queryParams=_values(match.query),
            port=match.port,
        ),
    }


def _text(text: StringMatch | None) -> dict[str, str]:
    return {text.how: text.value} if text else {}


def _values(matches: Iterable[NamedMatch]) -> dict[str, dict[str, str]]:
    return {match.name: _text(match.value) for match in matches}


def _place(backend: Backend) -> dict[str, Any]:
    port = {"number": backend.port} if backend.port else {}
    return {"host": _host(backend.service), **given(subset=backend.subset, port=port)}


def _destination(backend: Backend) -> dict[str, Any]:
    return {"destination": _place(backend), "weight": backend.weight, **given(headers=_header_edits(backend))}


def _header_edits(owner: HttpRule | Backend) -> dict[str, Any]:
    sides = {"request": owner.request_headers, "response": owner.response_headers}
    return {
        side: given(set=dict(edits.set), add=dict(edits.add), remove=list(edits.remove))
        for side, edits in sides.items()
        if edits != HeaderEdits()
    }


def _fault(rule: HttpRule) -> dict[str, Any]:
    fault: dict[str, Any] = {}
    if rule.delay:
        percentage = {"value": rule.delay.percent}
        fault["delay"] = {"fixedDelay": _duration(rule.delay.seconds), "percentage": percentage}
    if rule.abort:
        fault["abort"] = {"httpStatus": rule.abort.status, "percentage": {"value": rule.abort.percent}}
    return fault
