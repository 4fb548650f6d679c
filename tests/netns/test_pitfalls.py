"""The files of ``topologies/pitfalls``: each fails on a mutant with the fault that users reported, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlab.lab.sources import read, shipped
from meshlab.play.replay import Word, replay
from meshlab.testing.registry import MUTANTS

SHOWN_BY = {
    "address-of-another-pod": "address-reuse",
    "agent-restarts": "agent-forgets-after-restart",
    "control-plane-restarts": "ready-before-its-snapshot",
    "end-stays-an-end": "resets-instead-of-ending",
    "first-call-of-a-new-pod": "first-call-without-a-certificate",
    "init-container-calls": "refuses-pods-that-start",
    "namespace-gets-its-label": "agent-writes-no-rules",
    "node-reboots": "agent-trusts-rules-after-a-reboot",
    "open-connection-is-denied": "open-connection-escapes-a-new-policy",
    "pod-opts-out": "released-pod-stays-captured",
    "policy-gets-a-selector": "sees-changes-of-rules-only",
    "same-name-other-account": "old-certificate-after-enrolment",
    "ztunnel-restarts": "plaintext-during-restart",
    "ztunnel-rolls-out": "listens-while-it-drains",
}
"""File -> the mutant that it tells from the reference."""
FOLDER = "pitfalls/"
FILES = [name.removeprefix(FOLDER) for name in shipped() if name.startswith(FOLDER)]


def test_each_file_has_its_mutant_and_each_mutant_of_pitfalls_its_file() -> None:
    assert sorted(FILES) == sorted(SHOWN_BY)
    made = {name for name, mutant in MUTANTS.items() if ".mutants.pitfalls:" in mutant.entry}
    assert made <= set(SHOWN_BY.values()) <= set(MUTANTS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_begins_with_what_was_reported_what_is_right_and_who_shows_it(name: str) -> None:
    lines = shipped()[FOLDER + name].read_text().splitlines()
    head = lines[: lines.index("apiVersion: meshlab.dev/v1alpha1")]
    assert 2 <= len(head) <= 3
    assert head[0].startswith(("# Reported: istio/istio#", "# Reported: istio/ztunnel#"))
    assert head[1].startswith("# Right: ")
    assert SHOWN_BY[name] in head[-1]


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_run_under_its_own_name(name: str) -> None:
    source = read(FOLDER + name)
    assert (source.topology.name, source.unrunnable) == (name, ())


@pytest.mark.parametrize("name", FILES)
def test_a_file_fails_on_its_mutant(name: str, tmp_path: Path) -> None:
    played = replay(read(FOLDER + name), 1, tmp_path, mutant=SHOWN_BY[name])
    assert played.word is Word.FAILED, played.reasons


@pytest.mark.parametrize("name", FILES)
def test_the_reference_does_as_a_file_says(name: str, tmp_path: Path) -> None:
    played = replay(read(FOLDER + name), 1, tmp_path)
    assert played.word is Word.FIXED, played.reasons
