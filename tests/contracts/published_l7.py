"""What upstream's own tests expect of requests, read from where it is published, in one form for all three sources.

A *case* is one request and what must be seen of it. The cases that need the same objects are a *group*, and all groups
of a *setting* can run in one lab, one after the other:

    setting           pods and Services                         objects of a group
    mesh              Gateway API, conformance/mesh             the manifests of one conformance test
    gateway           Gateway API, conformance/base             the same, carried from a Gateway to a Service
    virtual-service   two Services of ours, as the cases ask    the config of one case

A Gateway is carried to a mesh so: a Service of its name has the ports of its listeners and no pods, and a route whose
parent is the Gateway has that Service as its parent. All else of the route stays as it is published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from published_cases import FOLDER
from ruamel.yaml import YAML

from meshlab.model import FAMILIES, Call, Connection, HeaderEdits, HttpRequest, Mesh
from meshlab.oracle import http
from meshlab.topology import load

Setting = Literal["mesh", "gateway", "virtual-service"]
Object = dict[str, Any]

ROUTE_CASES = FOLDER / "cases" / "l7-route-cases.json"
VIRTUAL_SERVICE_CASES = FOLDER / "cases" / "l7-virtualservice-cases.json"
POLICY_CASES = FOLDER / "cases" / "l7-cases.json"
_CONFORMANCE = FOLDER / "gateway-api" / "conformance"
_MESH, _INFRA, _ECHO = "gateway-conformance-mesh", "gateway-conformance-infra", "echo"
_NAMESPACES: dict[Setting, str] = {"mesh": _MESH, "gateway": _INFRA, "virtual-service": _ECHO}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DELAY = re.compile(r"[?&]delay=([0-9.]+)s")
_GATEWAYS = {
    **{f"HTTPRouteRedirectPortAndScheme/{number}": "same-namespace" for number in range(6)},
    **{
        f"HTTPRouteRedirectPortAndScheme/{number}": "same-namespace-with-http-listener-on-8080"
        for number in range(6, 9)
    },
    **{f"HTTPRouteRedirectPortAndScheme/{number}": "same-namespace-with-https-listener" for number in range(9, 15)},
}
"""Case -> Gateway, where the published case does not say it. Upstream lists the cases Gateway by Gateway."""
_PORTS_OF_CASES = {"http": 80, "http2": 85}


_NOT_COMPARED = ("MeshHTTPRouteNamedRule/1",)
"""Cases that state a path that the server does not see. Their route rewrites nothing, and upstream does not notice,
since its ``compareRequest`` of a mesh looks at the status, the headers of the answer and the pod only.

