"""ZDS, by which istio-cni's agent hands pods to a node proxy: both ends, without the socket.

One protobuf message is one SOCK_SEQPACKET packet; the descriptor of the pod's netns travels beside ``add`` and beside
nothing else. The agent listens, ztunnel connects, and they speak in lockstep: one request, one ack.

    ztunnel                                agent
       | --- hello{V1} ------------------> |
       | <-- add{uid, workload} + fd ----- |   once for each pod that the agent knows
       | --- ack{} or ack{error} --------> |
       | <-- snapshot_sent --------------- |   what was not named in this session is stopped
       | --- ack{} ----------------------> |
       | <-- add + fd, del --------------- |   live, one at a time

``AgentSession`` and ``ProxySession`` are one connection each, from its start to its end. Neither opens, sends or
closes anything: descriptors are named by the pod's uid here, and counted.

Source: https://github.com/istio/ztunnel/blob/master/proto/zds.proto
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from meshlab.errors import ProtocolError
from meshlab.protocols.messages import message

if TYPE_CHECKING:
    from meshlab.protocols.stubs import zds_pb2

_M = TypeVar("_M", bound=Message)
MAX_PACKET_BYTES = 1024
"""Both readers use buffers of this size; a longer packet is cut, which is an error."""
_V1 = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ZdsPod:
    """A pod as ZDS names it. Not its address, but these names link it to its xDS Workload."""

    uid: str
    name: str
    namespace: str
    service_account: str


# --- the agent's end -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Effect: send ``data``, with the netns descriptor of pod ``netns_of`` where that is not ``None``."""

    data: bytes
    netns_of: str | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The proxy has its listeners in this pod: what is redirected to it now is served."""

    uid: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The proxy could not take this pod; it keeps the connection and tries again by itself."""

    uid: str
    text: str


@dataclass(frozen=True, slots=True)
class Removed:
    """The proxy has closed everything of this pod."""

    uid: str


@dataclass(frozen=True, slots=True)
class Synced:
    """The snapshot has been acknowledged."""


AgentEffect = SendPacket | Acknowledged | Refused | Removed | Synced


@dataclass(frozen=True, slots=True)
class _Request:
    kind: str
    """``add``, ``del`` or ``snapshot_sent``."""
    uid: str
    packet: SendPacket


class AgentSession:
    """One connection as the agent sees it. Every method returns what is to be done now, in order."""

    def __init__(self, pods: Iterable[ZdsPod] = ()) -> None:
        self._greeted = False
        self._outstanding: _Request | None = None
        self._queue: deque[_Request] = deque()
        self.synced = False
        for pod in pods:
            self.add(pod)

    def add(self, pod: ZdsPod) -> list[AgentEffect]:
        """Hand a pod to the proxy; before its hello, as a part of the snapshot."""
        self._queue.append(_Request("add", pod.uid, SendPacket(encode_add(pod), pod.uid)))
        return self._next()

    def remove(self, uid: str) -> list[AgentEffect]:
        """Take a pod from the proxy, or forget it where it was not yet handed over."""
        self._queue = deque(request for request in self._queue if request.uid != uid)
        if not self._greeted:
            return [Removed(uid)]
        self._queue.append(_Request("del", uid, SendPacket(encode_del(uid))))
        return self._next()

    def receive(self, packet: bytes) -> list[AgentEffect]:
        """Take the proxy's hello or its ack.

        Raises:
            ProtocolError: it said something else, or nothing was outstanding. Close the connection.
        """
        if not self._greeted:
            _read_hello(packet)
            self._greeted = True
            self._queue.append(_Request("snapshot_sent", "", SendPacket(encode_snapshot_sent())))
            return self._next()
        error = _read_ack(packet)
        request, self._outstanding = self._outstanding, None
        if request is None:
            raise ProtocolError("the proxy sent an ack, but no request was outstanding")
        return [*self._settled(request, error), *self._next()]

    def _settled(self, request: _Request, error: str) -> list[AgentEffect]:
        match request.kind:
            case "add":
                return [Refused(request.uid, error) if error else Acknowledged(request.uid)]
            case "del":
                if error:
                    raise ProtocolError(f"the proxy refused to remove {request.uid}: {error}")
                return [Removed(request.uid)]
            case _:
                if error:
                    raise ProtocolError(f"the proxy refused the snapshot: {error}")
                self.synced = True
                return [Synced()]

    def _next(self) -> list[AgentEffect]:
        """Lockstep: the next request leaves only when the last one was answered."""
        if not self._greeted or self._outstanding is not None or not self._queue:
            return []
        self._outstanding = self._queue.popleft()
        return [self._outstanding.packet]


def encode_add(pod: ZdsPod) -> bytes:
    request = message("istio.workload.zds.WorkloadRequest")()
    request.add.uid = pod.uid
    info = request.add.workload_info
    info.name, info.namespace, info.service_account = pod.name, pod.namespace, pod.service_account
    return _encoded(request)


def encode_del(uid: str) -> bytes:
    request = message("istio.workload.zds.WorkloadRequest")()
    getattr(request, "del").uid = uid  # a keyword of Python's
    return _encoded(request)


def encode_snapshot_sent() -> bytes:
    request = message("istio.workload.zds.WorkloadRequest")()
    request.snapshot_sent.SetInParent()
    return _encoded(request)


def _read_hello(packet: bytes) -> None:
    hello = _decoded(message("istio.workload.zds.ZdsHello"), packet)
    if hello.version != _V1:
        raise ProtocolError(f"the proxy speaks ZDS version {hello.version}, and this agent only {_V1}")


