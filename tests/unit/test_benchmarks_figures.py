"""The benchmarks' own arithmetic, and that each of them is there: no clock decides anything here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import living, measure, plugin, pods, soak
from benchmarks.measure import Report
from meshlab.errors import UsageError

_IMPORTTIME = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   meshlab.errors
import time:      2900 |       4100 | meshlab.pytest_plugin
"""


def test_the_spread_is_the_share_by_which_the_largest_exceeds_the_smallest() -> None:
    assert measure.spread([2.0, 2.5, 2.2]) == pytest.approx(0.25)


def test_cpu_time_is_that_of_the_process_which_was_asked_for() -> None:
    before = measure.cpu_s(os.getpid()), time.process_time()
    sum(range(200_000))
    after = measure.cpu_s(os.getpid()), time.process_time()
    assert after[0] - before[0] == pytest.approx(after[1] - before[1], rel=0.5)
    assert after[0] > before[0]


def test_an_import_costs_what_it_was_the_first_to_import_too() -> None:
    assert plugin.import_ms(_IMPORTTIME, "meshlab.pytest_plugin") == 4.1


def test_a_collection_loads_the_plug_in_and_nothing_heavy() -> None:
    loaded = plugin.loaded_by_collection()
    assert "meshlab.pytest_plugin" in loaded
    assert [name for name in plugin.HEAVY if name in loaded] == []


def test_the_pods_that_are_built_are_in_the_mesh_and_on_one_node() -> None:
    mesh = pods.topology(3).mesh
    assert [(pod.key, pod.node, mesh.is_enrolled(pod)) for pod in mesh.pods] == [
        (f"shop/pod-{number}", "node-1", True) for number in range(3)
    ]


def test_every_benchmark_can_be_named_and_is_in_the_readme() -> None:
    readme = (Path(command.__file__).parent / "README.md").read_text()
    assert [name for name in command.BENCHMARKS if f"| `{name}` |" not in readme] == []


@pytest.mark.parametrize(("held", "status"), [(True, 0), (False, 1)])
def test_a_broken_promise_ends_1_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: bool, status: int
) -> None:
    monkeypatch.setattr(command, "BENCHMARKS", {"x": lambda rounds: Report("x", f"{rounds} of them", held)})
    assert command.main(["x", "--rounds", "2"]) == status
    assert capsys.readouterr().out == f"x: {'held' if held else 'BROKEN'}: 2 of them\n"


def _needs(*mib: float) -> soak.Soak:
    return soak.Soak({"owner": [soak.Needs(one, 10, 3) for one in mib]})


def test_a_process_that_needs_more_and_more_grows_and_one_that_warms_up_does_not() -> None:
    assert _needs(10, 50, 90, 91, 92, 93, 94, 95, 96).growing() == []
    assert _needs(10, 11, 90, 91, 20, 21, 22, 23, 24).growing() == []
    assert _needs(10, 20, 30, 40, 50, 60, 70, 80, 90).growing() == [
        "owner: at least 40 MiB in the second third, 70 in the last"
    ]
    leaky = soak.Soak({"netd": [soak.Needs(1, 10 * turn, 3) for turn in range(6)]})
    assert leaky.growing() == ["netd: at least 20 descriptors in the second third, 40 in the last"]


def test_a_row_holds_if_no_byte_was_in_plaintext_and_no_identity_was_wrong() -> None:
    assert not living.Row("x").held
    assert living.Row("x", took_ms=[1.0], failed_new=3, broken_open=2, kept_plaintext=9).held
    assert not living.Row("x", took_ms=[1.0], in_plaintext=1).held
    assert not living.Row("x", took_ms=[1.0], wrong_identity=1).held


def test_a_row_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no row 'boot' \(there are enrolment, "):
        living.run(rows=["boot"])
