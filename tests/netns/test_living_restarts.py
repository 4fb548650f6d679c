"""What the lab's programs that start again know of what was before them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from benchmarks.living import LAB
from meshlab.model import DATAPLANE_MODE, Outcome

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

GUEST = """
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: shop}
spec:
  nodeName: node-1
  serviceAccountName: guest
  containers: [{name: c, image: any, ports: [{containerPort: 8080}]}]
"""


def test_a_pod_whose_proxy_has_kept_a_certificate_of_an_earlier_control_plane_comes_again(
    lab_factory: LabFactory,
) -> None:
    with lab_factory(LAB) as lab:
        lab.delete(GUEST)
        lab.apply(GUEST)
        lab.instance("control-plane").restart()
        lab.reset()  # one transition, in which a guest goes and another comes
        assert lab.pod("shop/guest").http("http://server:8080/").outcome is Outcome.OK


def test_a_control_plane_that_starts_again_and_again_leaves_nothing_for_the_audit(lab_factory: LabFactory) -> None:
    with lab_factory(LAB) as lab:
        for _ in range(8):
            lab.instance("control-plane").restart()
            lab.audit()
        lab.namespace("moving").label({DATAPLANE_MODE: "ambient"})
        assert lab.pod("moving/client").http("http://server.shop:8080/").outcome is Outcome.OK
