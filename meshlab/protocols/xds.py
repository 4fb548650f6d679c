"""Delta xDS, both ends, without the stream: requests in, responses out. Pure; it never waits and knows no clock.

The server holds one ``Snapshot`` of everything it serves, and a ``Stream`` for each client. In a stream each type goes

    absent --OPEN--> subscribed --SUBSCRIBE, ACK, NACK--> subscribed

and any other request is a ``ProtocolError`` that ends that stream only. ``OPEN`` is always answered, even when there is
nothing to send: a ztunnel is not ready before both of its types were. A response counts until its ACK or NACK comes.
After a NACK the server no longer knows what the client holds of that response, and sends all of it at the next change.

The client says what a real ztunnel says: one request per type with its node, then one ACK or NACK for each response.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlab.errors import ProtocolError
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message

DELTA_ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DELTA_ADS_METHOD = "DeltaAggregatedResources"
ZTUNNEL_TYPES = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
"""What a ztunnel subscribes to, in its order."""

Request = Any
"""``envoy.service.discovery.v3.DeltaDiscoveryRequest``."""
Response = Any
"""``envoy.service.discovery.v3.DeltaDiscoveryResponse``."""

_INVALID_ARGUMENT = 3  # gRPC's status code
_UNKNOWN = ""  # the version of a resource of which we do not know whether the client holds it


# --- what is served -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource as it is sent."""

    body: bytes
    """The inner message, serialized."""
    version: str
    """A hash of ``body``: equal content is never sent twice, also after a restart of the server."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a server serves at one time, by type and name."""

    types: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """A hash per type; a type without resources has one too (``version``)."""

    @classmethod
    def of(cls, bodies: Mapping[str, Mapping[str, bytes]]) -> Snapshot:
        """Version ``{type URL: {name: serialized inner message}}``."""
        types = {
            type_url: {name: Resource(body, _digest(body)) for name, body in sorted(named.items())}
            for type_url, named in bodies.items()
        }
        versions = {
            type_url: _digest(*(f"{name}\0{resource.version}\0".encode() for name, resource in named.items()))
            for type_url, named in types.items()
        }
        return cls(types, versions)

    def named(self, type_url: str) -> Mapping[str, Resource]:
        return self.types.get(type_url, {})

    def version(self, type_url: str) -> str:
        return self.versions.get(type_url, _EMPTY_VERSION)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


_EMPTY_VERSION = _digest()


# --- the server's end ---------------------------------------------------------------------------------------------


class Move(enum.Enum):
    """What a request does to its type."""

    OPEN = "open"
    SUBSCRIBE = "subscribe"
    ACK = "ack"
    NACK = "nack"


_MOVES = {
    # subscribed, response_nonce, error_detail, initial_resource_versions
    (False, False, False, False): Move.OPEN,
    (False, False, False, True): Move.OPEN,
    (True, False, False, False): Move.SUBSCRIBE,
    (True, True, False, False): Move.ACK,
    (True, True, True, False): Move.NACK,
}


@dataclass(frozen=True, slots=True)
class Nack:
    """A client refused a response."""

    node: str
    type_url: str
    version: str
    """Of the refused snapshot's type."""
    detail: str


