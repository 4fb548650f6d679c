"""The named steps that a lab passes, and their order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from benchmarks.living import LAB
from meshlab.lab.steps import STEPS

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

GUEST = "{apiVersion: v1, kind: Pod, metadata: {name: guest, namespace: shop}}"
LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop}
spec: {nodeName: node-1, containers: [{name: c, image: any}]}
"""


def test_a_lab_passes_the_steps_of_the_table_in_their_order(lab_factory: LabFactory) -> None:
    passed: list[str] = []
    with lab_factory(LAB, step=passed.append) as lab:
        built = len(passed)
        lab.delete(GUEST)
        lab.apply(LATE)
        lab.pod("moving/server").enrol()
        changed = len(passed)
        lab.reset()  # in one transition one pod goes, another comes, and a third leaves the mesh
        back = len(passed)
        lab.pod("shop/client").http("http://server:8080/")
    assert set(passed) == set(STEPS)
    assert passed[:built] == sorted(passed[:built], key=STEPS.index)
    assert passed[changed:back] == [
        "leaving",
        "left",
        "mid-batch",
        "pods built",
        "released",
        "enrolling",
        "enrolled",
        "links open",
        "ready",
    ]
    assert passed[changed:] == sorted(passed[changed:], key=STEPS.index)