Source: conformance/utils/echo/pod.go of kubernetes-sigs/gateway-api
"""


REASONS = {
    "the policy text is not published here": ("TestAuthz_*: *", "ambient-*: *"),
    "the case has no request": (
        "HTTPRouteBackendRequestHeaderModifier",
        "HTTPRouteDisallowedKind",
        "HTTPRouteInvalidCrossNamespaceParentRef",
        "HTTPRouteInvalidParentRefNotMatchingSectionName",
        "HTTPRouteInvalidParentRefSectionNameNotMatchingPort",
    ),
    "the hostnames of listeners decide, and a waypoint has none": (
        "GatewayHTTPListenerIsolation/*",
        "HTTPRouteHostnameIntersection/*",
        "HTTPRouteListenerPortMatching/4",
    ),
    "the listener ends TLS, which no waypoint does": (
        *(f"HTTPRouteRedirectPortAndScheme/{number}" for number in range(9, 15)),
    ),
    "the lab's clients speak HTTP/1.1": ("GRPC*", "HTTPRouteBackendProtocolH2C/0"),
    "the case needs a server that fails a given number of times": ("HTTPRouteRetry*",),
    "a backend in the namespace 'gateway-conformance-web-backend' is refused: it needs a ReferenceGrant": (
        "HTTPRouteReferenceGrant/*",
        "HTTPRouteInvalidCrossNamespaceBackendRef/0",
    ),
    "cors is refused: the lab does not support it yet": ("HTTPRouteCORS/*",),
    "requestRedirect is refused: the lab does not support it yet": ("HTTPRouteBackendRequestRedirect/*",),
    "redirect.derivePort is refused: the lab does not support it yet": ("redirect request port/*",),
}
"""Part of what is said of a case that is left out -> the patterns of the names of such cases."""


class NotAskedError(Exception):
    """The lab has no way to ask what the case asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What must be seen; what is empty or ``None`` is not stated."""

    statuses: tuple[int, ...]
    backend: str = ""
    """The name with which the names of the pods that may answer begin, ``namespace/name-``."""
    path_seen: str = ""
    host_seen: str = ""
    headers_seen: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case; an empty value means that the server must not see the header."""
    response_headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names in lower case -> the values that will do; none means that the answer must not have the header."""
    redirect: Mapping[str, str] | None = None
    """``scheme``, ``host``, ``port`` and ``path`` of a Location, as far as they are stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    source: str
    """The pod that calls, ``namespace/name``."""
    service: str
    """Which Service it calls, ``name.namespace``."""
    port: int
    request: HttpRequest
    answer: Answer
    follows: bool = False
    """Whether the client goes where a redirect leads, once."""
    weights: Mapping[str, Fraction] = field(default_factory=dict)
    """The name with which a backend's pods begin -> its share of many equal requests."""
    mirrored: Mapping[str, Fraction] = field(default_factory=dict)
    """The name with which a backend's pods begin -> the share of the requests of which it gets a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    name: str
    setting: Setting
    objects: str
    """As YAML, for the lab of the setting."""
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of a request, or what the oracle says that comes of it."""

    status: int
    pod: str = ""
    """Who answered; empty where the waypoint answered by itself."""
    path: str = ""
    host: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request as the server saw it."""
    response_headers: Mapping[str, str] = field(default_factory=dict)


# --- the settings ----------------------------------------------------------------------------------------------------


@cache
def topology(setting: Setting) -> str:
    """The text of the lab in which all groups of ``setting`` run."""
    namespace = _NAMESPACES[setting]
    found = {"mesh": _mesh_objects, "gateway": _gateway_objects, "virtual-service": _own_objects}[setting]()
    lab: Object = {
        "apiVersion": "meshlab.dev/v1alpha1",
        "kind": "Lab",
        "metadata": {"name": f"published-{setting}"},
        "spec": {
            "images": {"*": {}},
            "pods": {f"{namespace}/client": {"node": "node-1", "serviceAccount": "client"}},
        },
    }
    waypoint: Object = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": namespace, "labels": {"istio.io/waypoint-for": "service"}},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    labels = {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "waypoint"}
    ours: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
    kept = [one for one in found if (one["kind"], one["metadata"]["name"]) != ("Namespace", namespace)]
    return as_yaml([lab, ours, waypoint, *kept])


@cache
def documents(path: str) -> list[Object]:
    """The objects of a published file of the conformance tests."""
    reader = YAML(typ="safe", pure=True)
    return [document for document in reader.load_all((_CONFORMANCE.parent / path).read_text()) if document]


def as_yaml(objects: Sequence[Object]) -> str:
    return "\n---\n".join(map(json.dumps, objects))


def _mesh_objects() -> list[Object]:
    return [one for one in documents("conformance/mesh/manifests.yaml") if one["metadata"].get("namespace") == _MESH]


def _gateway_objects() -> list[Object]:
    """The backends, and a Service in place of each Gateway that some case calls."""
    found = [
        one
        for one in documents("conformance/base/manifests.yaml")
        if one["metadata"].get("namespace") == _INFRA and one["metadata"]["name"].startswith("infra-backend-")
    ]
    names: dict[str, Object] = {}
    for test in _read(ROUTE_CASES)["tests"]:
        for gateway in _gateways(test):
            name = gateway["metadata"]["name"]
            if ports := [one["port"] for one in gateway["spec"]["listeners"] if one["protocol"] == "HTTP"]:
                names[name] = _service(name, _INFRA, ports, None)
    return [*found, *names.values()]


def _own_objects() -> list[Object]:
    pods: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": _ECHO, "labels": {"app": name}},
            "spec": {"containers": [{"name": "echo", "image": "echo", "ports": [{"containerPort": 8080}]}]},
        }
        for name in ("dst", "b")
    ]
    return [
        *pods,
        *(_service(name, _ECHO, sorted(_PORTS_OF_CASES.values()), {"app": name}) for name in ("dst", "b")),
    ]


def _service(name: str, namespace: str, ports: Sequence[int], selector: Mapping[str, str] | None) -> Object:
    entries = [{"name": f"http-{port}", "port": port, "targetPort": 8080} for port in dict.fromkeys(ports)]
    spec: Object = {"ports": entries, **({"selector": selector} if selector else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


# --- the groups ------------------------------------------------------------------------------------------------------


def groups() -> tuple[list[Group], dict[str, str]]:
    """The groups whose cases can be asked, and for each other case, by its name, why it cannot."""
    made = list(map(_virtual_service_group, _read(VIRTUAL_SERVICE_CASES)["cases"]))
    left_out: dict[str, str] = {}
    for test in _read(ROUTE_CASES)["tests"]:
        cases = []
        for case in test["cases"]:
            try:
                cases.append(_route_case(test, case))
            except NotAskedError as reason:
                left_out[case["id"]] = str(reason)
        if not test["cases"]:
            left_out[test["test"]] = "the case has no request"
        if cases:
            setting: Setting = "mesh" if test["kind"] == "mesh" else "gateway"
            made.append(Group(name=test["test"], setting=setting, objects=_carried(test), cases=tuple(cases)))
    return made, left_out | _policy_cases()


def _policy_cases() -> dict[str, str]:
    """Why no case of policies can be asked: each names a set of policies, of which no published file has the text."""
    document = _read(POLICY_CASES)
    there = document["policy_sets"].keys()
    return {
        f"{case['policy_set']}: {case['name']}": "the policies are there now, and nothing asks the case yet"
        if case["policy_set"] in there
        else "the policy text is not published here"
        for case in document["cases"]
    }


@cache
def _read(path: Path) -> Object:
    document: Object = json.loads(path.read_text())
    return document


def _virtual_service_group(published: Object) -> Group:
    config = [one | {"metadata": one["metadata"] | {"namespace": _ECHO}} for one in published["config"]]
    host = config[0]["spec"]["hosts"][0]
    cases = []
    for call in published["calls"]:
        headers = {name.lower(): value for name, value in call["request"].get("headers", {}).items()}
        port = _PORTS_OF_CASES[call["port"]["name"]]
        authority = headers.pop("host", host if port == 80 else f"{host}:{port}")
        expected = call["expected"]
        cases.append(
            Case(
                name=f"{published['name']}/{call['name']}",
                source=f"{_ECHO}/client",
                service=f"{host}.{_ECHO}",
                port=port,
                request=HttpRequest(
                    method=call["request"]["method"],
                    path=call["request"]["path"],
                    authority=authority,
                    headers=tuple(headers.items()),
                ),
                answer=Answer(
                    statuses=(expected["status"],),
                    path_seen=expected.get("url_seen", ""),
                    host_seen=expected.get("host_seen", ""),
                    headers_seen=_lower(expected.get("request_headers_seen", {})),
                    response_headers=_allowed(expected),
                ),
                follows=call["request"].get("follow_redirects", False),
            )
        )
    return Group(name=published["name"], setting="virtual-service", objects=as_yaml(config), cases=tuple(cases))


def _route_case(test: Object, case: Object) -> Case:
    if "GRPC" in test["test"]:
        raise NotAskedError("the case calls by gRPC, and the lab's clients speak HTTP/1.1")
    request, expected = case["request"], case["expected"]
    if request.get("protocol"):
        raise NotAskedError("the client speaks HTTP/2, and the lab's clients speak HTTP/1.1")
    if "query" in request:
        raise NotAskedError("the case needs a server that fails a given number of times")
    namespace = _MESH if test["kind"] == "mesh" else _INFRA
    name, port = ("echo", 80) if test["kind"] == "mesh" else _place(test, case)
    seen = expected.get("request_seen_by_backend") or {}
    backend = expected.get("backend", "")
    gone = {name.lower(): "" for name in seen.get("absentHeaders", ())}
    return Case(
        name=case["id"],
        source=f"{namespace}/client",
        service=f"{name}.{namespace}",
        port=port,
        request=HttpRequest(
            method=request.get("method", "GET"),
            path=request["path"],
            authority=request.get("host", name),
            headers=tuple(_lower(request.get("headers", {})).items()),
        ),
        answer=Answer(
            statuses=tuple(expected.get("status_any_of") or [expected.get("status", expected.get("status_default"))]),
            backend=f"{expected.get('backend_namespace', namespace)}/{backend}-" if backend else "",
            path_seen="" if case["id"] in _NOT_COMPARED else seen.get("path", ""),
            host_seen=seen.get("host", ""),
            headers_seen={**_lower(seen.get("headers") or {}), **gone},
            response_headers=_allowed(expected),
            redirect=expected.get("redirect"),
        ),
        weights={
            f"{namespace}/{name}-": Fraction(str(share)) for name, share in test.get("expected_weights", {}).items()
        },
        mirrored={
            f"{namespace}/{one['backendRef']['Name']}-": Fraction(one.get("percent") or 100, 100)
            for one in expected.get("mirrored_to", ())
        },
    )


def _place(test: Object, case: Object) -> tuple[str, int]:
    """The Gateway that a case calls, and the port."""
    names = [gateway["metadata"]["name"] for gateway in _gateways(test)]
    name = case.get("gateway") or _GATEWAYS.get(case["id"]) or (names[0] if len(names) == 1 else "")
    if not name:
        raise NotAskedError("the hostnames of listeners decide, and a waypoint has none")
    gateway = next(one for one in _gateways(test) if one["metadata"]["name"] == name)
    listeners = gateway["spec"]["listeners"]
    if any(one["protocol"] != "HTTP" for one in listeners):
        raise NotAskedError("the listener ends TLS, which no waypoint does")
    port: int = case.get("port", listeners[0]["port"])
    host = case["request"].get("host", "").partition(":")[0]
    found = [one["name"] for one in listeners if one["port"] == port and one.get("hostname", host) == host]
    sections = {
        parent["sectionName"]
        for route in _documents_of(test)
        for parent in route.get("spec", {}).get("parentRefs", ())
        if parent.get("port") == port and "sectionName" in parent
    }
    if not found or (sections and not sections & set(found)):
        raise NotAskedError("the hostnames of listeners decide, and a waypoint has none")
    return name, port


def _gateways(test: Object) -> list[Object]:
    """The Gateways that the case has, by name; each is in its own manifests or in the base."""
    wanted = {gateway["name"] for gateway in test.get("gateways", ())}
    if test["kind"] == "mesh" or not wanted:
        return []
    files = ("conformance/base/manifests.yaml", *test["manifests"])
    return [
        one
        for path in files
        for one in documents(path)
        if one["kind"] == "Gateway" and one["metadata"]["name"] in wanted
    ]


def _carried(test: Object) -> str:
    """The manifests of a conformance test, with Services for parents."""
    found = _documents_of(test)
    if test["kind"] == "mesh":
        return as_yaml(found)
    return as_yaml([_for_services(one) for one in found if one["kind"] != "Gateway"])


def _documents_of(test: Object) -> list[Object]:
    return [one for path in test["manifests"] for one in documents(path)]


def _for_services(one: Object) -> Object:
    if one["kind"] == "EndpointSlice":
        return one | {"endpoints": [{"addresses": [address]} for address in _addresses(one["addressType"])]}
    if one["kind"] != "HTTPRoute":
        return one
    parents = [
        {
            "group": "",
            "kind": "Service",
            "name": parent["name"],
            **({"port": parent["port"]} if "port" in parent else {}),
        }
        for parent in one["spec"]["parentRefs"]
    ]
    return one | {"spec": one["spec"] | {"parentRefs": parents}}


def _addresses(kind: str) -> list[str]:
    """Those of the pods of infra-backend-v1, with which upstream's test fills EndpointSlices while it runs."""
    pods = [pod for pod in load(topology("gateway"), "gateway").mesh.pods if pod.name.startswith("infra-backend-v1-")]
    return [str(pod.ipv4 if kind == "IPv4" else pod.ipv6) for pod in pods]


