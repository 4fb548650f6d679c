"""Whether PeerAuthentication asks for an identity: port before workload before namespace before mesh.

``UNSET`` inherits. On each level the oldest policy wins, whatever it says. In ambient ``DISABLE`` is what
``PERMISSIVE`` is: a ztunnel takes HBONE in any case.

Source: https://istio.io/latest/docs/concepts/security/#peer-authentication
"""

from __future__ import annotations

from collections.abc import Iterator

from meshlab.model import Mesh, MtlsMode, PeerAuthentication, Pod, has_labels


def strict_rule(mesh: Mesh, pod: Pod, port: int) -> str | None:
    """Say which policy makes ``port`` of ``pod`` STRICT; ``None`` where plaintext is taken."""
    for policy, mode, level in _modes(mesh, pod, port):
        if mode is not MtlsMode.UNSET:
            if mode is not MtlsMode.STRICT:
                return None
            return f"PeerAuthentication {policy.key} denies plaintext: STRICT for {level}"
    return None


def _modes(mesh: Mesh, pod: Pod, port: int) -> Iterator[tuple[PeerAuthentication, MtlsMode, str]]:
    """What each level says, the nearest first."""
    workload, namespace, root = _oldest_of_each_level(mesh, pod)
    if workload is not None:
        yield workload, workload.port_level_mtls.get(port, MtlsMode.UNSET), f"port {port}"
        yield workload, workload.mode, "the workload"
    if namespace is not None:
        yield namespace, namespace.mode, "the namespace"
    if root is not None:
        yield root, root.mode, "the mesh"


def _oldest_of_each_level(
    mesh: Mesh, pod: Pod
) -> tuple[PeerAuthentication | None, PeerAuthentication | None, PeerAuthentication | None]:
    """The policies of workload, namespace and mesh; one with a selector in the root namespace selects nothing."""
    workload = namespace = root = None
    for policy in mesh.peer_authentications:  # in the order of age
        if policy.namespace == mesh.root_namespace:
            if not policy.selector:
                root = root or policy
        elif policy.namespace == pod.namespace:
            if not policy.selector:
                namespace = namespace or policy
            elif has_labels(pod.labels, policy.selector):
                workload = workload or policy
    return workload, namespace, root
