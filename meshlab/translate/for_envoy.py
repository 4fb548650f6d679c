"""What a stock Envoy is sent to be a waypoint: manifests to its own messages, in their JSON form.

    15008 --connect_terminate--> TLS, HTTP/2 CONNECT; keeps the authority and the client's address and identity
          --main_internal------> a chain for each address and port that the waypoint serves
          --connect_originate--> HTTP/2 CONNECT to the endpoint's 15008, whose identity must be the endpoint's

Requests are read at the ports of Services that are declared to speak HTTP; elsewhere bytes are passed on as they come.
What is not served matches no chain, and its CONNECT is answered with 503. The parts are in ``translate.envoy``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from meshlab.model import Mesh, Pod
from meshlab.translate.envoy import clusters, listeners
from meshlab.translate.envoy.forms import (
    CLUSTER_TYPE,
    LISTENER_TYPE,
    NOT_FOUND,
    OWN,
    ROOT,
    ROUTE_TYPE,
    SECRET_TYPE,
    Json,
)
from meshlab.translate.envoy.rbac import bound, jwt_rules
from meshlab.translate.envoy.routes import CONNECT, connect, connects, routes, upstreams
from meshlab.translate.envoy.serving import Served, Upstream, destinations, served

__all__ = ["CLUSTER_TYPE", "LISTENER_TYPE", "ROUTE_TYPE", "SECRET_TYPE", "Credentials", "Json", "resources"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM texts."""

    chain: str
    key: str
    root: str


def resources(
    mesh: Mesh, key: str, own: Credentials, unhealthy: Collection[str] = (), also: Mesh | None = None
) -> dict[str, dict[str, Json]]:
    """Everything that the Envoy of the waypoint ``key`` subscribes to: type URL -> resource name -> JSON form.

    Args:
        own: the waypoint's certificate, and the root that the mesh's certificates chain to.
        unhealthy: keys of the pods that are not to be chosen as endpoints *now*.
        also: a mesh of the same pods whose attachments are served, too.
    """
    parts = _Parts()
    if also is not None:
        parts.add(also, key, unhealthy)
    parts.add(mesh, key, unhealthy)
    some = [
        listeners.terminate(mesh),
        listeners.main(parts.served.values(), list(parts.chains.values())),
        listeners.originate(str(mesh.pod(key).identity(mesh.trust_domain))),
    ]
    return {
        CLUSTER_TYPE: {"main_internal": clusters.MAIN, "hbone": clusters.hbone(mesh), **parts.clusters},
        ROUTE_TYPE: {CONNECT: connects(parts.connects.values()), **parts.routes},
        LISTENER_TYPE: {str(listener["name"]): listener for listener in some},
        SECRET_TYPE: {
            OWN: {
                "name": OWN,
                "tls_certificate": {
                    "certificate_chain": {"inline_string": own.chain},
                    "private_key": {"inline_string": own.key},
                },
            },
            ROOT: {"name": ROOT, "validation_context": {"trusted_ca": {"inline_string": own.root}}},
        },
    }


class _Parts:
    """What is different for each waypoint, by name."""

    def __init__(self) -> None:
        self.served: dict[str, Served] = {}
        self.chains: dict[str, Json] = {}
        self.routes: dict[str, Json] = {}
        self.connects: dict[str, Json] = {}
        self.clusters: dict[str, Json] = {}

    def add(self, mesh: Mesh, key: str, unhealthy: Collection[str]) -> None:
        """Serve what ``mesh`` attaches to the waypoint; it takes the place of what has its name."""
        here = list(served(mesh, key))
        waypoint = next((one for one in mesh.waypoints if one.key == key), None)
        routed: list[Upstream] = []
        for one in here:
            assert waypoint is not None, "who serves something is there"
            service = one.to.service if isinstance(one.to, Upstream) else None
            policies = bound(mesh, waypoint, service)
            if isinstance(one.to, Upstream) and one.to.port.is_http:
                routed += upstreams(mesh, one.to)
                self._take(one, listeners.http_chain(one, jwt_rules(mesh, waypoint, service)))
                self.routes[one.name] = routes(mesh, one.name, one.to, policies)
                continue
            to = destinations(mesh, one.to) if isinstance(one.to, Upstream) else []
            if isinstance(one.to, Pod) or any(each and each.endpoints(mesh, unhealthy) for each, _ in to):
                routed += [each for each, _ in to if each is not None]
                split = [(each.name if each else NOT_FOUND, weight) for each, weight in to] or [(one.name, 1)]
                self._take(one, listeners.bytes_chain(one, policies, split))
                if (judged := connect(one, policies)) is not None:
                    self.connects[one.name] = judged
        self.clusters.update(clusters.clusters(mesh, here, routed, unhealthy))

    def _take(self, one: Served, chain: Json) -> None:
        self.served[one.name] = one
        self.chains[one.name] = chain
        self.routes.pop(one.name, None)
        self.connects.pop(one.name, None)
