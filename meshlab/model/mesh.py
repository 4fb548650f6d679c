"""The mesh as its manifests describe it, and the few Kubernetes rules that every layer shares.

Nothing of policy is here: selecting and judging is done twice, apart (``oracle`` and ``translate``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from meshlab.model.gateway import USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, Serves, Waypoint
from meshlab.model.policy import AuthorizationPolicy, PeerAuthentication, RequestAuthentication
from meshlab.model.route import DestinationRule, Route
from meshlab.model.workload import Endpoints, Labels, Namespace, Pod, Service, ServicePort

Profile = Literal["advisory", "required"]
DATAPLANE_MODE = "istio.io/dataplane-mode"
_NEVER_ENROLLED = frozenset({"kube-system"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Every manifest of a lab."""

    namespaces: tuple[Namespace, ...] = ()
    pods: tuple[Pod, ...] = ()
    """In the order of the file."""
    services: tuple[Service, ...] = ()
    endpoints_by_hand: tuple[Endpoints, ...] = ()
    waypoints: tuple[Waypoint, ...] = ()
    routes: tuple[Route, ...] = ()
    """In the order of the file, which is their age."""
    destination_rules: tuple[DestinationRule, ...] = ()
    authorization_policies: tuple[AuthorizationPolicy, ...] = ()
    peer_authentications: tuple[PeerAuthentication, ...] = ()
    """In the order of the file, which is their age: the oldest wins."""
    request_authentications: tuple[RequestAuthentication, ...] = ()
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    profile: Profile = "advisory"
    """Whether destinations insist on their waypoints (``profile.py``)."""
    places: int = 0
    """How many places pods have had: the next pod that is added gets the addresses of this one."""
    former: Mapping[str, int] = field(default_factory=dict)
    """``namespace/name`` of pods that are gone -> how many pods of that name there were: the next one's incarnation."""

    def pod(self, key: str) -> Pod:
        """The pod ``namespace/name``.

        Raises:
            KeyError: there is none.
        """
        for pod in self.pods:
            if pod.key == key:
                return pod
        raise KeyError(key)

    def namespace_labels(self, name: str) -> Labels:
        for namespace in self.namespaces:
            if namespace.name == name:
                return namespace.labels
        return {}

    def is_enrolled(self, pod: Pod) -> bool:
        """Whether labels put ``pod`` into the mesh: the pod's beat its namespace's.

        Source: https://istio.io/latest/docs/ambient/usage/add-workloads/
        """
        return self.enrols(pod.namespace, pod.labels, pod.annotations)

    def enrols(self, namespace: str, labels: Labels, annotations: Labels) -> bool:
        """Whether a pod of these labels and annotations belongs into the mesh."""
        if namespace in _NEVER_ENROLLED or "sidecar.istio.io/status" in annotations:
            return False
        mode = labels.get(DATAPLANE_MODE)
        if mode is None:
            mode = self.namespace_labels(namespace).get(DATAPLANE_MODE)
        return mode == "ambient"

    def endpoints(self, service: Service) -> tuple[Pod, ...]:
        """Pods behind ``service``: those of its namespace with every label of its selector.

        Where it has no selector, they are the pods whose addresses somebody wrote into its Endpoints by hand.
        """
        if not service.selector:
            written = {address for endpoints in self._by_hand(service) for address in endpoints.addresses}
            return tuple(pod for pod in self.pods if pod.ipv4 in written or pod.ipv6 in written)
        return tuple(
            pod for pod in self.pods if pod.namespace == service.namespace and has_labels(pod.labels, service.selector)
        )

    def target(self, service: Service, port: ServicePort, pod: Pod) -> int | None:
        """The number that ``port`` of ``service`` means on ``pod``, one of its endpoints.

        ``None`` is returned where the pod has no port of that name, or the Endpoints that list it have none.

        Source: https://kubernetes.io/docs/concepts/services-networking/service/#services-without-selectors
        """
        if service.selector:
            return _own_port(port, pod)
        for endpoints in self._by_hand(service):
            if pod.ipv4 in endpoints.addresses or pod.ipv6 in endpoints.addresses:
                for written in endpoints.ports:
                    if written.name == port.name:
                        return written.number
        return None

    def backends(self, service: Service, port: ServicePort) -> tuple[tuple[Pod, int], ...]:
        """The endpoints of ``service`` that serve ``port``, each with the number that it means there."""
        found = ((pod, self.target(service, port, pod)) for pod in self.endpoints(service))
        return tuple((pod, number) for pod, number in found if number is not None)

    def waypoint_of(self, object_: Pod | Service) -> Waypoint | None:
        """The waypoint through which calls to the address of ``object_`` pass; ``None`` where there is none.

        The object's own label beats its namespace's, and ``none`` opts out. A waypoint that is not there, that serves
        other traffic, or that does not admit the namespace is none, as in Istio, and so are those of waypoints' pods.

        Source: https://istio.io/latest/docs/ambient/usage/waypoint/
        """
        wanted: Serves = "service" if isinstance(object_, Service) else "workload"
        if (isinstance(object_, Pod) and object_.gateway) or (
            isinstance(object_, Service) and self.is_of_waypoint(object_)
        ):
            return None
        found = self.wanted_waypoint(object_)
        for waypoint in self.waypoints:
            if (waypoint.namespace, waypoint.name) == found:
                admits = waypoint.from_all or waypoint.namespace == object_.namespace
                return waypoint if admits and waypoint.serves in (wanted, "all") else None
        return None

    def reads_requests(self, service: Service, port: ServicePort) -> bool:
        """Whether a waypoint reads the requests to ``port`` of ``service``."""
        return port.is_http and self.waypoint_of(service) is not None

    def wanted_waypoint(self, object_: Pod | Service) -> tuple[str, str] | None:
        """Namespace and name of the Gateway that labels ask for, whether or not there is one."""
        labels = object_.labels if USE_WAYPOINT in object_.labels else self.namespace_labels(object_.namespace)
        name = labels.get(USE_WAYPOINT, "none")
        return None if name == "none" else (labels.get(USE_WAYPOINT_NAMESPACE, object_.namespace), name)

    def subset(self, service: Service, name: str) -> Labels | None:
        """The labels that pods of a subset of ``service`` have; ``None`` where no DestinationRule has it.

        The oldest DestinationRule for the Service counts.

        Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/#Subset
        """
        if not name:
            return {}
        rule = next((rule for rule in self.destination_rules if rule.service == service.key), None)
        return None if rule is None else rule.subsets.get(name)

    def is_of_waypoint(self, service: Service) -> bool:
        """Whether ``service`` is the one by which node proxies find a waypoint, which has its Gateway's name."""
        return any((one.name, one.namespace) == (service.name, service.namespace) for one in self.waypoints)

    def _by_hand(self, service: Service) -> Iterator[Endpoints]:
        for endpoints in self.endpoints_by_hand:
            if (endpoints.service, endpoints.namespace) == (service.name, service.namespace):
                yield endpoints


def has_labels(labels: Labels, selector: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def _own_port(port: ServicePort, pod: Pod) -> int | None:
    """The number of ``port``, or of the container port of its name."""
    if isinstance(port.target_port, int):
        return port.target_port
    for container_port in pod.ports:
        if container_port.name == port.target_port:
            return container_port.number
    return None
