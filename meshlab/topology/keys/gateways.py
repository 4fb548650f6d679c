"""Keys of Gateways: those of the class ``istio-waypoint`` are waypoints."""

from __future__ import annotations

from meshlab.model.gateway import WAYPOINT_CLASS, WAYPOINT_FOR
from meshlab.topology import shapes
from meshlab.topology.keys.common import NO_ANNOTATIONS, object_keys
from meshlab.topology.keys.key import each, honoured, inert, refused, under

GATEWAY = {
    **object_keys(shapes.LABEL),
    "metadata.labels.*": inert("of the labels only those here are read"),
    f"metadata.labels.{WAYPOINT_FOR}": honoured(
        shapes.one_of("service", "workload", "all", "none"), why="`service` where it is not given"
    ),
    **NO_ANNOTATIONS,
    "spec.gatewayClassName": honoured(
        shapes.SUBDOMAIN,
        required=True,
        why=f"one of another class than {WAYPOINT_CLASS} is inert: the lab has no ingress",
    ),
    "spec.listeners[].allowedRoutes.namespaces.from": honoured(
        shapes.one_of("Same", "All"), why="whether objects of other namespaces may use it; `Same` where it is not given"
    ),
    "spec.listeners[].allowedRoutes.namespaces.selector": refused(
        "write `from: All`, or a waypoint for each namespace"
    ),
    "spec.listeners[].allowedRoutes.kinds": inert("nothing but HBONE comes in"),
    "spec.listeners[].port": honoured(shapes.PORT, why="of a waypoint, 15008"),
    "spec.listeners[].protocol": honoured(why="of a waypoint, HBONE"),
    **under("spec.listeners[].", each("name hostname tls", inert("a waypoint listens on 15008, for HBONE"))),
    **under(
        "spec.", each("addresses infrastructure backendTLS", inert("the lab gives a waypoint its pod and its address"))
    ),
}