def _allowed(expected: Object) -> dict[str, tuple[str, ...]]:
    exact = {name: (value,) for name, value in expected.get("response_headers", {}).items()}
    several = {name: tuple(values) for name, values in expected.get("response_validHeaderValues", {}).items()}
    absent: dict[str, tuple[str, ...]] = dict.fromkeys(expected.get("response_headers_absent", ()), ())
    return {name.lower(): values for name, values in (exact | several | absent).items()}


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def reasons_for(name: str) -> list[str]:
    """The reasons for which the case of that name is listed as left out."""
    return [reason for reason, patterns in REASONS.items() if any(fnmatchcase(name, each) for each in patterns)]


# --- what is seen ----------------------------------------------------------------------------------------------------


def unlike(case: Case, seen: Seen) -> str:
    """In what ``seen`` is not as the case states it, as half a sentence; empty where it is."""
    answer = case.answer
    if seen.status not in answer.statuses:
        return f"the status is {seen.status}, not {answer.statuses}"
    if answer.backend and not seen.pod.startswith(answer.backend):
        return f"{seen.pod or 'the waypoint'} answered, not {answer.backend}*"
    if answer.path_seen and seen.path != answer.path_seen:
        return f"the server saw the path {seen.path}, not {answer.path_seen}"
    if answer.host_seen and seen.host != answer.host_seen:
        return f"the server saw the host {seen.host}, not {answer.host_seen}"
    for name, value in answer.headers_seen.items():
        if _listed(seen.headers.get(name, "")) != _listed(value):
            return f"the server saw {name}: {seen.headers.get(name)!r}, not {value!r}"
    for name, values in answer.response_headers.items():
        found = seen.response_headers.get(name)
        if found not in values if values else found is not None:
            return f"the answer has {name}: {found!r}, not {' or '.join(map(repr, values)) or 'none'}"
    if answer.redirect is not None:
        return _leads_elsewhere(case, answer.redirect, seen.response_headers.get("location", ""))
    return ""


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def _leads_elsewhere(case: Case, stated: Mapping[str, str], location: str) -> str:
    """Of what is not stated the scheme and the path stay, the port is the scheme's own, and any host will do."""
    parts = urlsplit(location)
    scheme = stated.get("scheme", "http")
    wanted = {
        "scheme": scheme,
        "host": stated.get("host", parts.hostname),
        "port": int(stated.get("port", _DEFAULT_PORTS[scheme])),
        "path": stated.get("path", case.request.path),
    }
    found = {
        "scheme": parts.scheme,
        "host": parts.hostname,
        "port": parts.port or _DEFAULT_PORTS.get(parts.scheme),
        "path": parts.path,
    }
    return "" if found == wanted else f"the location is {location!r}, which is {found} and not {wanted}"


