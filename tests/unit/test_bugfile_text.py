"""Bug files as text: canonical, small, without surprises; and bad ones end with place and reason, nothing run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings

from meshlab.cli import main
from meshlab.errors import UsageError
from meshlab.fuzz.command import seconds_of
from meshlab.lab.sources import Source, read, shipped
from meshlab.model import Topology
from meshlab.play import command
from meshlab.play.bugfile import formatted, name_of, written
from meshlab.play.replay import Played, Word
from meshlab.strategies import topologies
from meshlab.topology import dump, load

BUG = """\
# shop/batch -> shop/server:8080 should be refused
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: bug}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/batch: {node: node-1, labels: {istio.io/dataplane-mode: none}}   # out of the mesh
    shop/server: {node: node-2, ports: [8080], labels: {app: server}}
  steps:
  - call: {from: shop/batch, to: shop/server:8080, family: 4}
    expect: allow
  - replace:
    - apiVersion: security.istio.io/v1
      kind: PeerAuthentication
      metadata: {name: strict, namespace: shop}
      spec:
        mtls: {mode: STRICT}
  - call: {from: shop/batch, to: shop/server:8080, family: 4, kind: tcp}
    expect: deny
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
BAD = 200


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """What would have been run."""
    ran: list[Source] = []

    def instead(source: Source, runs: int, artifacts: Path | None, **_: Any) -> Played:
        ran.append(source)
        return Played(Word.FIXED, runs, 0)

    monkeypatch.setattr(command, "replay", instead)
    return ran


# -- canonical form


def test_what_a_proxy_said_last_may_be_coloured() -> None:
    text = written(read("quickstart").topology, ["ztunnel ended: \x1b[31mpanicked\x1b[0m at \x00\x7f'src/main.rs'"])
    assert load(text, "coloured.yaml") == load(dump(read("quickstart").topology), "plain.yaml")
    assert "# ztunnel ended: \\x1b[31mpanicked\\x1b[0m at \\x00\\x7f'src/main.rs'" in text


@pytest.mark.parametrize("path", shipped().values(), ids=lambda path: path.stem)
def test_the_canonical_form_of_what_we_ship_is_stable_and_means_the_same(path: Path) -> None:
    text = path.read_text()
    once = formatted(text, path.name)
    assert formatted(once, path.name) == once
    assert load(once, path.name) == load(text, path.name)
    assert once.count("#") == text.count("#")


@settings(deadline=None, max_examples=15)
@given(topologies())
def test_a_written_topology_is_in_canonical_form_and_loads_as_it_was(topology: Topology) -> None:
    text = written(topology, ["first\nsecond", "third"])
    assert text.startswith("# first\n# second\n# third\n")
    assert formatted(text, "x") == text
    assert replace(load(text, "x").mesh, namespaces=()) == replace(topology.mesh, namespaces=())


def test_the_name_of_a_failure_is_that_of_its_content() -> None:
    topology = load(BUG, "bug")
    assert name_of(topology, "verdict") == name_of(load(written(topology, ["x"]), "y"), "verdict")
    assert name_of(replace(topology, steps=()), "verdict") != name_of(topology, "verdict")


def test_fmt_writes_in_place_once_and_keeps_comments(tmp_path: Path) -> None:
    file = tmp_path / "bug.meshlab.yaml"
    file.write_text(BUG.replace("nodes: [node-1, node-2]", "nodes:   [node-1,node-2]").replace("---", "\n\n---\n"))
    assert _run("fmt", "--check", file).exit_code == 1
    assert _run("fmt", file).exit_code == 0
    once = file.read_text()
    assert "nodes: [node-1, node-2]" in once
    assert "# out of the mesh" in once
    assert _run("fmt", "--check", file).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_fmt_leaves_what_is_no_topology(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("kind: Lab\n")
    assert _run("fmt", file).exit_code == 2
    assert file.read_text() == "kind: Lab\n"


# -- bad files


def mutations(seed: int) -> str:
    """``BUG`` mangled in one to three ways."""
    chance = random.Random(seed)  # noqa: S311
    text = BUG
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text))
        match chance.randrange(8):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + text[at + chance.randint(1, 30) :]
            case 2:
                text = text[:at] + chance.choice(list("{}[]:&*!|>'\"%@`\x00\x1b\u2028\t")) + text[at:]
            case 3:
                text = text.replace("v1alpha1", chance.choice(["v1alpha0", "v0", "", "v2"]))
            case 4:
                lines = text.split("\n")
                chance.shuffle(lines)
                text = "\n".join(lines)
            case 5:
                text = text[:at] + text[chance.randrange(len(text)) :] + text
            case 6:
                text = text.replace(
                    chance.choice(["shop", "8080", "deny", "STRICT", "call"]),
                    chance.choice(["", "-1", "[]", "~", "../../etc"]),
                    1,
                )
            case _:
                text = text.replace("kind:", "kind: &a [*a]\nkind:", 1)
    return text