@dataclass(slots=True)
class _Subscription:
    """One type in one stream."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    """Name to version of what the client holds, as far as we know."""
    outstanding: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    """Nonce to version and names of the responses that were not answered yet."""
    version: str = _UNKNOWN
    """Of the snapshot that was last compared with what the client holds."""
    acknowledged: str = _UNKNOWN
    """Of the last snapshot of which nothing is outstanding and nothing was refused."""
    refused: bool = False
    """Something of ``version`` was."""

    def change(self, request: Request, *, opening: bool) -> None:
        """Apply the names that a request adds and takes away, the wildcard too."""
        added, taken = set(request.resource_names_subscribe), set(request.resource_names_unsubscribe)
        # An empty first request is how a client that never heard of "*" says it; "*" in both lists is "nothing yet".
        self.wildcard = (self.wildcard or "*" in added or (opening and not added)) and "*" not in taken
        for name in taken - {"*"}:
            self.held.pop(name, None)
        for name in added - {"*"} - taken:
            self.held[name] = _UNKNOWN
        self.names = (self.names | added) - taken - {"*"}
        self.held.update(request.initial_resource_versions)

    def difference(self, resources: Mapping[str, Resource]) -> tuple[dict[str, Resource], list[str]]:
        """What to send and what to remove so that the client holds what it asked for; noted as held."""
        wanted = resources if self.wildcard else {name: resources[name] for name in self.names if name in resources}
        changed = {name: resource for name, resource in wanted.items() if self.held.get(name) != resource.version}
        removed = sorted(name for name in self.held if name not in wanted)
        self.held.update((name, resource.version) for name, resource in changed.items())
        for name in removed:
            del self.held[name]
        return changed, removed

    def settle(self) -> None:
        """After an answer, or a comparison with no difference: note the version when all of it was accepted."""
        if not self.outstanding and not self.refused:
            self.acknowledged = self.version


class Stream:
    """The server's end of one client's stream."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.node = ""
        """The client's NODE_NAME, or its node id where it has none; empty before the first request."""
        self.nacks: list[Nack] = []
        self._subscriptions: dict[str, _Subscription] = {}
        self._sent = 0

    @property
    def acknowledged(self) -> dict[str, str]:
        """Type URL to the version that the client has accepted in full; empty: none yet."""
        return {type_url: subscription.acknowledged for type_url, subscription in self._subscriptions.items()}

    def receive(self, request: Request) -> list[Response]:
        """The responses to a request.

        Raises:
            ProtocolError: the request is not one of the legal moves.
        """
        if not self.node:
            self.node = _node_name(request)
        type_url = request.type_url
        move = _move(request, subscribed=type_url in self._subscriptions)
        subscription = self._subscriptions.setdefault(type_url, _Subscription())
        match move:
            case Move.ACK | Move.NACK:
                self._answered(request, subscription)
            case Move.OPEN | Move.SUBSCRIBE:
                pass
        if move is Move.OPEN or request.resource_names_subscribe or request.resource_names_unsubscribe:
            subscription.change(request, opening=move is Move.OPEN)
            return self._send(type_url, subscription, even_empty=move is Move.OPEN)
        return []

    def update(self, snapshot: Snapshot) -> list[Response]:
        """The responses that bring the client from the snapshot before to this one.

        Policies go first, so that no workload names a policy which its proxy has not heard of.
        """
        self.snapshot = snapshot
        responses: list[Response] = []
        for type_url, subscription in sorted(self._subscriptions.items(), key=lambda item: item[0] == ADDRESS_TYPE):
            if subscription.version != snapshot.version(type_url):
                responses += self._send(type_url, subscription, even_empty=False)
        return responses

    def _answered(self, request: Request, subscription: _Subscription) -> None:
        nonce = request.response_nonce
        if nonce not in subscription.outstanding:
            raise _illegal(request, f"no response with nonce {nonce!r} awaits an answer")
        version, names = subscription.outstanding.pop(nonce)
        if request.HasField("error_detail"):
            self.nacks.append(Nack(self.node, request.type_url, version, request.error_detail.message))
            subscription.held.update(dict.fromkeys(names, _UNKNOWN))
            subscription.refused = subscription.refused or version == subscription.version
        subscription.settle()

    def _send(self, type_url: str, subscription: _Subscription, *, even_empty: bool) -> list[Response]:
        version = self.snapshot.version(type_url)
        subscription.refused = subscription.refused and version == subscription.version
        subscription.version = version
        changed, removed = subscription.difference(self.snapshot.named(type_url))
        if not (changed or removed or even_empty):
            subscription.settle()
            return []
        self._sent += 1
        nonce = f"n{self._sent}"
        subscription.outstanding[nonce] = version, frozenset({*changed, *removed})
        return [_response(type_url, version, nonce, changed, removed)]


def _response(type_url: str, version: str, nonce: str, changed: Mapping[str, Resource], removed: list[str]) -> Response:
    return message("envoy.service.discovery.v3.DeltaDiscoveryResponse")(
        system_version_info=version,
        type_url=type_url,
        nonce=nonce,
        removed_resources=removed,
        resources=[
            {"name": name, "version": resource.version, "resource": {"type_url": type_url, "value": resource.body}}
            for name, resource in changed.items()
        ],
    )


