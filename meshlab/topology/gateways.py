"""Gateways: from checked documents to waypoints, each with the draft of its pod and the Service that leads to it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import cast

from meshlab.model import (
    DATAPLANE_MODE,
    GATEWAY_NAME,
    WAYPOINT_CLASS,
    WAYPOINT_FOR,
    Serves,
    Service,
    ServicePort,
    Waypoint,
)
from meshlab.model.ambient import HBONE_PORT
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes
from meshlab.topology.workloads import Draft


def waypoint(document: Map, notes: Notes) -> Waypoint | None:
    """A ``kind: Gateway``; ``None`` of a class that is no waypoint's, which has no effect here."""
    metadata, spec = document.map("metadata"), document.map("spec")
    if spec.text("gatewayClassName") != WAYPOINT_CLASS:
        notes.warn(
            spec.at("gatewayClassName"),
            f"the Gateway '{metadata.text('name')}' has no effect: the lab has no ingress, and only those of the class "
            f"{WAYPOINT_CLASS} are waypoints",
        )
        return None
    for each in spec.maps("listeners"):
        if each.value("port") not in (None, HBONE_PORT):
            notes.refuse(each.at("port"), f"port {each.text('port')} is refused: a waypoint listens on {HBONE_PORT}")
        if each.text("protocol", "HBONE") != "HBONE":
            why = "a waypoint takes nothing but HBONE"
            notes.refuse(each.at("protocol"), f"the protocol '{each.text('protocol')}' is refused: {why}")
    admitting = (each.map("allowedRoutes").map("namespaces").text("from") for each in spec.maps("listeners"))
    return Waypoint(
        name=metadata.text("name"),
        namespace=metadata.text("namespace", "default"),
        serves=cast("Serves", metadata.strings("labels").get(WAYPOINT_FOR, "service")),
        from_all="All" in admitting,
    )


def draft(made: Waypoint, document: Map) -> Draft:
    """The pod of a waypoint. It is never enrolled: its own 15008 and a ztunnel's would share what comes in."""
    return Draft(
        name=made.name,
        namespace=made.namespace,
        place=document.map("metadata").at("name"),
        labels={GATEWAY_NAME: made.name, DATAPLANE_MODE: "none"},
        service_account=made.name,
        gateway=made.name,
    )


def service(made: Waypoint, ipv4: IPv4Address | None, ipv6: IPv6Address | None) -> Service:
    """The Service by which node proxies find a waypoint: they ask for its host name."""
    return Service(
        name=made.name,
        namespace=made.namespace,
        ipv4=ipv4,
        ipv6=ipv6,
        selector={GATEWAY_NAME: made.name},
        ports=(ServicePort(port=HBONE_PORT, target_port=HBONE_PORT, name="mesh"),),
        labels={GATEWAY_NAME: made.name},
    )