def followed(case: Case, location: str) -> HttpRequest:
    """The request of a client that goes where a redirect leads, which is the same Service."""
    parts = urlsplit(location)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return HttpRequest(method=case.request.method, path=path, authority=parts.netloc, headers=case.request.headers)


def seen_of(call: Call) -> Seen:
    """What came of a call of a lab."""
    peer = call.peer
    return Seen(
        status=call.status or 0,
        pod=peer.pod if peer else "",
        path=peer.path if peer else "",
        host=peer.headers.get("host", "") if peer else "",
        headers=peer.headers if peer else {},
        response_headers=call.headers,
    )


def of_oracle(mesh: Mesh, case: Case) -> Iterator[tuple[Fraction, tuple[Seen, ...]]]:
    """What the oracle says that comes of the request of ``case``: chances, with what is seen from each pod."""
    found = list(_shares(mesh, case, case.request))
    if not case.follows:
        yield from found
        return
    [(_, [moved])] = found
    yield from _shares(mesh, case, followed(case, moved.response_headers["location"]))


def copies_of_oracle(mesh: Mesh, case: Case) -> dict[tuple[str, ...], Fraction]:
    """The pods of which one gets a copy of the request of ``case`` -> of which share of many equal requests."""
    found: dict[tuple[str, ...], Fraction] = {}
    for share in http.shares(mesh, _came(mesh, case, case.request)):
        for copied in share.outcome.copies if isinstance(share.outcome, http.Forwarded) else ():
            pods = tuple(sorted(one.pod for one in copied.pods))
            found[pods] = found.get(pods, Fraction(0)) + share.chance * copied.chance
    return found


