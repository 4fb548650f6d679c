"""What upstream's own tests expect of requests is what the oracle says comes of them."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache

import pytest
from published_cases import FOLDER
from published_l7 import (
    POLICY_CASES,
    REASONS,
    ROUTE_CASES,
    VIRTUAL_SERVICE_CASES,
    Case,
    Group,
    Setting,
    copies_of_oracle,
    groups,
    of_oracle,
    reasons_for,
    topology,
    unlike,
)

from meshlab.errors import TopologyError
from meshlab.model import Mesh, Topology
from meshlab.topology import load, load_manifests

_FILES = (VIRTUAL_SERVICE_CASES, ROUTE_CASES, POLICY_CASES)
pytestmark = pytest.mark.skipif(
    not all(path.is_file() for path in _FILES), reason=f"no published inputs in {FOLDER} (MESHLAB_PUBLISHED)"
)

GROUPS, NOT_ASKED = groups() if all(path.is_file() for path in _FILES) else ([], {})


@cache
def _setting(name: Setting) -> Topology:
    return load(topology(name), name)


@cache
def _mesh(group: str) -> Mesh | TopologyError:
    found = next(one for one in GROUPS if one.name == group)
    try:
        return load_manifests(found.objects, found.name, _setting(found.setting))
    except TopologyError as refused:
        return refused


def _wrong(group: Group, case: Case) -> str:
    """In what the oracle differs from the case, or why it cannot be asked; empty where it says the same."""
    mesh = _mesh(group.name)
    if isinstance(mesh, TopologyError):
        return str(mesh)
    shares: dict[str, Fraction] = {}
    for chance, possible in of_oracle(mesh, case):
        for seen in possible:
            if reason := unlike(case, seen):
                return reason
            for name in case.weights:
                if seen.pod.startswith(name):
                    shares[name] = shares.get(name, Fraction(0)) + chance / len(possible)
    if any(shares.get(name, 0) != weight for name, weight in case.weights.items()):
        return f"the shares are {shares}, not {case.weights}"
    return _wrong_copies(mesh, case)


def _wrong_copies(mesh: Mesh, case: Case) -> str:
    """In what the copies of requests differ; a case that states none must have none."""
    copies: dict[str, Fraction] = {}
    for pods, chance in copies_of_oracle(mesh, case).items():
        names = [name for name in case.mirrored if all(pod.startswith(name) for pod in pods)]
        if len(names) != 1:
            return f"copies go to {' or '.join(pods)}, which is not stated"
        copies[names[0]] = copies.get(names[0], Fraction(0)) + chance
    return "" if copies == case.mirrored else f"the shares of copies are {copies}, not {case.mirrored}"


ASKED = [(group, case) for group in GROUPS for case in group.cases]


@pytest.mark.parametrize(
    ("group", "case"), [pytest.param(*one, id=one[1].name) for one in ASKED if not reasons_for(one[1].name)]
)
def test_the_oracle_says_what_upstream_expects(group: Group, case: Case) -> None:
    assert _wrong(group, case) == ""


def test_a_case_is_left_out_for_the_one_reason_that_is_listed_and_for_no_less() -> None:
    refused = {case.name: _wrong(group, case) for group, case in ASKED if reasons_for(case.name)}
    told = NOT_ASKED | refused
    assert {name: reasons_for(name) for name in told if len(reasons_for(name)) != 1} == {}
    assert {name: said for name, said in told.items() if reasons_for(name)[0] not in said} == {}


def test_no_reason_is_listed_for_nothing() -> None:
    names = [*NOT_ASKED, *(case.name for _, case in ASKED)]
    patterns = [each for listed in REASONS.values() for each in listed]
    assert [each for each in patterns if not any(fnmatchcase(name, each) for name in names)] == []


def test_every_published_case_is_asked_or_left_out() -> None:
    routes = json.loads(ROUTE_CASES.read_text())["tests"]
    published = [
        *(case["id"] for test in routes for case in test["cases"]),
        *(test["test"] for test in routes if not test["cases"]),
        *(
            f"{case['name']}/{call['name']}"
            for case in json.loads(VIRTUAL_SERVICE_CASES.read_text())["cases"]
            for call in case["calls"]
        ),
        *(f"{case['policy_set']}: {case['name']}" for case in json.loads(POLICY_CASES.read_text())["cases"]),
    ]
    assert sorted(published) == sorted([*NOT_ASKED, *(case.name for _, case in ASKED)])


def test_no_published_manifest_has_the_policies_that_the_policy_cases_name() -> None:
    """Their paths are in no AuthorizationPolicy of Istio's samples and of its documentation."""
    texts = [
        path.read_text() for folder in ("istio-istio", "istio-io") for path in sorted((FOLDER / folder).rglob("*.yaml"))
    ]
    assert json.loads(POLICY_CASES.read_text())["policy_sets"] == {}
    assert texts
    assert [
        text for text in texts if "/global-deny" in text or "/allow/admin" in text or "/denied-identity" in text
    ] == []
