"""The mesh that a text makes of the one before: from the empty one where the text is a file, else from a lab's.

    gathered text ---.
                      >-- namespaces, Services, Endpoints, policies, pods, the ports that Services lead to --> mesh
    mesh before -----'

Names are those of Kubernetes: an object has its kind, its namespace and its name, and one that is there already changes
where it stands, as it keeps its age in a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from typing import Any, TypeVar

from meshlab.model import Address, Mesh, Namespace, Pod, Route, Service, TcpRule, Waypoint, addresses
from meshlab.topology import gateways, placement, policies
from meshlab.topology import services as manifests
from meshlab.topology.gathered import Gathered
from meshlab.topology.nodes import Map
from meshlab.topology.notes import START, Notes, Place

T = TypeVar("T")


def assembled(before: Mesh, given: Gathered, ground: placement.Ground, notes: Notes, *, remake: bool = False) -> Mesh:
    """``before`` with everything that is ``given``; what is wrong with it is noted.

    Args:
        before: the empty mesh for a file.
        given: one text.
        ground: nodes, programs and what URLs hold.
        notes: takes issues, and warnings of what has no effect.
        remake: whether pods that are there are replaced by others, and not changed.
    """
    owned = _addresses(before)
    mesh = replace(
        before,
        namespaces=_namespaces(before, given),
        services=_services(before, given.services.values(), given.waypoints, owned, notes),
        waypoints=merged(before.waypoints, given.waypoints),
        endpoints_by_hand=merged(before.endpoints_by_hand, given.endpoints, _kind_and_key),
        routes=_routes(before, given, notes),
        destination_rules=merged(before.destination_rules, given.destination_rules),
        authorization_policies=merged(before.authorization_policies, given.authorization_policies),
        peer_authentications=merged(before.peer_authentications, given.peer_authentications),
        request_authentications=merged(
            before.request_authentications,
            [policies.request_authentication(each, ground.urls, notes) for each in given.request_authentications],
        ),
    )
    mesh = placement.with_drafts(mesh, given, ground, owned, notes, remake=remake)
    mesh = _with_target_ports(mesh, given.services, notes)
    _refuse_shared_addresses(mesh, given, notes)
    _warn_of_routes(mesh, given, notes)
    return mesh


def _key(thing: Any) -> str:
    return str(thing.key)


def _kind_and_key(thing: Any) -> tuple[str, str]:
    return thing.kind, thing.key


def merged(old: Iterable[T], new: Iterable[T], key: Callable[[T], Any] = _key) -> tuple[T, ...]:
    """``old`` with each of ``new`` in place of the one of its key, or behind the others."""
    both = {key(one): one for one in old}
    both.update((key(one), one) for one in new)
    return tuple(both.values())


def _namespaces(before: Mesh, given: Gathered) -> tuple[Namespace, ...]:
    named = merged(before.namespaces, given.declared.values(), lambda namespace: namespace.name)
    known = {namespace.name for namespace in named}
    return (*named, *(Namespace(name=name) for name in given.mentioned if name not in known))


def _addresses(mesh: Mesh) -> frozenset[Address]:
    owners: tuple[Pod | Service, ...] = (*mesh.pods, *mesh.services)
    return frozenset(address for owner in owners for address in (owner.ipv4, owner.ipv6) if address)


def _services(
    before: Mesh, documents: Iterable[Map], waypoints: Iterable[Waypoint], owned: frozenset[Address], notes: Notes
) -> tuple[Service, ...]:
    """A Service that is there keeps the addresses that its manifest does not name; a new one gets the next free."""
    services = {each.key: each for each in before.services}
    for document in documents:
        free = _free(services, owned)
        metadata = document.map("metadata")
        old = services.get(f"{metadata.text('name')}.{metadata.text('namespace', 'default')}")
        made = manifests.service(document, _kept_addresses(old, free), notes)
        services[made.key] = made
    for waypoint in waypoints:
        made = gateways.service(
            waypoint, *_kept_addresses(services.get(f"{waypoint.name}.{waypoint.namespace}"), _free(services, owned))
        )
        services[made.key] = made
    return tuple(services.values())


def _free(services: Mapping[str, Service], owned: frozenset[Address]) -> tuple[IPv4Address, IPv6Address]:
    """The next addresses that are nobody's, also not those that a manifest has named."""
    named = {address for each in services.values() for address in (each.ipv4, each.ipv6)}
    return next(
        pair
        for place in count(len(services))
        if (owned | named).isdisjoint(pair := (addresses.service4(place), addresses.service6(place)))
    )


def _kept_addresses(
    old: Service | None, free: tuple[IPv4Address, IPv6Address]
) -> tuple[IPv4Address | None, IPv6Address | None]:
    if old is None:
        return free
    if old.ipv4 is None and old.ipv6 is None:
        return None, None  # headless, and stays so
    return old.ipv4 or free[0], old.ipv6 or free[1]