def _shares(mesh: Mesh, case: Case, request: HttpRequest) -> Iterator[tuple[Fraction, tuple[Seen, ...]]]:
    for share in http.shares(mesh, _came(mesh, case, request)):
        headers = _edited(share.response_headers)
        match share.outcome:
            case http.Answered(status, location):
                own = headers | ({"location": location} if location else {})
                yield share.chance, (Seen(status=status, response_headers=own),)
            case http.Forwarded(pods, sent, timeout_s):
                late = timeout_s is not None and timeout_s < _delay_s(sent)
                yield (
                    share.chance,
                    tuple(
                        Seen(
                            status=504 if late else 200,
                            pod="" if late else one.pod,
                            path=sent.path,
                            host=sent.authority,
                            headers=_joined(sent.headers),
                            response_headers=headers,
                        )
                        for one in pods
                    ),
                )


def _came(mesh: Mesh, case: Case, request: HttpRequest) -> http.Came:
    service = next(one for one in mesh.services if one.key == case.service)
    waypoint = mesh.waypoint_of(service)
    port = next(one for one in service.ports if one.port == case.port)
    client = mesh.pod(case.source)
    address = service.address(FAMILIES[0])
    assert waypoint is not None
    assert address is not None
    connection = Connection(
        source=client.identity(mesh.trust_domain),
        source_ip=client.address(FAMILIES[0]),
        destination=service.key,
        destination_ip=address,
        port=port.port,
    )
    return http.Came(waypoint, service, port, connection, request)


def _delay_s(request: HttpRequest) -> float:
    """How long the server is asked to wait, which the conformance tests' echo and the lab's understand alike."""
    found = _DELAY.search(request.path)
    return float(found[1]) if found else 0.0


def _edited(edits: Sequence[HeaderEdits]) -> dict[str, str]:
    """The headers that edits leave in an answer without any."""
    pairs = [pair for edit in edits for pair in (*edit.set, *edit.add)]
    return _joined(pairs)


def _joined(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        found[name] = f"{found[name]},{value}" if name in found else value
    return found
