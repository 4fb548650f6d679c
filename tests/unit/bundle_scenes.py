"""What the tests of the bundle share: the calls of a capture scene, as a check would have judged them."""

from __future__ import annotations

from typing import Any

import capture_scenes as scenes

from meshlab.model.report import Cell, Result
from meshlab.proofs.route import hops, routes
from meshlab.report.bundle.annotate import Frame, Told

RULE = "AuthorizationPolicy shop/callers denies: rule 1 (principals <any>)"


def cell(**fields: Any) -> Cell:
    usual: dict[str, Any] = {
        "source": "shop/client",
        "to": "shop/server",
        "port": 8080,
        "family": 4,
        "expected": "allow",
        "oracle": "allow",
        "seen": "allow",
        "outcome": "ok",
        "rule": "no policy",
        "result": Result.HELD,
    }
    return Cell(**{**usual, **fields})


def told_of(script: scenes.Script) -> list[Told]:
    """Calls 1 and 3 as they should be; call 2 was to be let in, and was not."""
    wiring = scenes.wiring()
    family = script.family
    cells = {
        1: cell(family=family),
        2: cell(source="shop/intruder", seen="deny", outcome="reset", rule=RULE, result=Result.FAILED, family=family),
        3: cell(to="shop/plain", port=9090, rule="not in the mesh", family=family),
    }
    paths = {1: scenes.to_server, 2: scenes.to_server, 3: scenes.to_plain}
    calls = {number: scenes.call(script, number) for number in cells}
    return [Told(calls[n], cells[n], tuple(hops(routes(wiring, calls[n], paths[n](calls[n]))))) for n in cells]


def frames_of(script: scenes.Script) -> list[Frame]:
    return list(script.frames)
