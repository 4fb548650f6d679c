"""Pods and Services as ``istio.workload.Address``: who is where, who stands behind what, and who takes HBONE.

Source: https://github.com/istio/istio/blob/master/pkg/workloadapi/workload.proto
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshlab.model import Mesh, Pod, Service
from meshlab.model.ambient import HBONE_PORT
from meshlab.protocols.messages import message
from meshlab.translate.mtls import peer_authentication_keys
from meshlab.translate.policies import selecting_policy_keys

if TYPE_CHECKING:
    from meshlab.protocols.stubs.workload_pb2 import Address, GatewayAddress, Workload

CLUSTER_ID = "Kubernetes"
_CANONICAL_NAME = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def services_of_pods(mesh: Mesh) -> dict[str, list[Service]]:
    """For each pod (``namespace/name``) the Services that it stands behind."""
    result: dict[str, list[Service]] = {pod.key: [] for pod in mesh.pods}
    for service in mesh.services:
        for pod in mesh.endpoints(service):
            result[pod.key].append(service)
    return result


def workload_address(
    mesh: Mesh, pod: Pod, services: list[Service], *, hbone: bool, healthy: bool = True
) -> tuple[str, Address]:
    """The Workload of ``pod``, an endpoint of ``services``, under its resource name, its uid."""
    enums = message("istio.workload.Workload")(
        tunnel_protocol="HBONE" if hbone else "NONE",
        status="HEALTHY" if healthy else "UNHEALTHY",
        workload_type="DEPLOYMENT" if pod.workload else "POD",
    )
    address = message("istio.workload.Address")(workload=enums)
    workload = address.workload
    workload.uid = f"{CLUSTER_ID}//Pod/{pod.key}"
    workload.name = pod.name
    workload.namespace = pod.namespace
    workload.addresses.extend([pod.ipv4.packed, pod.ipv6.packed])
    workload.trust_domain = mesh.trust_domain
    workload.service_account = pod.service_account
    workload.node = pod.node
    workload.cluster_id = CLUSTER_ID
    _attach(workload.waypoint, mesh, pod)
    _name_for_telemetry(workload, pod)
    workload.authorization_policies.extend(
        sorted([*selecting_policy_keys(mesh, pod), *peer_authentication_keys(mesh, pod)])
    )
    for service in services:
        _join(workload, mesh, service, pod)
    return workload.uid, address


def service_address(mesh: Mesh, service: Service) -> tuple[str, Address]:
    """The Service under its resource name, ``namespace/hostname``; a headless one has no address."""
    address = message("istio.workload.Address")()
    result = address.service
    result.name = service.name
    result.namespace = service.namespace
    result.hostname = service.hostname
    result.canonical = True
    for vip in (service.ipv4, service.ipv6):
        if vip is not None:
            result.addresses.add(address=vip.packed)
    for port in service.ports:
        # 0 says: each endpoint has its own number, since the port is named, or is written in Endpoints by hand
        fixed = port.target_port if isinstance(port.target_port, int) and service.selector else 0
        result.ports.add(service_port=port.port, target_port=fixed)
    _attach(result.waypoint, mesh, service)
    return _resource_name(service), address


def _attach(gateway: GatewayAddress, mesh: Mesh, to: Pod | Service) -> None:
    """Name the waypoint by the host name of its Service, as Istio does: a call then keeps its family."""
    waypoint = mesh.waypoint_of(to)
    if waypoint is not None:
        gateway.hostname.namespace = waypoint.namespace
        gateway.hostname.hostname = waypoint.hostname
        gateway.hbone_mtls_port = HBONE_PORT


def _resource_name(service: Service) -> str:
    return f"{service.namespace}/{service.hostname}"


def _name_for_telemetry(workload: Workload, pod: Pod) -> None:
    workload.workload_name = pod.workload or pod.name
    workload.canonical_name = _first_label(pod, _CANONICAL_NAME) or workload.workload_name
    workload.canonical_revision = _first_label(pod, _CANONICAL_REVISION) or "latest"


def _first_label(pod: Pod, keys: tuple[str, ...]) -> str:
    return next((pod.labels[key] for key in keys if pod.labels.get(key)), "")


def _join(workload: Workload, mesh: Mesh, service: Service, pod: Pod) -> None:
    """Make ``pod`` an endpoint of ``service``, on the ports it has (a named port that it lacks is left out)."""
    ports = workload.services[_resource_name(service)].ports
    for port in service.ports:
        number = mesh.target(service, port, pod)
        if number is not None:
            ports.add(service_port=port.port, target_port=number)