def _move(request: Request, *, subscribed: bool) -> Move:
    said = (
        subscribed,
        bool(request.response_nonce),
        request.HasField("error_detail"),
        bool(request.initial_resource_versions),
    )
    if not request.type_url:
        raise _illegal(request, "type_url is empty")
    if said not in _MOVES:
        words = ("the type is subscribed", "response_nonce", "error_detail", "initial_resource_versions")
        seen = ", ".join(word for word, true in zip(words, said, strict=True) if true)
        raise _illegal(request, f"these do not go together: {seen}")
    return _MOVES[said]


def _node_name(request: Request) -> str:
    metadata = request.node.metadata.fields
    name = metadata["NODE_NAME"].string_value if "NODE_NAME" in metadata else ""
    if not (name or request.node.id):
        raise _illegal(request, "the first request of a stream has no node")
    return name or request.node.id


def _illegal(request: Request, why: str) -> ProtocolError:
    return ProtocolError(f"delta xDS request for {request.type_url!r}: {why}", _INVALID_ARGUMENT)


@dataclass(frozen=True, slots=True)
class Lag:
    """A node that has not acknowledged a type at the version that is served."""

    node: str
    type_url: str
    version: str
    """What it acknowledged last; empty: nothing, or it has no stream."""


class DeltaServer:
    """One snapshot for all streams, and the one before to go back to."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.accepted = self.snapshot
        """The last snapshot that was called good."""
        self.streams: list[Stream] = []

    def open(self) -> Stream:
        stream = Stream(self.snapshot)
        self.streams.append(stream)
        return stream

    def close(self, stream: Stream) -> None:
        self.streams.remove(stream)

    def publish(self, snapshot: Snapshot) -> list[tuple[Stream, list[Response]]]:
        """Serve ``snapshot`` from now on; what to send to whom."""
        self.snapshot = snapshot
        return [(stream, stream.update(snapshot)) for stream in self.streams]

    def accept(self) -> None:
        """Call what is served good."""
        self.accepted = self.snapshot

    def roll_back(self) -> list[tuple[Stream, list[Response]]]:
        """Serve the last good snapshot again; what to send to whom."""
        return self.publish(self.accepted)

    def lagging(self, nodes: Iterable[str], types: Sequence[str] = ZTUNNEL_TYPES) -> list[Lag]:
        """Which of these nodes have no stream, or one that has not acknowledged what is served."""
        lags = []
        for node in nodes:
            streams = [stream.acknowledged for stream in self.streams if stream.node == node] or [{}]
            for type_url in types:
                held = [acknowledged.get(type_url, "") for acknowledged in streams]
                lags += [Lag(node, type_url, old) for old in held if old != self.snapshot.version(type_url)][:1]
        return lags


# --- the client's end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who opens a stream, as a ztunnel says it."""

    name: str
    """NODE_NAME."""
    instance_ip: str = ""
    pod_name: str = ""
    pod_namespace: str = ""

    def to_message(self) -> Any:
        """``envoy.config.core.v3.Node``."""
        domain = f"{self.pod_namespace}.svc.cluster.local"
        metadata = {
            "NAME": self.pod_name,
            "NAMESPACE": self.pod_namespace,
            "INSTANCE_IPS": self.instance_ip,
            "NODE_NAME": self.name,
        }
        return message("envoy.config.core.v3.Node")(
            id=f"ztunnel~{self.instance_ip}~{self.pod_name}.{self.pod_namespace}~{domain}",
            metadata={"fields": {key: {"string_value": value} for key, value in metadata.items()}},
        )


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
        """ACK an update, or NACK it with name and reason of each resource that was ``refused``; the rest counts as held."""
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


def _decode(type_url: str, resource: Any) -> Any:
    from google.protobuf.message import DecodeError

    if resource.resource.type_url != type_url:
        raise ValueError(f"decode: a {resource.resource.type_url!r} in a response of {type_url!r}")
    try:
        return message(type_url.rpartition("/")[2]).FromString(resource.resource.value)
    except DecodeError as error:
        raise ValueError(f"decode: {error}") from error