def _read_ack(packet: bytes) -> str:
    response = _decoded(message("istio.workload.zds.WorkloadResponse"), packet)
    if response.WhichOneof("payload") != "ack":
        raise ProtocolError(f"the proxy answered with {packet.hex()}, which is no ack")
    return response.ack.error


# --- the proxy's end -------------------------------------------------------------------------------------------------


class UnreadableError(ProtocolError):
    """A packet that is not a request: ack with this text, close the connection and connect again."""


@dataclass(frozen=True, slots=True)
class Added:
    """Serve this pod; its netns descriptor came with the packet. Ack when its listeners are bound."""

    pod: ZdsPod


@dataclass(frozen=True, slots=True)
class Kept:
    """The agent knows this pod but has no descriptor for it: go on serving it."""

    uid: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """Close everything of this pod."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """Stop every pod that is not in ``uids``; then be ready."""

    uids: frozenset[str]


ProxyEvent = Added | Kept | Deleted | SnapshotSent


class ProxySession:
    """One connection as the node proxy sees it: ``hello()`` first, then ``receive`` and ``ack`` in turns."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._snapshot_over = False

    @staticmethod
    def hello() -> bytes:
        return message("istio.workload.zds.ZdsHello")(version="V1").SerializeToString()

    @staticmethod
    def ack(error: str = "") -> bytes:
        """The answer to the last request; not empty: why it could not be done."""
        response = message("istio.workload.zds.WorkloadResponse")()
        response.ack.SetInParent()
        # The agent reads into MAX_PACKET_BYTES as well; 16 are more than the framing of a text takes.
        response.ack.error = error.encode()[: MAX_PACKET_BYTES - 16].decode(errors="ignore")
        return response.SerializeToString()

    def receive(self, packet: bytes, fds: int = 0) -> ProxyEvent:
        """Read one request, which came with ``fds`` descriptors.

        Raises:
            UnreadableError: no request at all, or descriptors where none belong: ack its text and reconnect.
            ProtocolError: a request that has no place here: ack its text; a ztunnel then exits with status 1.
        """
        request = _read_request(packet)
        kind = request.WhichOneof("payload")
        if fds != (1 if kind == "add" else 0):
            raise UnreadableError(f"failure to read message : {kind} came with {fds} descriptors")
        match kind:
            case "add":
                return self._add(request.add)
            case "keep":
                return self._keep(request.keep.uid)
            case "del":
                uid = getattr(request, "del").uid
                self._named.discard(uid)
                return Deleted(uid)
            case _:
                return self._snapshot()

    def _add(self, add: zds_pb2.AddWorkload) -> Added:
        if not add.HasField("workload_info"):
            raise _misplaced(f"add of {add.uid} has no workload_info")
        self._named.add(add.uid)
        info = add.workload_info
        return Added(
            ZdsPod(uid=add.uid, name=info.name, namespace=info.namespace, service_account=info.service_account)
        )

    def _keep(self, uid: str) -> Kept:
        if self._snapshot_over:
            raise _misplaced(f"keep of {uid} after the snapshot")
        self._named.add(uid)
        return Kept(uid)

    def _snapshot(self) -> SnapshotSent:
        if self._snapshot_over:
            raise _misplaced("a second snapshot_sent in one session")
        self._snapshot_over = True
        return SnapshotSent(frozenset(self._named))


def _misplaced(what: str) -> ProtocolError:
    return ProtocolError(f"failure to process message : ProtocolError({what})")


def _read_request(packet: bytes) -> zds_pb2.WorkloadRequest:
    if len(packet) > MAX_PACKET_BYTES:
        raise UnreadableError(f"failure to read message : more than {MAX_PACKET_BYTES} bytes")
    try:
        request = _decoded(message("istio.workload.zds.WorkloadRequest"), packet)
    except ProtocolError as error:
        raise UnreadableError(f"failure to read message : {error}") from error
    if request.WhichOneof("payload") is None:
        raise UnreadableError("failure to read message : no request of a known kind")
    return request


def describe_request(packet: bytes) -> dict[str, Any]:
    """What an agent's packet says, as JSON has it: for records of a conversation."""
    request = _decoded(message("istio.workload.zds.WorkloadRequest"), packet)
    kind = request.WhichOneof("payload")
    return {kind: _plain(getattr(request, kind))} if kind else {}


def describe_answer(packet: bytes, *, greeted: bool) -> dict[str, Any]:
    """What a proxy's packet says: its first is the hello."""
    if not greeted:
        return {"version": _decoded(message("istio.workload.zds.ZdsHello"), packet).version}
    response = _decoded(message("istio.workload.zds.WorkloadResponse"), packet)
    return {"ack": _plain(response.ack)}


def _plain(part: Any) -> dict[str, Any]:
    return {field.name: _plain(value) if field.message_type else value for field, value in part.ListFields()}


def _encoded(request: Message) -> bytes:
    data = request.SerializeToString()
    if len(data) > MAX_PACKET_BYTES:
        raise ProtocolError(f"a ZDS request of {len(data)} bytes; both ends read at most {MAX_PACKET_BYTES}")
    return data


def _decoded(kind: type[_M], packet: bytes) -> _M:
    try:
        return kind.FromString(packet)
    except DecodeError as error:
        raise ProtocolError(f"{packet[:32].hex()} is no {kind.DESCRIPTOR.name}: {error}") from error
