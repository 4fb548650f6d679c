"""Manifests to what a node proxy is sent over xDS, as Istio's control plane translates them.

    Pod, Service             -> istio.workload.Address           workloads.py
    AuthorizationPolicy      -> istio.security.Authorization     policies.py, values.py
    PeerAuthentication       -> istio.security.Authorization     mtls.py

It judges nothing: which connection is allowed is for the proxy, and for the oracle, which reads the same manifests.

Source: https://github.com/istio/istio/tree/master/pilot/pkg/serviceregistry/ambient
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from meshlab.model import Mesh
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE
from meshlab.translate.mtls import peer_authentication_policies
from meshlab.translate.policies import authorization_policies
from meshlab.translate.workloads import service_address, services_of_pods, workload_address

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["ADDRESS_TYPE", "AUTHORIZATION_TYPE", "resources"]


def resources(mesh: Mesh, enrolled: Collection[str], unhealthy: Collection[str] = ()) -> dict[str, dict[str, Message]]:
    """Everything a node proxy subscribes to: type URL -> resource name -> message.

    Both types are always there, if empty: a ztunnel does not start before it has been answered for each.

    Args:
        mesh: every manifest.
        enrolled: keys (``namespace/name``) of the pods whose node proxy takes HBONE for them *now*.
        unhealthy: keys of the pods that are not to be chosen as endpoints *now*.

    Raises:
        ValueError: a policy names an address block that is none (a ztunnel would drop it in silence).
    """
    behind = services_of_pods(mesh)
    addresses = [
        workload_address(mesh, pod, behind[pod.key], hbone=pod.key in enrolled, healthy=pod.key not in unhealthy)
        for pod in mesh.pods
    ]
    addresses += [service_address(mesh, service) for service in mesh.services]
    policies = [*authorization_policies(mesh), *peer_authentication_policies(mesh)]
    return {ADDRESS_TYPE: dict(addresses), AUTHORIZATION_TYPE: dict(policies)}
