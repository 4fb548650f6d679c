"""Routes and policies of requests as they are drawn: whatever comes, the API takes, and no field is rare."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from random import Random

import pytest

from meshlab.lab.proving.questions import questions
from meshlab.lab.sources import read
from meshlab.model import HeaderEdits, HttpRule, Mesh, RequestMatch
from meshlab.oracle import expected
from meshlab.strategies import http_routes
from meshlab.strategies.choices import Choices
from meshlab.strategies.routes import OPERATION_FIELDS, draw_routing, places_read
from meshlab.topology import dump, load

BASE = read("bookinfo-like").topology
CHOICES_BYTES = 400


def drawn(count: int, seed: int = 1) -> list[Mesh]:
    random = Random(seed)  # noqa: S311
    return [draw_routing(Choices(random.randbytes(CHOICES_BYTES)), BASE.mesh) for _ in range(count)]


def test_whatever_is_drawn_is_written_and_read_back() -> None:
    for mesh in drawn(80):
        topology = replace(BASE, mesh=mesh, expect=(), steps=())
        again = load(dump(topology), "drawn").mesh
        assert replace(again, namespaces=mesh.namespaces) == mesh, dump(topology)  # a policy brings its namespace


def test_every_request_has_an_outcome_whose_chances_add_up() -> None:
    caller = BASE.mesh.pod("front/browser")
    for mesh in drawn(60, seed=2):
        for service, port in places_read(mesh):
            for request in questions(mesh, service, port).requests:
                due = expected(mesh, caller, service, port.port, 4, request)
                assert sum(share.chance for share in due.shares) == 1
                assert due.ways


def _parts(mesh: Mesh) -> set[str]:
    found = {f"kind.{route.kind}" for route in mesh.routes}
    rules = [rule for route in mesh.routes for rule in route.rules]
    for rule in rules:
        found |= {f"rule.{each.name}" for each in fields(HttpRule) if getattr(rule, each.name)}
        for match in rule.matches:
            found |= {f"match.{each.name}" for each in fields(RequestMatch) if getattr(match, each.name)}
            found |= {f"path.{match.path.how}"} if match.path else set()
        for backend in rule.backends:
            found |= {"backend.subset"} if backend.subset else set()
            found |= {"backend.none"} if not backend.weight else set()
            for edits in (backend.request_headers, backend.response_headers):
                found |= {f"backend.{each.name}" for each in fields(HeaderEdits) if getattr(edits, each.name)}
    for policy in mesh.authorization_policies:
        found |= {f"action.{policy.action}", *(f"target.{target['kind']}" for target in policy.target_refs)}
        for rule_ in policy.rules:
            found |= {"from"} if rule_.sources else set()
            found |= {f"when.{condition.key.partition('[')[0]}" for condition in rule_.conditions}
            found |= {f"to.{name}" for to in rule_.operations for name in OPERATION_FIELDS if getattr(to, name)}
    return found


@pytest.mark.parametrize(
    "part",
    [
        *(
            "kind.HTTPRoute",
            "kind.VirtualService",
            "rule.redirect",
            "rule.direct_response",
            "rule.rewrite",
            "rule.abort",
        ),
        *("rule.request_headers", "rule.response_headers", "backend.subset", "backend.none"),
        *("backend.set", "backend.add", "backend.remove"),
        *("match.path", "match.method", "match.authority", "match.headers", "match.query", "match.port"),
        *("path.exact", "path.prefix", "path.segments"),
        *("action.ALLOW", "action.DENY", "target.Service", "target.Gateway", "target.GatewayClass"),
        *("from", "when.request.headers", *(f"to.{name}" for name in OPERATION_FIELDS)),
    ],
)
def test_no_field_is_rare(part: str) -> None:
    assert PARTS[part] >= 8, PARTS


PARTS = Counter(part for mesh in drawn(400, seed=3) for part in _parts(mesh))


def test_without_a_waypoint_that_reads_requests_nothing_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="no waypoint reads a request"):
        http_routes(read("quickstart").topology.mesh)
