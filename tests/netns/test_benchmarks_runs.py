"""The benchmarks that need a kernel run to their end; how fast they were is nobody's business here."""

from __future__ import annotations

from benchmarks import calls, lifetime, pods, start


def test_pods_are_built_with_rules_and_opened_in_each_size() -> None:
    report = pods.run(rounds=1, sizes=(50, 100))
    assert {"50_pods_ms_each", "100_pods_ms_each", "spread_of_cpu"} <= report.figures.keys()


def test_calls_go_through_the_mesh_and_beside_it_and_are_proved() -> None:
    report = calls.run(rounds=1, batches=(8,), calls=20)
    assert {"mesh_in_batches_of_8_per_s", "plain_in_batches_of_8_per_s", "floor_ratio_8"} == report.figures.keys()
    assert any("ztunnel@node-1" in line and "echo@node-2" in line for line in report.lines)


def test_a_lab_starts_from_nothing_twice() -> None:
    report = start.run(rounds=1)
    assert all(value > 0 for value in report.figures.values())


def test_after_much_more_traffic_than_the_recorder_keeps_a_window_proves_and_memory_is_flat() -> None:
    report = lifetime.run(rounds=4)
    assert report.figures["recorded_mib"] > 512
    assert report.figures["lost_mib"] == 0
    assert report.held, report.text()
