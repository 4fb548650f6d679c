"""What xDS told this ztunnel: workloads, services and policies, and how they are looked up.

Every resource is looked through once, as it comes; one that cannot be used is refused alone, with the reason that
goes into the NACK. Links between workloads and services are made at lookup, so that they may come in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE
from meshlab.protocols.xds import Update
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel import rbac

if TYPE_CHECKING:
    from meshlab.protocols.stubs import workload_pb2

Address = IPv4Address | IPv6Address
T = TypeVar("T")

LOCAL_WORKLOAD_WAIT_S = 5.0
"""How long a connection waits for its own pod to appear in xDS."""
_HBONE, _LEGACY_MTLS = 1, 2
_KINDS = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}
_PASSTHROUGH = 3
_ALLOW_ALL = 1


@dataclass(frozen=True, slots=True)
class Gateway:
    """An ``istio.workload.GatewayAddress``: where a waypoint is found."""

    service: str
    """``namespace/hostname`` of its Service; empty where the address is given."""
    address: Address | None
    port: int

    @classmethod
    def of(cls, message: Any) -> Gateway:
        """Look through a message once.

        Raises:
            ProtocolError: it has an address that is none, or on another network.
        """
        if message.HasField("hostname"):
            return cls(f"{message.hostname.namespace}/{message.hostname.hostname}", None, message.hbone_mtls_port)
        if not message.HasField("address"):
            return cls("", None, message.hbone_mtls_port)
        if message.address.network:
            raise ProtocolError(f"a waypoint on network {message.address.network!r} is not supported")
        return cls("", _address(message.address.address), message.hbone_mtls_port)

    def __str__(self) -> str:
        return self.service or str(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An ``istio.workload.Workload``, as far as this ztunnel uses it."""

    uid: str
    name: str
    namespace: str
    identity: SpiffeId
    addresses: tuple[Address, ...]
    hbone: bool
    node: str
    authorization_policies: tuple[str, ...]
    """``namespace/name`` of the selector policies that apply."""
    healthy: bool
    services: Mapping[str, Mapping[int, int]]
    """``namespace/hostname`` to service port to this endpoint's own port (0: the service's)."""
    capacity: int
    """Weight among the endpoints of a service."""
    waypoint: Gateway | None
    network: str
    cluster: str
    kind: str
    """``deployment``, ``pod``, ...: what ``workload_name`` is the name of."""
    workload_name: str
    canonical_name: str
    canonical_revision: str

    @classmethod
    def of(cls, message: workload_pb2.Workload) -> Workload:
        """Look through a message once.

        Raises:
            ProtocolError: it has an address or a protocol that is none.
        """
        if message.tunnel_protocol == _LEGACY_MTLS:
            raise ProtocolError("unknown enum: unsupported tunnel protocol: legacy istio mtls")
        account = message.service_account or "default"
        return cls(
            uid=message.uid,
            name=message.name,
            namespace=message.namespace,
            identity=SpiffeId(message.trust_domain or "cluster.local", message.namespace, account),
            addresses=tuple(_address(raw) for raw in message.addresses),
            hbone=message.tunnel_protocol == _HBONE,
            node=message.node,
            authorization_policies=tuple(message.authorization_policies),
            healthy=message.status == 0,
            services={name: _ports(ports.ports) for name, ports in message.services.items()},
            capacity=message.capacity.value if message.HasField("capacity") else 1,
            waypoint=Gateway.of(message.waypoint) if message.HasField("waypoint") else None,
            network=message.network,
            cluster=message.cluster_id or "Kubernetes",
            kind=_KINDS.get(message.workload_type, "pod"),
            workload_name=message.workload_name,
            canonical_name=message.canonical_name,
            canonical_revision=message.canonical_revision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """An ``istio.workload.Service``, as far as this ztunnel uses it."""

    name: str
    """``namespace/hostname``."""
    short_name: str
    """The resource's own, as ``kubectl`` prints it."""
    namespace: str
    hostname: str
    addresses: tuple[Address, ...]
    """VIPs; none for a headless service."""
    ports: Mapping[int, int]
    """Service port to target port; 0: named, each endpoint has its own."""
    subject_alt_names: tuple[str, ...]
    """Further identities that its endpoints may show."""
    waypoint: Gateway | None
    passthrough: bool
    """Its endpoints are not ours to choose."""
    only_healthy: bool
    canonical: bool
    private: bool
    """Only workloads of its own namespace see it."""

    @classmethod
    def of(cls, message: workload_pb2.Service) -> Service:
        """Look through a message once.

        Raises:
            ProtocolError: it has an address that is none, or a prefix for one.
        """
        if any(address.HasField("length") for address in message.addresses):
            raise ProtocolError("a VIP that is a prefix is not supported")
        if message.weighted_waypoints:
            raise ProtocolError("weighted waypoints are not supported")
        return cls(
            name=f"{message.namespace}/{message.hostname}",
            short_name=message.name,
            namespace=message.namespace,
            hostname=message.hostname,
            addresses=tuple(_address(address.address) for address in message.addresses),
            ports=_ports(message.ports),
            subject_alt_names=tuple(message.subject_alt_names),
            waypoint=Gateway.of(message.waypoint) if message.HasField("waypoint") else None,
            passthrough=message.load_balancing.mode == _PASSTHROUGH,
            only_healthy=message.load_balancing.health_policy != _ALLOW_ALL,
            canonical=message.canonical,
            private=message.visibility == 1,
        )


def _address(raw: bytes) -> Address:
    if len(raw) not in {4, 16}:
        raise ProtocolError(f"failed to parse address, had {len(raw)} bytes")
    return ip_address(raw)


def _ports(ports: Iterable[workload_pb2.Port]) -> dict[int, int]:
    return {port.service_port: port.target_port for port in ports}


@dataclass(slots=True)
class State:
    """Everything that is known now. ``apply`` changes it, all else reads it."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    """By resource name, which is the uid."""
    services: dict[str, Service] = field(default_factory=dict)
    """By resource name, ``namespace/hostname``."""
    policies: dict[str, rbac.Policy] = field(default_factory=dict)
    """By resource name, ``namespace/name``."""
    _by_address: dict[Address, list[Workload]] = field(default_factory=dict)
    _by_names: dict[tuple[str, str, str], Workload] = field(default_factory=dict)
    _by_vip: dict[Address, list[Service]] = field(default_factory=dict)
    _endpoints: dict[str, list[Workload]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, update: Update) -> dict[str, str]:
        """Take in an update; name and reason of each resource that was refused (the one before stays)."""
        refused = {}
        for name in update.removed:
            for resources in self._kinds(update.type_url):
                resources.pop(name, None)
        for name, message in update.resources.items():
            try:
                self._put(update.type_url, name, message)
            except ProtocolError as error:
                refused[name] = str(error)
        self._index()
        self._changed.set()
        self._changed = asyncio.Event()
        return refused

    def _kinds(self, type_url: str) -> tuple[dict[str, Any], ...]:
        return {ADDRESS_TYPE: (self.workloads, self.services), AUTHORIZATION_TYPE: (self.policies,)}.get(type_url, ())

    def _put(self, type_url: str, name: str, message: Any) -> None:
        if type_url == AUTHORIZATION_TYPE:
            self.policies[name] = rbac.compile_policy(message)
        elif message.HasField("workload"):
            self.workloads[name] = Workload.of(message.workload)
        elif message.HasField("service"):
            self.services[name] = Service.of(message.service)
        else:
            raise ProtocolError("an Address that is neither a workload nor a service")

    def _index(self) -> None:
        self._by_address, self._by_names, self._by_vip, self._endpoints = {}, {}, {}, {}
        for workload in self.workloads.values():
            for address in workload.addresses:
                self._by_address.setdefault(address, []).append(workload)
            for name in workload.services:
                self._endpoints.setdefault(name, []).append(workload)
            self._by_names[workload.name, workload.namespace, workload.identity.service_account] = workload
        for service in self.services.values():
            for vip in service.addresses:
                self._by_vip.setdefault(vip, []).append(service)

    # --- lookups ---------------------------------------------------------------------------------------------------

    def workload_at(self, address: Address) -> Workload | None:
        """Who has this address; of several, a Pod before anything else, and HBONE before plain."""
        found = self._by_address.get(address, ())
        return max(found, key=lambda workload: ("//Pod/" in workload.uid, workload.hbone), default=None)

    def service_at(self, vip: Address, client: Workload) -> Service | None:
        """Which service ``client`` means by this address; of several its own namespace's, then the canonical one."""
        seen = [s for s in self._by_vip.get(vip, ()) if not s.private or s.namespace == client.namespace]
        return max(seen, key=lambda service: (service.namespace == client.namespace, service.canonical), default=None)

    def service_named(self, hostname: str, client: Workload) -> Service | None:
        found = [service for service in self.services.values() if service.hostname == hostname]
        return max(found, key=lambda service: service.namespace == client.namespace, default=None)

    def endpoints(self, service: Service) -> list[Workload]:
        return self._endpoints.get(service.name, [])

    def workload_of(self, pod: ZdsPod) -> Workload | None:
        """The workload of a pod that ZDS named: its names link them, not its address."""
        return self._by_names.get((pod.name, pod.namespace, pod.service_account))

    async def local_workload(self, pod: ZdsPod) -> Workload | None:
        """``workload_of``, after a while if need be: ZDS may be ahead of xDS. ``None`` when it did not come."""
        return await self.wait_for(lambda: self.workload_of(pod), LOCAL_WORKLOAD_WAIT_S)

    async def wait_for(self, find: Callable[[], T | None], timeout_s: float) -> T | None:
        """What ``find`` finds now or after one of the next updates."""
        try:
            async with asyncio.timeout(timeout_s):
                while (found := find()) is None:
                    await self._changed.wait()
                return found
        except TimeoutError:
            return None
