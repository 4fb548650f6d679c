"""Asks every server of a lab what it counted: the echoes, and, for programs of pods' own, the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from meshlab.lab.names import behind
from meshlab.lab.site import Site
from meshlab.model import Call, Mesh
from meshlab.proofs.arrivals import Arrival, Arrivals, unexplained
from meshlab.proofs.route import Target

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_PATIENCE_S = 10.0


def arrived(lab: Lab, denied: Sequence[Call], made: Sequence[Call]) -> dict[int, str]:
    """Number of each of the ``denied`` calls of which something reached a server -> what, as half a sentence.

    Args:
        made: all calls of that time, whose connections are not taken for those of the denied ones.
    """
    if not denied:
        return {}
    counted = lab.arrivals(denied, min(call.started_ns for call in denied))
    wiring = lab.captures.wiring()
    found = {}
    for call in denied:
        targets = [Target(pod.key, port) for pod, port in behind(lab.mesh, call.to)]
        if some := unexplained(counted, wiring, call, targets, made):
            found[call.number] = str(some[0])
        elif call.number in counted.canaries:
            found[call.number] = "its canary reached a server"
    return found


def count(site: Site, mesh: Mesh, calls: Sequence[Call], since_ns: int) -> Arrivals:
    """What was counted from ``since_ns`` on; ``calls`` are those whose canaries are looked for."""
    canaries = {call.canary.decode(): call.number for call in calls}
    asked = {
        node: echo.post("received", canaries=list(canaries), since_ns=since_ns) for node, echo in site.echoes.items()
    }
    answers = [site.echoes[node].answer(number, _PATIENCE_S)[0] for node, number in asked.items()]
    return Arrivals(
        since_ns=since_ns,
        connections=tuple(_arrival(*row) for answer in answers for row in answer["connections"]),
        canaries=frozenset(canaries[text] for answer in answers for text in answer["received"]),
        forgotten_until_ns=max((answer["forgotten_until_ns"] for answer in answers), default=0),
        echoes=frozenset(
            Target(pod.key, port.number) for pod in mesh.pods if pod.program is None for port in pod.ports
        ),
    )


def _arrival(pod: str, port: int, client: str, client_port: int, opened_ns: int, last_ns: int, size: int) -> Arrival:
    return Arrival(pod, port, ip_address(client), client_port, opened_ns, last_ns, size)
