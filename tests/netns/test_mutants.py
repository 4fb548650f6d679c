"""Every mutant is caught by ``check``, every legal variant passes it, and a table says which check kills which.

The table: ``python tests/netns/test_mutants.py``.
"""

from __future__ import annotations

from collections import Counter

import pytest

from meshlab.lab.proving import check
from meshlab.lab.sources import read
from meshlab.model.report import CheckReport, Result
from meshlab.testing.registry import MUTANTS, VARIANTS

CAPTURE = frozenset({"recorder", "analyzer"})
"""A broken capture shows nothing wrong: it must make every proof cannot-tell."""
KILLED_BY = {
    "leaks-plaintext": {"encrypted", "nothing-in-clear"},
    "falls-back-to-plaintext": {"encrypted", "nothing-in-clear"},
    "calls-services-in-clear": {"encrypted", "nothing-in-clear"},
    "clear-on-15008": {"encrypted", "nothing-in-clear"},
    "clear-after-handshake": {"encrypted", "nothing-in-clear"},
    "ignores-deny": {"cells", "denied"},
    "one-certificate-for-all": {"identity"},
    "sends-canary-to-a-collector": {"encrypted"},
    "leaks-in-fragments": {"encrypted"},
    "leaks-in-chunked-gzip": {"encrypted"},
    "leaks-in-h2-headers": {"encrypted"},
    "shows-certificates-to-everybody": {"encrypted", "nothing-in-clear"},
    "ships-session-secrets": {"encrypted", "nothing-in-clear"},
    "agent-writes-no-rules": {"cells", "encrypted", "nothing-in-clear"},
    "leaks-first-bytes": {"denied"},
    "denies-after-a-byte": {"denied"},
    "withholds-answers-only": {"denied"},
    "denies-late-at-the-vip": {"denied"},
    "shows-no-certificate": {"identity"},
    "loses-the-source-address": {"cells"},
    "always-the-first-endpoint": {"cells"},
    "delivers-twice": {"cells"},
    "replicas-share-a-tunnel": {"cells"},
    "admits-when-busy": {"cells"},
    "flips-a-bit-in-bulk": {"cells"},
    "mixes-up-bulk": {"cells"},
    "hands-out-its-session-keys": {"encrypted", "nothing-in-clear"},
    "takes-the-last-peer-for-this-one": {"cells"},
    "fails-open-when-busy": {"cells", "denied"},
    "hedges-its-requests": {"cells"},
    "carries-ipv6-over-ipv4": {"cells"},
    "pads-with-what-the-buffer-held": {"cells"},
    "admits-at-ephemeral-ports": {"cells", "denied"},
    "keeps-one-port-of-a-service": {"cells"},
    "goes-round-the-waypoint": {"cells"},
    "waypoint-forwards-in-plaintext": {"cells", "encrypted"},
    "waypoint-keeps-to-one-endpoint": {"cells"},
    "ignores-header-matches": {"cells"},
    "matches-path-as-a-prefix": {"cells"},
    "takes-the-first-rule": {"cells", "denied"},
    "routes-every-port": {"cells"},
    "swaps-weights": {"cells"},
    "one-backend-only": {"cells"},
    "skips-faults": {"cells", "denied"},
    "ignores-timeouts": {"cells"},
    "forgets-the-rewrite": {"cells"},
    "keeps-removed-headers": {"cells"},
    "answers-404-as-503": {"cells"},
    "forwards-the-path-as-it-came": {"cells"},
    "ignores-l7-policy": {"cells", "denied"},
    "judges-itself-for-its-client": {"cells"},
    "trusts-a-header-for-identity": {"cells"},
    "forwards-before-it-authorizes": {"denied"},
    "sticky-rule": {"cells"},
    "gives-a-lost-share-to-the-others": {"cells"},
    "adds-over-what-is-there": {"cells"},
    "compares-policy-paths-with-the-query": {"cells"},
    "replaces-prefixes-as-they-stand": {"cells"},
}
"""Mutant -> checks that must each notice it; others may as well."""
ON_POLICIES = {
    "admits-at-ephemeral-ports",
    "keeps-one-port-of-a-service",
    "admits-when-busy",
    "always-the-first-endpoint",
    "denies-late-at-the-vip",
    "replicas-share-a-tunnel",
    "round-robin-endpoints",
}
"""What shows only where a Service denies somebody, has endpoints on two nodes, a caller has a replica, or many call."""


