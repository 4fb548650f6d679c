"""A small mesh for tests of the reference ztunnel: what xDS would have sent, and certificates from a real CA."""

from __future__ import annotations

import functools
from ipaddress import ip_address
from typing import Any

from meshlab.model import SpiffeId
from meshlab.pki import MeshCA
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.xds import Update
from meshlab.proxykit.credentials import Credentials
from meshlab.ztunnel.state import State, Workload

FAR_FUTURE_S = 4e9


@functools.cache
def ca() -> MeshCA:
    return MeshCA()


def who(name: str, trust_domain: str = "cluster.local") -> SpiffeId:
    return SpiffeId(trust_domain, "shop", name)


@functools.cache
def credentials(identity: SpiffeId) -> Credentials:
    svid = ca().svid(identity)
    chain = [pem.bytes().decode() for pem in svid.cert_chain_pems]
    entries = [*chain, ca().cert_pem.bytes().decode()]
    return Credentials.issued(identity, svid.private_key_pem.bytes(), entries)


def workload(name: str, *addresses: str, hbone: bool = True, **fields: Any) -> Any:
    """An ``istio.workload.Address`` of a pod in namespace shop."""
    return message("istio.workload.Address")(
        workload={
            "uid": f"Kubernetes//Pod/shop/{name}",
            "name": name,
            "namespace": "shop",
            "service_account": name,
            "trust_domain": "cluster.local",
            "addresses": [ip_address(address).packed for address in addresses],
            "tunnel_protocol": "HBONE" if hbone else "NONE",
            "node": "node-1",
            **fields,
        }
    )


def service(hostname: str, *vips: str, ports: dict[int, int], **fields: Any) -> Any:
    """An ``istio.workload.Address`` of a Service in namespace shop."""
    return message("istio.workload.Address")(
        service={
            "name": hostname.partition(".")[0],
            "namespace": "shop",
            "hostname": hostname,
            "addresses": [{"address": ip_address(vip).packed} for vip in vips],
            "ports": port_list(ports),
            **fields,
        }
    )


def port_list(ports: dict[int, int]) -> list[dict[str, int]]:
    return [{"service_port": port, "target_port": target} for port, target in ports.items()]


def behind(hostname: str, ports: dict[int, int]) -> dict[str, Any]:
    """The field of a workload that makes it an endpoint."""
    return {f"shop/{hostname}": {"ports": port_list(ports)}}


def policy(name: str, action: str, **match: Any) -> Any:
    """A namespace-wide policy of one match."""
    return message("istio.security.Authorization")(
        name=name,
        namespace="shop",
        scope="NAMESPACE",
        action=action,
        groups=[{"rules": [{"matches": [match]}]}],
    )


def update(type_url: str, *resources: Any, removed: tuple[str, ...] = ()) -> Update:
    named = {_name(resource): resource for resource in resources}
    return Update(type_url, "n", named, removed, dict.fromkeys(named, "1"), {})


def _name(resource: Any) -> str:
    if not hasattr(resource, "workload"):
        return f"{resource.namespace}/{resource.name}"
    if resource.HasField("workload"):
        return str(resource.workload.uid)
    return f"{resource.service.namespace}/{resource.service.hostname}"


def state_of(*addresses: Any, policies: tuple[Any, ...] = ()) -> State:
    """A state that took all of it without a complaint."""
    state = State()
    assert state.apply(update(ADDRESS_TYPE, *addresses)) == {}
    assert state.apply(update(AUTHORIZATION_TYPE, *policies)) == {}
    return state


def named(state: State, name: str) -> Workload:
    return state.workloads[f"Kubernetes//Pod/shop/{name}"]
