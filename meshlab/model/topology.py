"""A lab as its file describes it: the ``kind: Lab`` document plus the mesh."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from meshlab.model.mesh import Mesh
from meshlab.model.policy import AuthorizationPolicy, PeerAuthentication
from meshlab.model.route import Pairs
from meshlab.model.workload import Family, Program


class Verdict(StrEnum):
    """What a policy says of a connection."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    ztunnel: str | None = None
    """A node proxy of this node's own, which no option overrides; ``None``: ``spec.dataplane.ztunnel``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A row of ``spec.expect``."""

    source: str
    """``namespace/pod``."""
    to: str
    """``namespace/pod:port`` or ``service.namespace:port``, as in the file."""
    verdict: Verdict
    family: Family | None = None
    """``None``: both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """What a call sends, and how. A file names its body by size and seed, so that a megabyte takes one line of it."""

    kind: Literal["http", "tcp"] = "http"
    mode: Literal["plain", "echo-body", "half-close"] = "plain"
    """``echo-body`` (HTTP) asks for the body back; ``half-close`` (TCP) closes its side first and is answered then."""
    method: str = "GET"
    """HTTP only, like the path and the headers."""
    path: str = "/"
    headers: Pairs = ()
    body_bytes: int = 0
    body_seed: int = 0

    def body(self) -> bytes:
        """Bytes without a pattern: what SHAKE-256 makes of the seed, as text, so that any language can make them."""
        return hashlib.shake_256(str(self.body_seed).encode()).digest(self.body_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStep:
    """A call of ``spec.steps``, and what should come of it."""

    source: str
    """``namespace/pod``."""
    to: str
    """``namespace/pod:port`` or ``service.namespace:port``, as in the file."""
    expect: Verdict
    family: Family | None = None
    """``None``: both, one after the other."""
    shape: CallShape = CallShape()
    times: int = 1
    """How many such calls are made over each family, all at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStep:
    """A change of policies in ``spec.steps``."""

    authorization_policies: tuple[AuthorizationPolicy, ...] = ()
    peer_authentications: tuple[PeerAuthentication, ...] = ()
    replaces: bool = False
    """``replace``: exactly these are in effect then; else ``apply``: they are added or changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeStep:
    """A change of anything but policies alone in ``spec.steps``."""

    verb: Literal["apply", "delete", "replace"]
    manifests: str
    """YAML, as ``lab.apply``, ``lab.delete`` and ``lab.replace`` take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushStep:
    """A resource of xDS, as it is, that every node proxy gets and has to refuse. What is in effect stays so."""

    type_name: str
    """``istio.security.Authorization`` or ``istio.workload.Address``."""
    name: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectStep:
    """A connection of ``spec.steps`` that is opened, and stays open."""

    source: str
    """``namespace/pod``."""
    to: str
    """``namespace/pod:port`` or ``service.namespace:port``, as in the file."""
    name: str
    """What later steps call it."""
    family: Family | None = None
    """``None``: 4, or the only one in which a Service has an address."""
    half_close: bool = False
    """Whether the caller closes its side once it is open: the connection stays half-closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStep:
    """Whether a connection that a ``ConnectStep`` opened still carries a question and its answer."""

    name: str
    alive: bool
    """What should come of it: it answers, or it is closed."""


Verb = Literal["restart", "kill", "stop", "pause", "resume", "upgrade", "reboot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbStep:
    """Something that happens to a program of the lab, or to a whole node."""

    verb: Verb
    instance: str
    """An ``InstanceId`` as text, without generation; of ``reboot`` the name of the node."""
    to: str = ""
    """Of ``upgrade``: the ztunnel that takes over, as in ``spec.dataplane.ztunnel``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficStep:
    """Calls and open connections that go on while other steps are done, and what may become of them."""

    pairs: tuple[tuple[str, str], ...]
    """Who calls (``namespace/pod``), and which URL."""
    during: tuple[Step, ...]
    """At least one; none of them is a ``TrafficStep``."""
    rate: float = 50.0
    """Calls a second in all."""
    open: int = 0
    """Connections that are held open, for each pair."""
    failed_new: int | None = None
    """How many new calls fail; ``None``: any number may."""
    broken_open: int | None = None
    """How many of the open connections break."""
    in_plaintext: int | None = None
    """How many bytes are in plaintext on connections that were opened after a change was in effect."""


Step = CallStep | PolicyStep | ChangeStep | PushStep | ConnectStep | AskStep | VerbStep | TrafficStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    name: str
    nodes: tuple[Node, ...]
    mesh: Mesh
    ztunnel: str = "reference"
    """``spec.dataplane.ztunnel``: reference, none, an entry point's name or [NAME=]PATH."""
    waypoint: str = ""
    """``spec.dataplane.waypoint``: envoy, reference, none, an entry point's name or [NAME=]PATH of an Envoy. Empty: it
    is envoy, if that is installed, and else reference."""
    expect: tuple[Expectation, ...] = ()
    images: Mapping[str, Program | None] = field(default_factory=dict)
    """Pattern (fnmatch) -> program; ``None``: the built-in echo."""
    steps: tuple[Step, ...] = ()
    """``spec.steps``: what ``meshlab replay`` does, in order."""
    urls: Mapping[str, str] = field(default_factory=dict)
    """URL -> what the control plane reads there."""
    mounts: tuple[str, ...] = ()
    """Folders of the host that are readable in pods although they lie under /tmp."""
    ready_timeout_s: float = 10.0
