"""Real input that nobody here wrote: it loads, or is refused with a place and a reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from published_cases import FOLDER, L4_CASES

from meshlab.errors import Issue, TopologyError
from meshlab.model import Topology
from meshlab.topology import dump, load, read
from meshlab.topology.keys import KINDS

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no published inputs in {FOLDER} (MESHLAB_PUBLISHED)")

FOLDERS = (
    "istio-istio/samples",
    "istio-io/content/en/docs",
    "istio-io-ambient-newer",
    "istio-api/tests",
    "gateway-api/conformance",
    "kubernetes-examples",
    "microservices-demo",
)
_ACTIONS = {"AUDIT", "CUSTOM"}


def _files(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((FOLDER / folder).rglob("*.y*ml")):
        yield str(path.relative_to(FOLDER)), path.read_text()


def _load(text: str, name: str) -> Topology | tuple[Issue, ...]:
    try:
        return load(text, name)
    except TopologyError as refused:
        return refused.issues


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_loads_or_is_refused_with_places_and_reasons(
    folder: str, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    for name, text in _files(folder):
        outcome = _load(text, name)
        if isinstance(outcome, Topology):
            counts["loaded"] += 1
            assert load(dump(outcome), name) == outcome
        else:
            counts["refused"] += 1
            lines = text.count("\n") + 1
            assert all(issue.source == name and 0 < issue.line <= lines and issue.message for issue in outcome)
    for word, number in sorted(counts.items()):
        record_property(word, number)
    assert counts["loaded"] + counts["refused"] > 0


REFUSED_FOR = {
    "istio-istio/samples/bookinfo/networking/destination-rule-reviews.yaml": "trafficPolicy.loadBalancer is refused",
    "istio-istio/samples/bookinfo/platform/kube/productpage-nodeport.yaml": "spec.type is refused",
    "istio-istio/samples/httpbin/httpbin-nodeport.yaml": "spec.type is refused",
    "istio-istio/samples/mtls-echo/mtls-echo.yaml": "volume 'ca-certs' is not among the pod's volumes",
}
"""Sample files of supported kinds only that are refused, and what for."""


def test_samples_of_supported_kinds_load_but_for_what_is_refused_on_purpose() -> None:
    refused = {}
    for name, text in _files("istio-istio/samples"):
        outcome = _load(text, name)
        if isinstance(outcome, Topology):
            continue
        if not any("is not supported" in issue.message or "apiVersion" in issue.message for issue in outcome):
            refused[name] = "\n".join(map(str, outcome))
    assert refused.keys() == REFUSED_FOR.keys()
    assert [name for name in refused if REFUSED_FOR[name] not in refused[name]] == []


@pytest.mark.parametrize("sample", ["httpbin/httpbin", "curl/curl", "helloworld/helloworld", "tcp-echo/tcp-echo"])
def test_the_echo_stands_in_for_the_images_of_the_samples(sample: str) -> None:
    path = FOLDER / "istio-istio/samples" / f"{sample}.yaml"
    text = "\n---\n".join(part for part in path.read_text().split("\n---") if "kind: Gateway" not in part)
    reading = read(text, path.name)
    assert reading.topology.mesh.pods
    assert reading.unrunnable == ()


def _validation_cases() -> list[dict[str, Any]]:
    path = FOLDER / "cases" / "validation-cases.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else []
    ours = {name for name, kind in KINDS.items() if "security.istio.io/v1" in kind.api_versions}
    return [case for case in cases if case["kind"] in ours]  # the cases' Gateway is Istio's own kind


@pytest.mark.parametrize("case", _validation_cases(), ids=lambda case: f"{case['kind']}-{case['name']}")
def test_what_istio_accepts_is_accepted_and_what_it_refuses_refused(case: dict[str, Any]) -> None:
    metadata = {"name": case.get("configName", "case"), "annotations": case.get("annotations", {})}
    document = {"apiVersion": "security.istio.io/v1", "kind": case["kind"], "metadata": metadata, "spec": case["input"]}
    outcome = _load(json.dumps(document), "case.yaml")
    assert isinstance(outcome, Topology) == case["valid"], outcome


_ROUTE = {"route": [{"destination": {"host": "web"}}]}
_AS_RULE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "VirtualService.http[]": lambda given: given,
    "RootHTTPRoute": lambda given: given,
    "VirtualService.http[].route": lambda given: {"route": given},
    "Destination": lambda given: {"route": [{"destination": given}]},
    "HTTPRedirect": lambda given: {"redirect": given},
    "HTTPDirectResponse": lambda given: {"directResponse": given},
    "HTTPRewrite": lambda given: {**_ROUTE, "rewrite": given},
    "HTTPFaultInjection.abort": lambda given: {**_ROUTE, "fault": {"abort": given}},
    "HTTPFaultInjection.delay": lambda given: {**_ROUTE, "fault": {"delay": given}},
}
"""The kind of a case -> the rule of a VirtualService that has it."""
_OURS = (
    *("is refused", "must be the host of a Service", "which Envoy takes for a variable", "redirectCode: 0"),
    *("the key 'hosts'", "the key 'httpStatus'", "match[0]: empty"),
)
"""What the lab refuses although Istio does not."""


def _routing_cases() -> list[dict[str, Any]]:
    path = FOLDER / "cases" / "validation-cases.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else []
    return [case for case in cases if case["kind"] in {"VirtualService", "DestinationRule", *_AS_RULE}]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{number}-{case['name']}") for number, case in enumerate(_routing_cases())]
)
def test_a_route_that_istio_refuses_is_refused_and_of_the_others_only_what_is_refused_on_purpose(
    case: dict[str, Any],
) -> None:
    kind, spec = case["kind"], case["input"]
    if kind in _AS_RULE:
        kind, spec = "VirtualService", {"hosts": ["web"], "http": [_AS_RULE[kind](spec)]}
    document = {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "case"}, "spec": spec}
    text = re.sub(r'"host": "foo\.[a-z.]+"', '"host": "web"', json.dumps(document))  # only Services are hosts here
    outcome = _load(text, "case.yaml")
    if not case["valid"]:
        assert not isinstance(outcome, Topology)
    elif not isinstance(outcome, Topology):
        assert [issue for issue in outcome if not any(word in issue.message for word in _OURS)] == []


_AS_POLICY: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ValidateCondition": lambda given: {"when": [given]},
    "CheckValidPathTemplate": lambda given: {"to": [{"operation": {"paths": given["values"]}}]},
    "CheckTrustDomainValues": lambda given: {"from": [{"source": {"trustDomains": given["values"]}}]},
    "CheckWildcardValues": lambda given: {"from": [{"source": {"namespaces": given["values"]}}]},
}
"""Istio's function -> the rule in which it judges a value."""


