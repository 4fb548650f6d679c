"""What a destination insists on, by ``spec.profile`` of the Lab.

advisory   nothing: as in Istio, a caller may go round a waypoint, by a pod's own address or from outside the mesh
required   that calls to the pods behind a Service come from the waypoint that the Service asks for

The second is one AuthorizationPolicy for each such Service, which denies whoever is not its waypoint. A waypoint that
is asked for and not there, or that serves other traffic, is insisted on as well: then nobody gets through.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshlab.model.mesh import Mesh
from meshlab.model.policy import Action, AuthorizationPolicy, Rule, Source
from meshlab.model.workload import Service


def policies_in_force(mesh: Mesh) -> tuple[AuthorizationPolicy, ...]:
    """Those of the manifests, and those that the profile adds."""
    if mesh.profile == "advisory":
        return mesh.authorization_policies
    return (*mesh.authorization_policies, *_insisting(mesh))


def _insisting(mesh: Mesh) -> Iterator[AuthorizationPolicy]:
    for service in mesh.services:
        if service.selector and not mesh.is_of_waypoint(service) and mesh.wanted_waypoint(service):
            yield AuthorizationPolicy(
                name=f"required-{service.name}",
                namespace=service.namespace,
                selector=service.selector,
                action=Action.DENY,
                rules=(Rule(sources=(Source(not_principals=_waypoints_of(mesh, service)),)),),
            )


def _waypoints_of(mesh: Mesh, service: Service) -> tuple[str, ...]:
    """Who may call its pods: the waypoints of all Services that have one of them."""
    pods = {pod.key for pod in mesh.endpoints(service)}
    sharing = [each for each in mesh.services if pods & {pod.key for pod in mesh.endpoints(each)}]
    wanted = [mesh.wanted_waypoint(each) for each in (service, *sharing)]
    wanted += [mesh.wanted_waypoint(pod) for pod in mesh.endpoints(service)]
    return tuple(sorted({f"{mesh.trust_domain}/ns/{one[0]}/sa/{one[1]}" for one in wanted if one is not None}))
