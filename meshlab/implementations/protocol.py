"""The plug-in protocol, ``api_version`` 1: what a proxy says of itself, and how one is launched.

A plug-in is any object (most simply a module) with ``api_version``, ``describe`` and ``launch``. ``launch`` is pure: it
says what to run, and the lab runs it. Nothing else of meshlab is its business. There are two roles:

    ztunnel    on a node, in a netns of its own; speaks ZDS on ``slot.uds``, delta xDS and the Istio CA
    waypoint   in the pod of a Gateway; is sent Envoy's clusters, listeners and secrets by delta ADS
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

API_VERSION = 1
DEFAULT_UDS = "/var/run/ztunnel/ztunnel.sock"
"""Where Istio's CNI agent serves ZDS, and a ztunnel looks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """What can be plugged in, as it describes itself."""

    name: str
    version: str
    """Empty where only a running one could say."""
    roles: tuple[str, ...] = ("ztunnel",)
    features: frozenset[str] = frozenset()
    """What it can do: all of ``ztunnel.FEATURES``, or empty. No check is skipped yet, so a part of them is refused."""
    claims: frozenset[str] = frozenset()
    """What its access log says, so that it can be quoted at grade ``claim``: ``identity``."""
    config: Literal["envoy", "manifests"] = "envoy"
    """The form in which a waypoint gets its configuration. Only the reference waypoint reads ``manifests``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSlot:
    """The place on one node that a node proxy is launched into."""

    node: str
    xds_address: str
    """``host:port`` of ADS and CA, in TLS; the host is an IP SAN of the server's certificate."""
    ca_root_pem: str
    """The root that the control plane's certificate and every workload's chain to."""
    token: str
    """Bearer token for both."""
    instance_ip: str
    """The proxy's own address on its node."""
    uds: str = DEFAULT_UDS
    """ZDS socket of the node's agent (SEQPACKET)."""
    cluster_id: str = "Kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaypointSlot:
    """The pod of a Gateway, which a waypoint is launched into. It listens on 15008 there, for HBONE."""

    gateway: str
    """``namespace/name``; also the pod's."""
    instance: str
    """What it calls itself towards the control plane (``node.id``), ``waypoint@namespace/name``."""
    identity: str
    """Its own SPIFFE id. Its certificate is the secret ``default``, the mesh's root the secret ``ROOTCA`` (SDS)."""
    xds_address: str
    """``host:port`` of ADS and CA, in TLS; the host is an IP SAN of the server's certificate."""
    ca_root_pem: str
    """The root that the control plane's certificate chains to."""
    token: str
    """Bearer token for both."""
    instance_ip: str
    """The pod's own address."""
    cluster_id: str = "Kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpGet:
    """A readiness probe, asked in the proxy's own netns, as a kubelet would."""

    port: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the lab runs in a slot. Exactly one of ``argv`` and ``entry`` is set."""

    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the lab's clean environment (PATH, HOME, LANG, TERM); nothing of the caller's comes along."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path -> text, to be written into the proxy's own mount namespace first. Not done yet, and so refused."""
    ready: HttpGet | None = None
    """A readiness probe. Not asked yet, and so refused: the lab waits for acknowledgements."""
    keylog: str | None = None
    """Path to which it writes TLS secrets in the SSLKEYLOGFILE format. Not read yet, and so refused."""
    access_log: Literal["istio-json"] | None = None
    """``istio-json``: lines on stdout with a ztunnel's field names, which are read for proofs of identity."""
    entry: str | None = None
    """``package.module:function`` of a Python program, started warm instead of ``argv``: ``main({"env": env}, fds)``.

    Where the lab wants the secrets of its TLS sessions, ``fds["keylog"]`` is a file to add them to.
    """


class NodeProxy(Protocol):
    """A plug-in for the role of a ztunnel."""

    @property
    def api_version(self) -> int: ...

    def describe(self) -> Implementation: ...

    def launch(self, slot: NodeSlot) -> Launch: ...


class WaypointProxy(Protocol):
    """A plug-in for the role of a waypoint."""

    @property
    def api_version(self) -> int: ...

    def describe(self) -> Implementation: ...

    def launch(self, slot: WaypointSlot) -> Launch: ...