def _with_target_ports(mesh: Mesh, named: Mapping[str, Map], notes: Notes) -> Mesh:
    """``mesh`` with what Services add to its pods; that is noted, and who of the ``named`` has nobody behind it."""
    mesh, added = placement.with_target_ports(mesh)
    places = {key: document.map("metadata").at("name") for key, document in named.items()}
    for service, pod, number in added:
        if service.key in places:
            notes.warn(
                places[service.key],
                f"Service '{service.key}' leads to port {number} of pod '{pod.key}', which does not declare it: the "
                f"built-in echo listens there too",
            )
    for service in mesh.services:
        if service.key in places and (why := placement.nobody_behind(mesh, service)):
            notes.warn(places[service.key], f"nobody stands behind Service '{service.key}': {why}")
    return mesh


def _refuse_shared_addresses(mesh: Mesh, given: Gathered, notes: Notes) -> None:
    """Two owners of one address are an issue, at the one that asks for it.

    So owners are gone through in this order: those that were there before, pods with the addresses of their places,
    pods that name theirs, Services.
    """
    drafts = {draft.key: draft for draft in given.drafts}
    ranked: list[tuple[int, Place, Pod | Service]] = []
    for pod in mesh.pods:
        draft = drafts.get(pod.key)
        if draft is None:
            ranked.append((0, START, pod))
        else:
            asks = draft.ipv4 is not None or draft.ipv6 is not None
            ranked.append((2, draft.ips_place, pod) if asks else (1, draft.place, pod))
    for service in mesh.services:
        document = given.services.get(service.key)
        ranked.append((3, document.map("spec").at("clusterIP"), service) if document else (0, START, service))
    owners: dict[Address, Pod | Service] = {}
    for _, place, owner in sorted(ranked, key=lambda entry: entry[0]):
        for address in (owner.ipv4, owner.ipv6):
            first = owners.setdefault(address, owner) if address else owner
            if first is not owner:
                notes.refuse(place, f"{address} of {_named(owner)} is also that of {_named(first)}")


def _named(owner: Pod | Service) -> str:
    return f"{'pod' if isinstance(owner, Pod) else 'Service'} '{owner.key}'"


# --- routes ----------------------------------------------------------------------------------------------------------


def _routes(before: Mesh, given: Gathered, notes: Notes) -> tuple[Route, ...]:
    """Every route that is for a Service; those of both kinds for one Service are an issue.

    Source: https://istio.io/latest/docs/ambient/usage/l7-features/
    """
    both = merged(before.routes, given.routes, _kind_and_key)
    routes = tuple(route for route in both if route.services)
    kinds: dict[str, Route] = {}
    for route in routes:
        for service, _ in route.services:
            first = kinds.setdefault(service, route)
            if first.kind != route.kind:
                place = given.places.get((route.kind, route.key)) or given.places[first.kind, first.key]
                notes.refuse(
                    place,
                    f"the {route.kind} '{route.key}' is for Service '{service}', as is the {first.kind} '{first.key}': "
                    f"Istio does not support both kinds for one Service; write routes of one kind",
                )
    return routes


def _has_port_for(rule: TcpRule, route: Route, service: Service) -> bool:
    ports = {number for key, number in route.services if key == service.key}
    return any(
        not port.is_http and ports & {None, port.port} and (not rule.ports or port.port in rule.ports)
        for port in service.ports
    )


def _warn_of_routes(mesh: Mesh, given: Gathered, notes: Notes) -> None:
    """Note which of the given routes and DestinationRules have no effect as the mesh is now."""
    services = {service.key: service for service in mesh.services}
    for route in given.routes:
        for service in dict.fromkeys(service for service, _ in route.services):
            waypoint = mesh.waypoint_of(services[service]) if service in services else None
            if service not in services:
                why = "there is no such Service"
            elif waypoint is None:
                why = "calls to it pass no waypoint"
            elif route.namespace not in (services[service].namespace, waypoint.namespace):
                why = "a waypoint honours routes of its own namespace and of the Service's only"
            elif route.rules and not any(port.is_http for port in services[service].ports):
                why = "none of its ports is declared http (here, HTTP/2 and gRPC are passed on as bytes)"
            elif any(not _has_port_for(rule, route, services[service]) for rule in route.tcp):
                why = "a rule for TCP is for none of its ports that do not speak HTTP"
            else:
                continue
            about = f"the {route.kind} '{route.key}' has no effect on Service '{service}': {why}"
            notes.warn(given.places[route.kind, route.key], about)
    for rule in given.destination_rules:
        if rule.service not in services:
            about = f"the DestinationRule '{rule.key}' has no effect: there is no Service '{rule.service}'"
            notes.warn(given.places["DestinationRule", rule.key], about)
