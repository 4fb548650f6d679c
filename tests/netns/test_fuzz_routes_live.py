"""Fuzzing behind a waypoint: wrong waypoints are found, told in a small file, and played again; a right one holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshlab.cli import main
from meshlab.lab.sources import find
from meshlab.topology import load

HALVES = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two, namespace: shop}
spec:
  hosts: [two.shop.svc.cluster.local]
  http:
    - route:
        - {destination: {host: one.shop.svc.cluster.local, subset: v1, port: {number: 80}}, weight: 50}
        - {destination: {host: two.shop.svc.cluster.local}, weight: 50}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def _fuzz(*args: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = _run("fuzz", "requests", "--workers", "1", "--json", *args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def test_the_reference_does_what_drawn_routes_and_policies_say() -> None:
    code, report = _fuzz("--examples", "12", "--seed", "1")
    assert (code, report["failures"]) == (0, [])


def test_a_waypoint_that_swaps_weights_is_found_and_its_small_file_replays() -> None:
    mutant = ("--mutant", "swaps-weights")
    code, report = _fuzz(*mutant, "--seed", "1", "--for", "90s", "--failures", "1")
    assert code == 1
    (failure,) = report["failures"]
    topology = load(Path(failure["file"]).read_text(), failure["file"])
    (route,) = topology.mesh.routes
    assert any(len(rule.backends) == 2 for rule in route.rules)
    broken, right = (_run("replay", failure["file"], "--runs", "5", *options) for options in (mutant, ()))
    assert (broken.exit_code, broken.output.split(":")[0]) == (1, "FAILED")
    assert (right.exit_code, right.output.split(":")[0]) == (0, "FIXED")


def test_calls_that_are_made_often_are_counted_where_a_route_shares_them() -> None:
    Path("lab.yaml").write_text(_with_step("requests", 22) + "---\n" + HALVES)
    broken, right = (_run("replay", "lab.yaml", "--runs", "2", *o) for o in (("--mutant", "one-backend-only"), ()))
    assert (broken.exit_code, " of 22 calls came to " in broken.output) == (1, True), broken.output
    assert right.exit_code == 0, right.output


def _with_step(name: str, times: int) -> str:
    step = f"steps: [{{call: {{from: shop/client, to: 'two.shop:80', family: 4, times: {times}}}, expect: allow}}]"
    return find(name).read_text().replace("  expect:\n", f"  {step}\n  expect:\n", 1)