def _attribute_cases() -> list[dict[str, Any]]:
    path = FOLDER / "cases" / "attribute-cases.json"
    cases = json.loads(path.read_text())["attribute_cases"] if path.is_file() else []
    return [case for case in cases if case["check"] in _AS_POLICY]


@pytest.mark.parametrize("case", _attribute_cases(), ids=lambda case: f"{case['check']}-{case['input']}")
def test_a_value_is_accepted_and_refused_as_istio_does(case: dict[str, Any]) -> None:
    rule = _AS_POLICY[case["check"]](case["input"])
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "case"},
        "spec": {"rules": [rule]},
    }
    outcome = _load(json.dumps(document), "case.yaml")
    assert isinstance(outcome, Topology) == case["valid"], outcome


def _named(policy: dict[str, Any]) -> dict[str, Any]:
    """Some cases name their policies as no API server would (``not_namespaces``)."""
    return policy | {"metadata": policy["metadata"] | {"name": policy["metadata"]["name"].replace("_", "-")}}


def test_the_policies_of_istio_s_own_l4_cases_load() -> None:
    document = json.loads(L4_CASES.read_text())
    groups = [*document["policy_sets"].values(), *(case.get("policies", []) for case in document["cases"])]
    refused: list[Issue] = []
    for policies in groups:
        outcome = _load("\n---\n".join(map(json.dumps, map(_named, policies))), "policies.yaml")
        on_purpose = any(policy["spec"].get("action") in _ACTIONS for policy in policies)
        if not isinstance(outcome, Topology) and not on_purpose:
            refused += outcome
    assert refused == []


def test_documents_marked_invalid_by_istio_are_refused_each_for_itself() -> None:
    for name in ("authz-invalid.yaml", "peerauth-invalid.yaml", "reqauth-invalid.yaml"):
        text = Path(FOLDER / "istio-api/tests/testdata" / name).read_text()
        for part in text.split("\n---\n"):
            marked = "\n".join(line for line in part.splitlines() if not line.startswith("_err"))
            if not marked.strip() or "bad-timeout" in marked:  # no keys are fetched: a timeout is inert
                continue
            with pytest.raises(TopologyError):
                load(marked, name)
