"""Delta xDS, the client's end, without the stream: responses in, requests out. ``xds_server`` is the other end.

It says what a real ztunnel says: one request per type with its node, none of which waits, then one ACK or NACK for each
response. A bad resource is refused by name, and the rest of its response is applied. Pure; it knows no clock.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message

if TYPE_CHECKING:
    from meshlab.protocols.stubs import discovery_pb2, node_pb2

DELTA_ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DELTA_ADS_METHOD = "DeltaAggregatedResources"
ZTUNNEL_TYPES = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
"""What a ztunnel subscribes to, in its order."""

Request: TypeAlias = "discovery_pb2.DeltaDiscoveryRequest"
Response: TypeAlias = "discovery_pb2.DeltaDiscoveryResponse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who opens a stream, as a ztunnel says it."""

    name: str
    """NODE_NAME."""
    instance_ip: str = ""
    pod_name: str = ""
    pod_namespace: str = ""

    def to_message(self) -> node_pb2.Node:
        domain = f"{self.pod_namespace}.svc.cluster.local"
        node = message("envoy.config.core.v3.Node")(
            id=f"ztunnel~{self.instance_ip}~{self.pod_name}.{self.pod_namespace}~{domain}"
        )
        node.metadata.update(
            {
                "NAME": self.pod_name,
                "NAMESPACE": self.pod_namespace,
                "INSTANCE_IPS": self.instance_ip,
                "NODE_NAME": self.name,
            }
        )
        return node


@dataclass(frozen=True, slots=True)
class Update:
    """What one response changes for the client."""

    type_url: str
    nonce: str
    resources: Mapping[str, Any]
    """Name to decoded inner message (``istio.workload.Address``, ``istio.security.Authorization``)."""
    removed: tuple[str, ...]
    versions: Mapping[str, str]
    """Name to version of ``resources``."""
    errors: Mapping[str, str]
    """Name to reason of what could not be decoded, and so is not in ``resources``."""


class DeltaClient:
    """The client's end: ``start`` a stream, then for each response ``receive``, apply it, and send ``answer``.

    The same client opens the next stream too: it then says what it holds, and is sent the difference only.
    """

    def __init__(self, node: Node, types: Sequence[str] = ZTUNNEL_TYPES) -> None:
        self.node = node
        self.types = tuple(types)
        self._held: dict[str, dict[str, str]] = {type_url: {} for type_url in self.types}

    def start(self) -> list[Request]:
        """The first requests of a new stream, in order, none of which waits for an answer."""
        request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest")
        node = self.node.to_message()
        return [
            request(node=node, type_url=type_url, initial_resource_versions=self._held[type_url])
            for type_url in self.types
        ]

    def receive(self, response: Response) -> Update:
        """What a response changes. A type that was not asked for changes nothing and is acknowledged."""
        asked = response.type_url in self._held
        decoded: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for resource in response.resources if asked else ():
            try:
                decoded[resource.name] = _decode(response.type_url, resource)
            except ValueError as error:
                errors[resource.name] = str(error)
        return Update(
            response.type_url,
            response.nonce,
            decoded,
            tuple(response.removed_resources) if asked else (),
            {resource.name: resource.version for resource in response.resources if resource.name in decoded},
            errors,
        )

    def answer(self, update: Update, refused: Mapping[str, str] | None = None) -> Request:
        """ACK an update, or NACK it with name and reason of each resource that was ``refused``; the rest is held."""
        errors = {**update.errors, **(refused or {})}
        held = self._held.get(update.type_url, {})
        held.update((name, version) for name, version in update.versions.items() if name not in errors)
        for name in update.removed:
            held.pop(name, None)
        request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest")(
            type_url=update.type_url, response_nonce=update.nonce
        )
        if errors:
            request.error_detail.message = "; ".join(f"{name}: {reason}" for name, reason in errors.items())
        return request


def _decode(type_url: str, resource: discovery_pb2.Resource) -> Any:
    from google.protobuf.message import DecodeError

    if resource.resource.type_url != type_url:
        raise ValueError(f"decode: a {resource.resource.type_url!r} in a response of {type_url!r}")
    try:
        return message(type_url.rpartition("/")[2]).FromString(resource.resource.value)
    except DecodeError as error:
        raise ValueError(f"decode: {error}") from error