ON_ROUTES = {
    "ignores-header-matches",
    "matches-path-as-a-prefix",
    "takes-the-first-rule",
    "routes-every-port",
    "swaps-weights",
    "one-backend-only",
    "skips-faults",
    "ignores-timeouts",
    "forgets-the-rewrite",
    "keeps-removed-headers",
    "answers-404-as-503",
    "forwards-the-path-as-it-came",
    "ignores-l7-policy",
    "judges-itself-for-its-client",
    "trusts-a-header-for-identity",
    "forwards-before-it-authorizes",
    "sticky-rule",
    "gives-a-lost-share-to-the-others",
    "adds-over-what-is-there",
    "compares-policy-paths-with-the-query",
    "replaces-prefixes-as-they-stand",
    "waypoint-chunks-every-body",
    "waypoint-title-case-headers",
    "waypoint-closes-after-each-answer",
    "waypoint-introduces-itself",
    "waypoint-sorts-headers",
    "waypoint-sends-in-pieces",
    "waypoint-takes-turns",
    "waypoint-says-it-otherwise",
}
"""What is wrong with requests, or unusual about them."""


def run(*, mutant: str | None = None, variant: str | None = None) -> CheckReport:
    name = f"{mutant or variant}"
    source = read(
        "routes"
        if name in ON_ROUTES
        else "waypoint"
        if "waypoint" in name
        else "policies"
        if name in ON_POLICIES
        else "quickstart"
    )
    return check.run(source.topology, source_path=source.path, mutant=mutant, variant=variant)


def killers(report: CheckReport) -> dict[str, Counter[str]]:
    """Check -> how its rows came out, held ones left out."""
    found: dict[str, Counter[str]] = {}
    rows = [("cells", cell.result) for cell in report.cells] + [(proof.kind, proof.result) for proof in report.proofs]
    for check_name, result in rows:
        if result is not Result.HELD:
            found.setdefault(check_name, Counter())[str(result)] += 1
    return found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that fail save what they saw in the working folder."""
    monkeypatch.chdir(str(tmp_path))


@pytest.mark.parametrize(
    "name", [name for name, mutant in MUTANTS.items() if mutant.part not in CAPTURE and name in KILLED_BY]
)
def test_a_mutant_is_caught_by_each_check_that_is_made_for_it(name: str) -> None:
    report = run(mutant=name)
    failed = {check_name for check_name, results in killers(report).items() if results["failed"]}
    assert report.exit_code == 1
    assert failed >= KILLED_BY[name], f"only {sorted(failed)} noticed"


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.part in CAPTURE])
def test_a_broken_capture_ends_cannot_tell_and_never_held(name: str) -> None:
    report = run(mutant=name)
    assert report.exit_code == 4
    assert all(cell.result is Result.HELD for cell in report.cells)
    assert {proof.result for proof in report.proofs if proof.kind == "encrypted"} == {Result.CANNOT_TELL}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_legal_variant_passes(name: str) -> None:
    report = run(variant=name)
    assert killers(report) == {}
    assert report.exit_code == 0


def table() -> str:
    """Mutants and variants, and what the checks made of them."""
    lines = [f"{'mutant or variant':<30} exit  noticed by"]
    for name in (*MUTANTS, *VARIANTS):
        report = run(mutant=name) if name in MUTANTS else run(variant=name)
        noticed = ", ".join(
            f"{check_name} ({', '.join(f'{count} {result}' for result, count in sorted(results.items()))})"
            for check_name, results in sorted(killers(report).items())
        )
        lines.append(f"{name:<30} {report.exit_code:>4}  {noticed or '-'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201 - the table is what this is run for