def test_two_hundred_mangled_files_end_with_place_and_reason_and_nothing_is_run(
    tmp_path: Path, played: list[Source]
) -> None:
    file, refused, seed = tmp_path / "bug.meshlab.yaml", 0, 0
    while refused < BAD:
        seed += 1
        file.write_text(mutations(seed), encoding="utf-8")
        before = len(played)
        result = _run("replay", file)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), (seed, result.exception)
        if len(played) > before:
            continue  # it still is a good file
        assert result.exit_code in (2, 3), (seed, result.output)
        assert "bug.meshlab.yaml:" in result.output or "expects nothing" in result.output, (seed, result.output)
        refused += 1
    print(f"{refused} refused of {seed}")  # noqa: T201


def test_a_yaml_bomb_ends_at_once_with_its_place(tmp_path: Path, played: list[Source]) -> None:
    file = tmp_path / "bomb.yaml"
    levels = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    levels += [f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
    file.write_text("\n".join(levels))
    result = _run("replay", file)
    assert (result.exit_code, played) == (2, [])
    assert "bomb.yaml:4" in result.output


def test_a_file_beyond_the_bound_is_not_even_read(tmp_path: Path, played: list[Source]) -> None:
    file = tmp_path / "huge.yaml"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    result = _run("replay", file)
    assert (result.exit_code, played) == (2, [])
    assert "huge.yaml:1:1: 1099511627776 bytes" in result.output


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("ports: [8080],", "ports: [8080], run: [sh, -c, 'rm -rf /'],", "9:53: run: sh -c rm -rf /"),
        ("spec:\n  nodes", "spec:\n  dataplane: {ztunnel: ../../evil}\n  nodes", "6:24: runs the program ../../evil"),
        ("spec:\n  nodes", "spec:\n  dataplane: {waypoint: ./evil}\n  nodes", "6:25: runs the program ./evil"),
        ("[node-1, node-2]", "[node-1, {name: node-2, ztunnel: /x/evil}]", "6:43: runs the program /x/evil"),
        ("  steps:\n", "  steps:\n  - upgrade: {ztunnel@node-1: ./evil}\n", "11:31: runs the program ./evil"),
        ("  steps:", "  mounts: [/]\n  steps:", "10:12: shows its pods /, which is outside its folder"),
        ("  steps:", "  images: {'*x*': {run: [evil]}}\n  steps:", "run: evil"),
    ],
    ids=["run", "ztunnel", "waypoint", "ztunnel of a node", "ztunnel of an upgrade", "mounts", "images"],
)
def test_a_hostile_file_is_shown_and_not_run(
    tmp_path: Path, played: list[Source], old: str, new: str, reason: str
) -> None:
    file = tmp_path / "hostile.meshlab.yaml"
    file.write_text(BUG.replace(old, new, 1))
    result = _run("replay", file)
    assert (result.exit_code, played) == (3, [])
    assert result.output.count(reason) >= 1
    assert "CANNOT-RUN" in result.output
    assert _run("replay", file, "--allow-commands").exit_code == 0
    assert len(played) == 1


def test_a_program_that_an_option_replaces_does_no_harm(tmp_path: Path, played: list[Source]) -> None:
    file = tmp_path / "bug.meshlab.yaml"
    file.write_text(BUG.replace("spec:\n  nodes", "spec:\n  dataplane: {ztunnel: ./theirs}\n  nodes", 1))
    assert _run("replay", file).exit_code == 3
    assert _run("replay", file, "--ztunnel", "reference").exit_code == 0


def test_an_option_replaces_one_program_and_no_other(tmp_path: Path, played: list[Source]) -> None:
    file = tmp_path / "bug.meshlab.yaml"
    file.write_text(
        BUG.replace("spec:\n  nodes", "spec:\n  dataplane: {ztunnel: ./theirs, waypoint: ./evil}\n  nodes", 1)
    )
    assert _run("replay", file, "--ztunnel", "reference").exit_code == 3
    assert _run("replay", file, "--ztunnel", "reference", "--waypoint", "reference").exit_code == 0


def test_a_file_that_expects_nothing_cannot_be_played(tmp_path: Path, played: list[Source]) -> None:
    file = tmp_path / "nothing.yaml"
    file.write_text(BUG[: BUG.index("  steps:")] + BUG[BUG.index("---") :])
    result = _run("replay", file)
    assert (result.exit_code, played) == (3, [])
    assert "neither spec.steps nor spec.expect" in result.output


# -- repro and options


def test_repro_writes_a_test_and_never_over_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-bug.meshlab.yaml").write_text(BUG.replace("metadata: {name: bug}", 'metadata: {name: bug}  # """ \\n'))
    result = _run("repro", "--pytest", "a-bug.meshlab.yaml")
    assert result.output.strip() == "test_a_bug.py"
    names: dict[str, Any] = {}
    exec(compile(Path("test_a_bug.py").read_text(), "test_a_bug.py", "exec"), names)  # noqa: S102
    assert load(names["TOPOLOGY"], "again") == load(BUG, "bug")
    assert _run("repro", "--pytest", "a-bug.meshlab.yaml").exit_code == 2


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30s", 30), ("1.5m", 90), ("2h", 7200)])
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "10 m", "m", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        seconds_of(text)


@pytest.mark.parametrize("option", ["--mutant", "--variant", "--ztunnel"])
@pytest.mark.parametrize("verb", ["fuzz", "replay"])
def test_an_option_that_names_nothing_is_refused_before_anything_runs(verb: str, option: str) -> None:
    assert _run(verb, "quickstart", option, "no-such-thing").exit_code == 2
