"""Delta xDS, the server's end, without the stream: requests in, responses out. ``xds`` is the client's end.

The server holds one ``Snapshot`` of everything it serves, and a ``Stream`` for each client. In a stream each type goes

    absent --OPEN--> subscribed --SUBSCRIBE, ACK, NACK--> subscribed

and any other request is a ``ProtocolError`` that ends that stream only. ``OPEN`` is always answered, even when there is
nothing to send: a ztunnel is not ready before both of its types were. A response counts once its ACK has come. After a
NACK nobody knows what the client holds of that response, so all of it is sent again at the next change. A second ACK of
one response changes nothing, as in Istio (an "expired nonce"); a nonce that was never sent breaks a rule.
Pure; it never waits and knows no clock.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meshlab.errors import ProtocolError
from meshlab.model import InstanceId
from meshlab.protocols.messages import ADDRESS_TYPE, message
from meshlab.protocols.xds import ZTUNNEL_TYPES, Request, Response

_INVALID_ARGUMENT = 3  # gRPC's status code
_LATE = frozenset({ADDRESS_TYPE, "type.googleapis.com/envoy.config.listener.v3.Listener"})
"""Their resources name those of other types, which go before them."""
_LEFT_LAST = frozenset({"type.googleapis.com/envoy.config.cluster.v3.Cluster"})
"""Resources of other types name theirs, and have to change before any of theirs is removed."""
_UNKNOWN = ""  # the version of a resource of which we do not know whether the client holds it


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

    client: str
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
    """Name to version of what the client holds once it has accepted what was sent."""
    outstanding: dict[str, tuple[str, dict[str, str | None]]] = field(default_factory=dict)
    """Nonce of each response without answer: its version, and each name in it with its own (``None``: removed)."""
    version: str = _UNKNOWN
    """Of the snapshot that was last compared with what the client holds."""
    acknowledged: str = _UNKNOWN
    """Of the last snapshot that the client accepted in full."""

    def change(self, request: Request, *, opening: bool) -> None:
        """Apply the names that a request adds and takes away, the wildcard too."""
        added, taken = set(request.resource_names_subscribe), set(request.resource_names_unsubscribe)
        # An empty first request is how a client that never heard of "*" says it; "*" in both lists is "nothing yet".
        self.wildcard = (self.wildcard or "*" in added or (opening and not added)) and "*" not in taken
        self.names = (self.names | added) - taken - {"*"}
        for name in taken:
            self.held.pop(name, None)
        self.held.update(dict.fromkeys(self.names & added, _UNKNOWN))  # who asks again is answered again
        self.held.update(request.initial_resource_versions)

    def difference(self, resources: Mapping[str, Resource]) -> tuple[dict[str, Resource], list[str]]:
        """What to send and what to remove so that the client holds what it asked for; counted as held from now on."""
        wanted = resources if self.wildcard else {name: resources[name] for name in self.names if name in resources}
        changed = {name: resource for name, resource in wanted.items() if self.held.get(name) != resource.version}
        removed = sorted(self.held.keys() - wanted.keys())
        self.held = {name: resource.version for name, resource in wanted.items()}
        return changed, removed

    def refuse(self, parts: Mapping[str, str | None]) -> None:
        """Forget whether the client holds these, unless something newer was sent meanwhile."""
        for name, version in parts.items():
            if self.held.get(name) == version:
                self.held[name] = _UNKNOWN

    @property
    def settled(self) -> bool:
        """Nothing is outstanding, and nothing was refused that has not been replaced."""
        return not self.outstanding and _UNKNOWN not in self.held.values()

    def settle(self) -> None:
        """Note the version as accepted, if it is."""
        if self.settled:
            self.acknowledged = self.version


class Stream:
    """The server's end of one client's stream."""

    def __init__(self, snapshot: Snapshot, client: str) -> None:
        self.snapshot = snapshot
        self.client = client
        """Who it is, as whoever opened the stream knows; what the client says of itself is ``node``."""
        self.node = ""
        """The client's NODE_NAME, or its node id where it has none; empty before the first request."""
        self.nacks: list[Nack] = []
        """Those received; whoever drives the stream takes them away."""
        self._subscriptions: dict[str, _Subscription] = {}
        self._sent = 0

    @property
    def acknowledged(self) -> dict[str, str]:
        """Type URL to the version that the client has accepted in full; empty: none yet."""
        return {type_url: subscription.acknowledged for type_url, subscription in self._subscriptions.items()}

    def has(self, type_url: str, version: str, names: Iterable[str] = ()) -> bool:
        """Whether the client has accepted this version in full, and nothing else was sent since.

        Args:
            names: resources that it has to hold. What it has not asked for yet it cannot have accepted: an Envoy asks
                for routes when it is sent the listener that names them.
        """
        subscription = self._subscriptions.get(type_url)
        return (
            subscription is not None
            and subscription.settled
            and subscription.acknowledged == version
            and subscription.held.keys() >= set(names)
        )

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

        Policies go before the workloads that name them, and clusters before the routes and listeners that lead to
        them. Clusters that nothing leads to any more are removed when everything else has changed.

        Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations
        """
        self.snapshot = snapshot
        responses: list[Response] = []
        for type_url, subscription in sorted(self._subscriptions.items(), key=lambda item: item[0] in _LATE):
            if subscription.version != snapshot.version(type_url):
                responses += self._send(type_url, subscription, even_empty=False)
        return sorted(responses, key=_is_left_last)

    def _answered(self, request: Request, subscription: _Subscription) -> None:
        nonce = request.response_nonce
        if nonce not in subscription.outstanding and not self._was_sent(nonce):
            raise _illegal(request, f"no response with nonce {nonce!r} was sent")
        is_oldest = nonce == next(iter(subscription.outstanding), None)
        version, parts = subscription.outstanding.pop(nonce, (_UNKNOWN, {}))
        if request.HasField("error_detail"):  # its code is 0 from a real ztunnel: presence is what counts
            self.nacks.append(Nack(self.client, self.node, request.type_url, version, request.error_detail.message))
            subscription.refuse(parts)
        elif subscription.outstanding:
            if is_oldest and _UNKNOWN not in subscription.held.values():
                subscription.acknowledged = version  # what was sent since is not answered yet
        else:
            subscription.settle()

    def _was_sent(self, nonce: str) -> bool:
        return nonce in map(_nonce, range(1, self._sent + 1))

    def _send(self, type_url: str, subscription: _Subscription, *, even_empty: bool) -> list[Response]:
        subscription.version = self.snapshot.version(type_url)
        changed, removed = subscription.difference(self.snapshot.named(type_url))
        if not (changed or removed or even_empty):
            subscription.settle()
            return []
        if changed and removed and type_url in _LEFT_LAST:
            return [
                self._response(type_url, subscription, changed, []),
                self._response(type_url, subscription, {}, removed),
            ]
        return [self._response(type_url, subscription, changed, removed)]

    def _response(
        self, type_url: str, subscription: _Subscription, changed: Mapping[str, Resource], removed: list[str]
    ) -> Response:
        self._sent += 1
        nonce = _nonce(self._sent)
        parts = {name: resource.version for name, resource in changed.items()} | dict.fromkeys(removed)
        subscription.outstanding[nonce] = subscription.version, parts
        return _response(type_url, subscription.version, nonce, changed, removed)


def _nonce(number: int) -> str:
    return f"n{number}"


def _is_left_last(response: Response) -> bool:
    return response.type_url in _LEFT_LAST and bool(response.removed_resources)


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
    if not request.type_url:
        raise _illegal(request, "type_url is empty")
    said = (
        subscribed,
        bool(request.response_nonce),
        request.HasField("error_detail"),
        bool(request.initial_resource_versions),
    )
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
    """A client that has not acknowledged a type at the version that is served."""

    client: str
    node: str
    """What it called itself; empty where it has no stream."""
    type_url: str
    version: str
    """What it acknowledged last; empty: nothing, or it has no stream."""


@dataclass(frozen=True, slots=True)
class Views:
    """What each client sees."""

    common: Snapshot
    """What a ztunnel sees."""
    own: Mapping[InstanceId, Snapshot] = field(default_factory=dict)
    """By the first generation of an instance: what one sees that is no ztunnel."""

    def of(self, client: str) -> Snapshot:
        return self._own(client) or self.common

    def types_of(self, client: str) -> Sequence[str]:
        """The types that the client has to acknowledge."""
        own = self._own(client)
        return ZTUNNEL_TYPES if own is None else tuple(own.types)

    def names_of(self, client: str, type_url: str) -> Iterable[str]:
        """The resources that the client has to ask for; a ztunnel asks for what it needs."""
        own = self._own(client)
        return () if own is None else own.named(type_url)

    def _own(self, client: str) -> Snapshot | None:
        return self.own.get(InstanceId.parse(client).first) if self.own else None


class DeltaServer:
    """One snapshot for all clients but those that have their own, and what was served before, to go back to."""

    def __init__(self) -> None:
        self.served = Views(Snapshot())
        self.accepted = self.served
        """What was called good last."""
        self.streams: list[Stream] = []

    def open(self, client: str) -> Stream:
        stream = Stream(self.served.of(client), client)
        self.streams.append(stream)
        return stream

    def close(self, stream: Stream) -> None:
        self.streams.remove(stream)

    def publish(self, served: Views | Snapshot) -> list[tuple[Stream, list[Response]]]:
        """Serve this from now on; what to send to whom."""
        self.served = served if isinstance(served, Views) else Views(served)
        return [(stream, stream.update(self.served.of(stream.client))) for stream in self.streams]

    def accept(self) -> None:
        """Call what is served good."""
        self.accepted = self.served

    def roll_back(self) -> list[tuple[Stream, list[Response]]]:
        """Serve again what was called good last; what to send to whom."""
        return self.publish(self.accepted)

    def lagging(self, clients: Iterable[str]) -> list[Lag]:
        """Which of these clients have no stream, or one that has not acknowledged what it is served.

        A client may have several: while one is broken and nobody has noticed, the next is there already. Each counts.
        """
        lags = []
        for client in clients:
            streams = [stream for stream in self.streams if stream.client == client]
            for type_url in self.served.types_of(client):
                version = self.served.of(client).version(type_url)
                names = self.served.names_of(client, type_url)
                behind = [stream for stream in streams if not stream.has(type_url, version, names)]
                if behind:
                    lags.append(Lag(client, behind[0].node, type_url, behind[0].acknowledged.get(type_url, "")))
                elif not streams:
                    lags.append(Lag(client, "", type_url, ""))
        return lags
