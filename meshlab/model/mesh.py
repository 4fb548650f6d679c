"""The mesh as its manifests describe it, and the few Kubernetes rules that every layer shares.

Nothing of policy is here: selecting and judging is done twice, apart (``oracle`` and ``translate``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meshlab.model.policy import AuthorizationPolicy, PeerAuthentication
from meshlab.model.workload import Endpoints, Labels, Namespace, Pod, Service, ServicePort

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
    authorization_policies: tuple[AuthorizationPolicy, ...] = ()
    peer_authentications: tuple[PeerAuthentication, ...] = ()
    """In the order of the file, which is their age: the oldest wins."""
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
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
