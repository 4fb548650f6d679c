"""The manifests of one text, each checked, read as far as it can be alone, and there once.

A file and a change of a running lab are read alike; what they come to beside what was there before is ``assembly``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshlab.model import (
    AuthorizationPolicy,
    DestinationRule,
    Endpoints,
    Namespace,
    PeerAuthentication,
    Route,
    Waypoint,
)
from meshlab.topology import gateways, http_routes, policies, services, virtual_services, workloads
from meshlab.topology.nodes import Map
from meshlab.topology.notes import Notes, Place


def expanded(documents: list[Map], notes: Notes) -> Iterator[Map]:
    """``kind: List``, as ``kubectl get -o yaml`` prints it, is its items."""
    for document in documents:
        if document.text("kind") != "List":
            yield document
            continue
        for item in document.items("items"):
            if isinstance(item, Map):
                yield item
            else:
                notes.refuse(item.place, "an item of a List is a mapping with apiVersion and kind")


class Gathered:
    """What one text holds, in its order."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.places: dict[tuple[str, str], Place] = {}
        """Kind and key -> where it is named."""
        self.declared: dict[str, Namespace] = {}
        self.mentioned: dict[str, None] = {}
        """Namespaces in which something is: they exist, declared or not."""
        self.drafts: list[workloads.Draft] = []
        self.deployments: set[str] = set()
        """``namespace/name``."""
        self.services: dict[str, Map] = {}
        """Service (``name.namespace``) -> its document: which addresses it has is known later."""
        self.endpoints: list[Endpoints] = []
        self.waypoints: list[Waypoint] = []
        self.routes: list[Route] = []
        """Those that have no effect, too: one of them may take the place of one that had."""
        self.destination_rules: list[DestinationRule] = []
        self.authorization_policies: list[AuthorizationPolicy] = []
        self.peer_authentications: list[PeerAuthentication] = []
        self.request_authentications: list[Map] = []
        """Documents: what is at their URLs is known later."""

    def add(self, kind: str, document: Map) -> None:
        """Read one checked document of any kind but ``Lab``."""
        metadata = document.map("metadata")
        name, namespace = metadata.text("name"), metadata.text("namespace", "default")
        key = name if kind == "Namespace" else f"{namespace}/{name}"
        if kind not in ("ServiceAccount", "Pod"):
            self.refuse_second(kind, key, metadata.at("name"))
        if kind != "Namespace":
            self.mentioned[namespace] = None
        match kind:
            case "Namespace":
                self.declared[key] = Namespace(name=key, labels=metadata.strings("labels"))
            case "Pod":
                self.add_pods([workloads.verbatim(document, self._notes)])
            case "Deployment":
                self.deployments.add(key)
                self.add_pods(workloads.replicas(document, len(self.drafts), self._notes))
            case "Service":
                self.services[f"{name}.{namespace}"] = document
            case "Endpoints":
                self.endpoints.append(services.endpoints(document, self._notes))
            case "EndpointSlice":
                self.endpoints.append(services.endpoint_slice(document, self._notes))
            case "Gateway":
                if (made := gateways.waypoint(document, self._notes)) is not None:
                    self.waypoints.append(made)
                    self.add_pods([gateways.draft(made, document)])
            case "HTTPRoute":
                self.routes.append(http_routes.http_route(document, self._notes))
            case "TCPRoute":
                self.routes.append(http_routes.tcp_route(document, self._notes))
            case "VirtualService":
                self.routes.append(virtual_services.virtual_service(document, self._notes))
            case "DestinationRule":
                self.destination_rules.append(virtual_services.destination_rule(document, self._notes))
            case "AuthorizationPolicy":
                self.authorization_policies.append(policies.authorization_policy(document, self._notes))
            case "PeerAuthentication":
                self.peer_authentications.append(policies.peer_authentication(document, self._notes))
            case "RequestAuthentication":
                self.request_authentications.append(document)
            case _:
                assert kind == "ServiceAccount"  # its namespace is mentioned above, and that is all it does

    def add_pods(self, drafts: Sequence[workloads.Draft]) -> None:
        for draft in drafts:
            self.refuse_second("Pod", draft.key, draft.place)
            self.mentioned[draft.namespace] = None
        self.drafts += drafts

    def refuse_second(self, kind: str, key: str, place: Place) -> None:
        """Note an issue if there is a ``kind`` called ``key`` already."""
        if (kind, key) in self.places:
            named = f" '{key}'" if key else ""
            self._notes.refuse(place, f"the {kind}{named} is already on line {self.places[kind, key].line}")
        self.places.setdefault((kind, key), place)
