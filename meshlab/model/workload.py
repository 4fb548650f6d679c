"""Namespaces, pods and services, as far as they have a part in traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from meshlab.model.identity import SpiffeId

Family = Literal[4, 6]
Labels = Mapping[str, str]
Address = IPv4Address | IPv6Address
RestartPolicy = Literal["Always", "OnFailure", "Never"]
"""As of a Pod's ``spec.restartPolicy``."""

BYPASS_INBOUND = "ambient.istio.io/bypass-inbound-capture"
TRUE_WORDS = ("1", "t", "T", "true", "TRUE", "True")
"""What Go's ParseBool takes for true."""
FAMILIES: tuple[Family, ...] = (4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    number: int
    """1 to 65535; TCP."""
    name: str = ""
    server_first: bool = False
    """The built-in echo greets here before it reads, as SMTP and MySQL do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a pod runs instead of the built-in echo."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod, already placed and addressed."""

    name: str
    namespace: str
    node: str
    ipv4: IPv4Address
    """From ``ips``, else from the pod's place in the file (``addresses.py``)."""
    ipv6: IPv6Address
    labels: Labels = field(default_factory=dict)
    annotations: Labels = field(default_factory=dict)
    service_account: str = "default"
    ports: tuple[ContainerPort, ...] = ()
    """None: the pod is only a source of calls."""
    program: Program | None = None
    """``None``: the built-in echo."""
    image: str = ""
    """As the manifest had it; ``topology`` has already looked it up in ``spec.images``."""
    add_capabilities: tuple[str, ...] = ()
    """Linux' names without CAP_, e.g. ``NET_ADMIN``."""
    empty_dirs: tuple[str, ...] = ()
    """Mount paths of ``emptyDir`` volumes."""
    workload: str = ""
    """Name of the Deployment the pod came from, else empty."""
    init: tuple[Program, ...] = ()
    """What its init containers run, one after the other, before ``program`` starts."""
    restart_policy: RestartPolicy = "Always"
    """Whether ``program`` is started again when it ends."""
    gateway: str = ""
    """Name of the Gateway, of the same namespace, whose waypoint runs in it; empty for every other pod."""
    incarnation: int = 0
    """How many pods of this name there were before: one that is deleted and created again is another pod."""

    @property
    def key(self) -> str:
        """``namespace/name``: how files, tables and messages name the pod."""
        return f"{self.namespace}/{self.name}"

    @property
    def uid(self) -> str:
        """What ZDS calls the pod; equal on every machine, and unique, since a namespace has no dot."""
        return f"uid{self.incarnation or ''}-{self.namespace}.{self.name}"

    @property
    def bypasses_inbound(self) -> bool:
        """Whether plaintext to this pod goes past its node proxy; what the proxy is sent over HBONE it still judges.

        Source: https://istio.io/latest/docs/reference/config/annotations/#AmbientBypassInboundCapture
        """
        return self.annotations.get(BYPASS_INBOUND) in TRUE_WORDS

    def address(self, family: Family) -> Address:
        return self.ipv4 if family == 4 else self.ipv6

    def identity(self, trust_domain: str) -> SpiffeId:
        return SpiffeId(trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    port: int
    target_port: int | str
    """A number, or the name of a container port, which each endpoint resolves for itself."""
    name: str = ""
    protocol: str = ""
    """What is declared to be spoken there, by ``appProtocol`` or else by the first part of the name: ``http``,
    ``http2``, ``grpc``, ``tcp``, ``tls`` ...; empty where nothing is."""

    @property
    def is_http(self) -> bool:
        """Whether a waypoint reads requests here: HTTP/1.1 that is declared. All else is passed on as bytes.

        Source: https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/. Istio also reads
        HTTP/2 and gRPC, which neither the lab's callers nor its echo speak, and looks what an undeclared port speaks.
        """
        return self.protocol == "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    namespace: str
    ipv4: IPv4Address | None
    """ClusterIP of the family; ``None`` where the Service has none (headless, or the other family only)."""
    ipv6: IPv6Address | None
    selector: Labels = field(default_factory=dict)
    ports: tuple[ServicePort, ...] = ()
    labels: Labels = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``name.namespace``: how tables and messages name a Service (a pod has a slash)."""
        return f"{self.name}.{self.namespace}"

    @property
    def hostname(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"

    def address(self, family: Family) -> Address | None:
        return self.ipv4 if family == 4 else self.ipv6


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPort:
    number: int
    name: str = ""
    """That of the Service's port which leads here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Endpoints, or an EndpointSlice, that somebody wrote for a Service without a selector."""

    name: str
    namespace: str
    service: str
    """Name of the Service, which is of the same namespace."""
    addresses: tuple[Address, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    kind: Literal["Endpoints", "EndpointSlice"] = "Endpoints"
    """Of the manifest: both may bear one name."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"
