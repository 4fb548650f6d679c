"""In which order the pods of a new mesh start, and who is published as healthy meanwhile."""

from __future__ import annotations

from meshlab.model import Mesh
from meshlab.plan.transition import Stage, transition
from meshlab.topology import load

TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: stages}
spec:
  pods:
    shop/waits: {init: [{run: ["true"]}]}
    shop/echo: {ports: [8080]}
    shop/runs: {run: [sleep, infinity]}
    shop/both: {run: [sleep, infinity], init: [{run: ["true"]}]}
"""


def stages(text: str) -> list[Stage]:
    return list(transition(Mesh(), load(text, "stages.yaml").mesh))


def test_pods_with_init_containers_start_behind_those_that_they_may_wait_for() -> None:
    """And with those published as healthy, since a Service leads to nobody else."""
    started = [
        (stage.name, [pod.name for pod in stage.pods], stage.served and sorted(stage.served.unhealthy))
        for stage in stages(TOPOLOGY)
        if stage.name in {"announce", "start", "ready", "publish"}
    ]
    assert started == [
        ("announce", ["waits", "echo", "runs", "both"], ["shop/both", "shop/runs", "shop/waits"]),
        ("start", ["runs"], None),
        ("ready", ["runs"], ["shop/both", "shop/waits"]),
        ("start", ["waits", "both"], None),
        ("publish", [], []),
    ]


def test_nothing_is_published_in_between_where_nobody_waits() -> None:
    without = "\n".join(line for line in TOPOLOGY.splitlines() if "init:" not in line)
    assert [stage.name for stage in stages(without)] == ["make", "announce", "open", "start", "publish", "name"]
