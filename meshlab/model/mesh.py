"""The mesh as its manifests describe it, and the few Kubernetes rules that every layer shares.

Nothing of policy is here: selecting and judging is done twice, apart (``oracle`` and ``translate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        """Pods behind ``service``: of its namespace, with every label of its selector (none for an empty one)."""
        if not service.selector:
            return ()
        return tuple(
            pod for pod in self.pods if pod.namespace == service.namespace and has_labels(pod.labels, service.selector)
        )


def has_labels(labels: Labels, selector: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """The number that ``port`` means on ``pod``; ``None`` where the pod has no port of that name."""
    if isinstance(port.target_port, int):
        return port.target_port
    for container_port in pod.ports:
        if container_port.name == port.target_port:
            return container_port.number
    return None
