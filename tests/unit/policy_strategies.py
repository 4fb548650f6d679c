"""Policies and connections that are adversarially close, refused ones included: for what needs no API server's consent.

    cases(base) -> a connection to a pod of ``base``, and policies that just fit it, or just do not

A case is made as ``meshlab.strategies`` makes policies, only with values that Istio's API server refuses among them,
and with connections that no pod would make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from meshlab.model import FAMILIES, Connection, ContainerPort, Mesh, Namespace, Pod
from meshlab.model import addresses as places
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.near import Near, near_identities
from meshlab.strategies.policies import Drawing, draw_policies

_CHOICES = 320


@dataclass(frozen=True, slots=True)
class Case:
    """One question to both evaluators, and with ``neighbours`` some twenty."""

    mesh: Mesh
    connection: Connection

    def neighbours(self) -> list[Connection]:
        """Connections that differ in one thing: who calls, the family, the port, the destination."""
        asked, pod = self.connection, self.mesh.pod(self.connection.destination)
        pods = self.mesh.pods
        identities = [pod.identity(self.mesh.trust_domain) for pod in pods[:3]]
        callers = [None, *identities, *near_identities(asked.source or identities[0])]
        source_ips = [address for caller in pods[:2] for address in (caller.ipv4, caller.ipv6)]
        enrolled = [other for other in pods if other is not pod and self.mesh.is_enrolled(other)]
        return [
            *(replace(asked, source=caller) for caller in callers),
            *(replace(asked, source_ip=ip) for ip in source_ips if ip.version == asked.source_ip.version),
            *(replace(asked, port=port.number) for port in pod.ports),
            *(
                replace(asked, destination=other.key, destination_ip=other.address(asked.destination_ip.version))
                for other in enrolled
            ),
        ]


def example_mesh() -> Mesh:
    """Enrolled pods whose namespaces, accounts and labels are prefixes and suffixes of each other, and one outside."""
    namespaces = ("shop", "shop-evil", "xshop", "istio-system")
    workloads = (("a", "web"), ("ab", "web-admin"), ("a", "default"))
    kinds = [(namespace, app, account) for namespace in namespaces for app, account in workloads]
    pods = [_pod(place, *kind) for place, kind in enumerate(kinds)]
    outside = replace(
        _pod(len(kinds), "shop", "ab", "web"), name="outside", annotations={"sidecar.istio.io/status": "{}"}
    )
    ambient = {"istio.io/dataplane-mode": "ambient"}
    return Mesh(namespaces=tuple(Namespace(name=name, labels=ambient) for name in namespaces), pods=(*pods, outside))


def _pod(place: int, namespace: str, app: str, account: str) -> Pod:
    node = place % 2
    return Pod(
        name=f"{app}-{account}",
        namespace=namespace,
        node=f"node-{node + 1}",
        ipv4=places.pod4(node, place),
        ipv6=places.pod6(node, place),
        labels={"app": app, "tier": account},
        service_account=account,
        ports=(ContainerPort(number=8080), ContainerPort(number=9090)),
    )


def cases(base: Mesh) -> st.SearchStrategy[Case]:
    """A connection to an enrolled pod of ``base``, and up to three policies of one kind or of both."""

    def make(choices: Choices) -> Case:
        connection = _connection(choices, base)
        return Case(draw_policies(Drawing.of(choices, Near(base, connection, anything=True))), connection)

    return drawn(make, _CHOICES)


def _connection(choices: Choices, base: Mesh) -> Connection:
    """From a pod of ``base``, or from somebody who is nearly one, or without identity."""
    source = choices.one_of(base.pods)
    destination = choices.one_of([pod for pod in base.pods if base.is_enrolled(pod)])
    family = choices.one_of(FAMILIES)
    identity = source.identity(base.trust_domain)
    return Connection(
        source=choices.one_of([*[identity] * 5, *[None] * 5, *near_identities(identity)]),
        source_ip=source.address(family),
        destination=destination.key,
        destination_ip=destination.address(family),
        port=choices.one_of([port.number for port in destination.ports] or [80]),
    )
