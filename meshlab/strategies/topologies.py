"""Whole labs, and what is in them: names that are prefixes and suffixes of each other, pods in and out of the mesh."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from meshlab.model import (
    DATAPLANE_MODE,
    FAMILIES,
    CallStep,
    ContainerPort,
    Mesh,
    Namespace,
    Node,
    Pod,
    Service,
    ServicePort,
    SpiffeId,
    Topology,
)
from meshlab.model import addresses as places
from meshlab.oracle import connection, decide
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.near import near_identities
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.strategies.shapes import draw_shape

NAMESPACES = ("shop", "shop-evil", "xshop", "bank")
ACCOUNTS = ("web", "web-admin", "a", "default")
_PORTS = (8080, 9090, 80, 8081)


def topologies(max_pods: int = 5) -> st.SearchStrategy[Topology]:
    """A lab of one or two nodes with two to ``max_pods`` pods, one of them out of the mesh, a Service and policies."""

    def make(choices: Choices) -> Topology:
        nodes = choices.one_of((2, 1))
        pods = tuple(_pod(choices, place, nodes) for place in range(choices.one_of(range(2, max_pods + 1))))
        outside = replace(pods[-1], labels={**pods[-1].labels, DATAPLANE_MODE: "none"})
        mesh = Mesh(namespaces=_namespaces(pods), pods=(*pods[:-1], outside))
        mesh = replace(mesh, services=(_service(choices, mesh, 0),))
        return Topology(
            name="generated",
            nodes=tuple(Node(name=f"node-{number + 1}") for number in range(nodes)),
            mesh=draw_policies(Drawing.about(choices, mesh)),
        )

    return drawn(make, 160)


def services(mesh: Mesh, place: int = 0) -> st.SearchStrategy[Service]:
    """A Service over pods of ``mesh`` that have a label, with the VIPs of the ``place``-th of a file."""
    return drawn(lambda choices: _service(choices, mesh, place), 8)


def spiffe_ids(mesh: Mesh | None = None) -> st.SearchStrategy[SpiffeId]:
    """Identities of the pods of ``mesh`` and ones that are nearly theirs; without a mesh, of names used here."""
    known = sorted({pod.identity(mesh.trust_domain) for pod in mesh.pods}) if mesh else []
    known = known or [SpiffeId("cluster.local", namespace, account) for namespace in NAMESPACES for account in ACCOUNTS]
    return drawn(lambda choices: _identity(choices, known), 3)


def calls(mesh: Mesh) -> st.SearchStrategy[CallStep]:
    """A call between two pods of ``mesh``, with the verdict of its policies."""

    def make(choices: Choices) -> CallStep:
        destination = choices.one_of([pod for pod in mesh.pods if pod.ports])
        source = choices.one_of([pod for pod in mesh.pods if pod.key != destination.key])
        port, family = choices.one_of(destination.ports).number, choices.one_of(FAMILIES)
        decision = decide(mesh, connection(mesh, source, destination, port, family))
        return CallStep(
            source=source.key,
            to=f"{destination.key}:{port}",
            family=family,
            shape=draw_shape(choices),
            expect=decision.verdict,
        )

    return drawn(make, 12)


def _pod(choices: Choices, place: int, nodes: int) -> Pod:
    """Its name has its place in it, so that no two are alike."""
    node, account = choices.number() % nodes, choices.one_of(ACCOUNTS)
    first = choices.one_of(_PORTS)
    return Pod(
        name=f"{account}-{place}",
        namespace=choices.one_of(NAMESPACES),
        node=f"node-{node + 1}",
        ipv4=places.pod4(node, place),
        ipv6=places.pod6(node, place),
        labels={"app": account},
        service_account=account,
        ports=tuple(ContainerPort(number=number) for number in sorted({first, choices.one_of(_PORTS)})),
    )


def _namespaces(pods: tuple[Pod, ...]) -> tuple[Namespace, ...]:
    names = dict.fromkeys(pod.namespace for pod in pods)
    return tuple(Namespace(name=name, labels={DATAPLANE_MODE: "ambient"}) for name in names)


def _service(choices: Choices, mesh: Mesh, place: int) -> Service:
    pod = choices.one_of([pod for pod in mesh.pods if pod.ports and pod.labels])
    key = choices.one_of(sorted(set(pod.labels) - {DATAPLANE_MODE}) or sorted(pod.labels))
    families = choices.one_of(((4, 6), (4,), (6,)))
    return Service(
        name=f"service-{place}",
        namespace=pod.namespace,
        ipv4=places.service4(place) if 4 in families else None,
        ipv6=places.service6(place) if 6 in families else None,
        selector={key: pod.labels[key]},
        ports=(ServicePort(port=choices.one_of((7000, 80)), target_port=choices.one_of(pod.ports).number),),
    )


def _identity(choices: Choices, known: list[SpiffeId]) -> SpiffeId:
    identity = choices.one_of(known)
    return choices.one_of([*[identity] * 4, *near_identities(identity)])
