"""The control plane as a server: gRPC towards the node proxies, a control channel towards the lab.

    node proxy --delta ADS, CreateCertificate (TLS, bearer token)--> ControlPlane <--control channel-- lab

A client is an instance (``ztunnel@node-1``), and is known by its token: the lab says with ``SetClients`` whose each is,
so that two proxies of one node, or the same proxy before and after a restart, are two clients. Where a token is taken
away its streams end, and from that moment on they count no longer.

A ``Push`` replaces all that is served, and is answered once its barrier is reached: every named client has a live
stream that accepted both types at this version, and every named identity has a certificate. Its answer is one of

    Acknowledged    in effect
    Late            not within ``timeout_s``; it is served all the same
    Superseded      another push replaced it before it was in effect
    Refused         by a client

A refused push is taken back at once: the last good one is served again, and the answer waits until every client has
acknowledged that. ``behind`` says who had not done so at the deadline: such a client may still serve what was refused.
(A control plane that has just started knows no good one: ``fallback`` is that.)
With ``after_nack: leave`` the refused push stays where it is, as Istio leaves it, and nobody is waited for.
Everything waits for events: an ACK, a NACK, a stream that comes or goes, a certificate, another push.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from meshlab.controlplane.authority import CA_METHOD, CA_SERVICE, Authority
from meshlab.controlplane.journal import Entry, Journal
from meshlab.controlplane.requests import (
    REQUESTS,
    Acknowledged,
    CaMode,
    LagSpoken,
    Late,
    NackSpoken,
    PlaneRequest,
    Push,
    Pushed,
    ReadStatus,
    Refused,
    Resources,
    SetCa,
    SetClients,
    Status,
    StreamsEnded,
    StreamStatus,
    Superseded,
)
from meshlab.errors import ProtocolError
from meshlab.kernel.channel import Channel, ChannelClosedError, close_all
from meshlab.kernel.messages import read
from meshlab.model import InstanceId
from meshlab.pki import Issuer
from meshlab.protocols.messages import message
from meshlab.protocols.xds import DELTA_ADS_METHOD, DELTA_ADS_SERVICE, Request, Response
from meshlab.protocols.xds_server import DeltaServer, Lag, Nack, Snapshot, Stream, Views

if TYPE_CHECKING:
    from meshlab.protocols.stubs.citadel_pb2 import IstioCertificateRequest, IstioCertificateResponse

# Looked up at import, which a fork server has done before a lab asks for a control plane.
_DELTA_REQUEST = message("envoy.service.discovery.v3.DeltaDiscoveryRequest")
_DELTA_RESPONSE = message("envoy.service.discovery.v3.DeltaDiscoveryResponse")
_CERTIFICATE_REQUEST = message("istio.v1.auth.IstioCertificateRequest")
_CERTIFICATE_RESPONSE = message("istio.v1.auth.IstioCertificateResponse")
_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # ztunnel pings an idle connection every 30 s; by default gRPC ends it after the third ping.
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the lab tells a control plane at its start."""

    listen: str
    """IPv4 address; one of the server certificate's names."""
    port: int
    """0: any that is free; the event ``listening`` says which."""
    clients: Mapping[str, str]
    """Bearer token -> the instance whose it is; every call must carry one."""
    trust_domain: str
    ca: Mapping[str, str]
    """``MeshCA.control_plane()``."""
    record: bool = False
    """Send the conversation as events."""


@dataclass(slots=True)
class _Push:
    """The one ``set`` that is under way."""

    served: Views
    clients: Sequence[str]
    identities: Sequence[str]
    goes_back: bool
    """What a NACK does to it."""
    nack: Nack | None = None
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who makes a call."""

    token: str
    client: str
    metadata: dict[str, str]


@dataclass(slots=True)
class _Served:
    """A stream that is being served."""

    token: str
    outbox: asyncio.Queue[Response]
    reader: asyncio.Task[ProtocolError | None]
    """Its end is the stream's."""


class ControlPlane:
    """One for a lab. ``run`` serves until the control channel is closed, or ``stop`` is called."""

    def __init__(self, config: Config, channel: Channel) -> None:
        self.config = config
        self.channel = channel
        self.ads = DeltaServer()
        self.authority = Authority(Issuer.from_pem(config.ca), config.trust_domain)
        self.journal = Journal(self._record, time.monotonic)
        self.unexpected: list[Nack] = []
        """NACKs that no push was waiting for."""
        self._clients = dict(config.clients)
        self._served: dict[Stream, _Served] = {}
        self._stream_numbers = itertools.count(1)
        self._push: _Push | None = None
        self._refused_before: set[tuple[str, str]] = set()
        """Type and version of what was refused once: other clients' NACKs of it are no news."""
        self._happened = asyncio.Event()
        self._stopped = asyncio.Event()
        self._configured = asyncio.Event()
        """Set by the first push."""

    # --- life ---

    async def run(self) -> None:
        """Listen, say so, and serve."""
        loop = asyncio.get_running_loop()
        server = self._server()
        credentials = grpc.ssl_server_credentials(
            [(self.config.ca["server_key"].encode(), self.config.ca["server_chain"].encode())]
        )
        port = server.add_secure_port(f"{self.config.listen}:{self.config.port}", credentials)
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            operations: set[asyncio.Task[None]] = set()

            def asked(request: dict[str, Any], fds: list[int]) -> None:
                close_all(fds)
                operation = tasks.create_task(self._operate(request))
                operations.add(operation)
                operation.add_done_callback(operations.discard)

            detach = self.channel.attach(loop, asked, self.stop)
            self._tell({"event": "listening", "address": self.config.listen, "port": port})
            await self._stopped.wait()
            for operation in operations:
                operation.cancel()
            await server.stop(grace=None)
            detach()  # not earlier: streams that were cut had something to say

    def stop(self) -> None:
        self._stopped.set()

    def now(self) -> datetime:
        """The time that certificates are dated by."""
        return datetime.now(UTC)

    def _server(self) -> Any:
        ads = grpc.stream_stream_rpc_method_handler(
            self.serve_stream,
            request_deserializer=_DELTA_REQUEST.FromString,
            response_serializer=_DELTA_RESPONSE.SerializeToString,
        )
        ca = grpc.unary_unary_rpc_method_handler(
            self.create_certificate,
            request_deserializer=_CERTIFICATE_REQUEST.FromString,
            response_serializer=_CERTIFICATE_RESPONSE.SerializeToString,
        )
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(DELTA_ADS_SERVICE, {DELTA_ADS_METHOD: ads}),
                grpc.method_handlers_generic_handler(CA_SERVICE, {CA_METHOD: ca}),
            )
        )
        return server

    # --- towards the node proxies ---

    async def serve_stream(self, requests: AsyncIterator[Request], context: Any) -> None:
        """One delta ADS stream, until its client goes or breaks a rule."""
        await self._authenticate(context)
        await self._configured.wait()  # one that has just restarted knows nothing, which is no reason to remove all
        caller = await self._authenticate(context)  # its token may have been taken away meanwhile
        stream, number = self.ads.open(caller.client), next(self._stream_numbers)
        self.journal.stream_opened(number, caller.client, context.peer(), caller.metadata)
        outbox: asyncio.Queue[Response] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(number, outbox, context))
                reader = tasks.create_task(self._read(number, stream, requests))
                self._served[stream] = _Served(caller.token, outbox, reader)
                await asyncio.wait([reader])
                writer.cancel()
        finally:
            if self._served.pop(stream, None):
                self.ads.close(stream)
            self.journal.stream_closed(number, stream.node)
            self._wake()
        if reader.cancelled():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the bearer token is valid no longer")
        elif broken := reader.result():
            await self._refuse(context, "xds-stream", broken)

    async def _read(self, number: int, stream: Stream, requests: AsyncIterator[Request]) -> ProtocolError | None:
        async for request in requests:
            self.journal.request(number, request)
            try:
                self._send(stream, stream.receive(request))
            except ProtocolError as error:
                return error
            for nack in stream.nacks:
                self._refused(nack)
            stream.nacks.clear()
            self._wake()
        return None

    async def _write(self, number: int, outbox: asyncio.Queue[Response], context: Any) -> None:
        while True:
            response = await outbox.get()
            self.journal.response(number, response)
            await context.write(response)

    async def create_certificate(self, request: IstioCertificateRequest, context: Any) -> IstioCertificateResponse:
        """``IstioCertificateService.CreateCertificate``."""
        caller = await self._authenticate(context)
        self.journal.certificate_request(caller.client, context.peer(), caller.metadata, request)
        try:
            identity, chain = self.authority.create(request, self.now(), caller.client)
        except ProtocolError as error:
            await self._refuse(context, "ca", error)
            raise
        self.journal.certificate_issued(str(identity), chain)
        self._tell({"event": "issued", "identity": str(identity), "client": caller.client})
        self._wake()
        return _CERTIFICATE_RESPONSE(cert_chain=chain)

    async def _authenticate(self, context: Any) -> _Caller:
        metadata = dict(context.invocation_metadata())
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self._clients:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid bearer token")
        return _Caller(token, self._clients[token], metadata)

    async def _refuse(self, context: Any, what: str, error: ProtocolError) -> None:
        self.journal.refused(what, str(error))
        await context.abort(_STATUS[error.code or grpc.StatusCode.UNKNOWN.value[0]], str(error))

    def _send(self, stream: Stream, responses: list[Response]) -> None:
        for response in responses:
            self._served[stream].outbox.put_nowait(response)

    def _send_all(self, responses: list[tuple[Stream, list[Response]]]) -> None:
        for stream, some in responses:
            self._send(stream, some)

    def _refused(self, nack: Nack) -> None:
        refused = (nack.type_url, nack.version)
        push = self._push
        if push and push.served.of(nack.client).version(nack.type_url) == nack.version:
            self._refused_before.add(refused)
            if push.nack is None:
                push.nack = nack
                self._go_back(push)
        elif refused not in self._refused_before:
            self.unexpected.append(nack)
            self._tell({"event": "nack", **_spoken_nack(nack)})

    def _go_back(self, push: _Push) -> None:
        if push.goes_back:
            self.journal.rolled_back()
            self._send_all(self.ads.roll_back())

    # --- towards the lab ---

    async def _operate(self, message: Mapping[str, Any]) -> None:
        answer: Mapping[str, object]
        try:
            answer = await self._do(read(REQUESTS, message))
        except Exception as error:  # as netd: a request that makes no sense is answered as one that fails
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._tell({"id": message.get("id"), **answer})

    async def _do(self, request: PlaneRequest) -> Pushed | Status | StreamsEnded | CaMode:
        match request:
            case Push():
                return await self.set(request)
            case ReadStatus():
                return self.status()
            case SetClients():
                return self.set_clients(request.clients)
            case SetCa():
                return self.set_ca(request.mode, request.ca)

    async def set(self, request: Push) -> Pushed:
        """Replace what is served; wait for the barrier. A push that is still waiting has its answer now."""
        push = self._begin(request)
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._until(lambda: push.superseded or self._is_over(push))
        except TimeoutError:
            pass
        finally:
            if self._push is push:
                self._push = None
        return self._answer(push)

    def _begin(self, request: Push) -> _Push:
        served = _views(request.resources, request.views)
        if request.fallback is not None:
            self.ads.accepted = _views(request.fallback, request.fallback_views)
        if self._push:
            self._push.superseded = True
        self._push = push = _Push(
            served,
            clients=list(request.barrier),
            identities=list(request.certificates),
            goes_back=request.after_nack == "resend",
        )
        self.journal.pushed(request.resources)
        self._send_all(self.ads.publish(served))
        self._configured.set()
        self._wake()
        return push

    def _is_over(self, push: _Push) -> bool:
        if push.nack:
            return not (push.goes_back and self.ads.lagging(push.clients))
        return not (self.ads.lagging(push.clients) or self._uncertified(push.identities))

    def _answer(self, push: _Push) -> Pushed:
        lags = [_spoken_lag(lag) for lag in self.ads.lagging(push.clients)]
        if push.nack:
            behind = lags if push.goes_back else []
            return Refused(nack=_spoken_nack(push.nack), went_back=push.goes_back, behind=behind)
        if push.superseded:
            return Superseded(superseded=True)
        if not self._is_over(push):
            return Late(timeout=lags, certificates=self._uncertified(push.identities))
        self.ads.accept()
        self.journal.accepted()
        return Acknowledged(
            acknowledged={
                client: {
                    type_url: push.served.of(client).version(type_url) for type_url in push.served.types_of(client)
                }
                for client in push.clients
            }
        )

    def status(self) -> Status:
        """What there is to see: streams, versions, identities, NACKs."""
        return Status(
            clients=sorted(self._clients.values()),
            streams=[
                StreamStatus(client=stream.client, node=stream.node, acknowledged=stream.acknowledged)
                for stream in self.ads.streams
            ],
            versions=dict(self.ads.served.common.versions),
            issued=dict(self.authority.issued),
            unexpected=[_spoken_nack(nack) for nack in self.unexpected],
            shared_keys=self.authority.shared_keys,
        )

    def set_clients(self, clients: Mapping[str, str]) -> StreamsEnded:
        """Know these tokens and no others; the streams of a token that is not whose it was end."""
        if not all(token and isinstance(client, str) and client for token, client in clients.items()):
            raise ValueError("clients are a mapping of bearer token to instance, and neither may be empty")
        self._clients = dict(clients)
        gone = [stream for stream, served in self._served.items() if clients.get(served.token) != stream.client]
        for stream in gone:
            self._served.pop(stream).reader.cancel()
            self.ads.close(stream)
        self._wake()
        return StreamsEnded(ended=sorted(stream.client for stream in gone))

    def set_ca(self, mode: str | None, ca: Mapping[str, str] | None) -> CaMode:
        """Let the CA sign (``ok``) or refuse everyone (``refuse``), from now on with the issuer of ``ca`` where given.

        What the control plane itself shows to its clients stays as it is.
        """
        if mode not in (None, "ok", "refuse"):
            raise ValueError(f"no CA mode {mode!r}; there are ok, refuse")
        if ca is not None:
            self.authority.issuer = Issuer.from_pem(ca)
        if mode is not None:
            self.authority.refuses = mode == "refuse"
        return CaMode(mode="refuse" if self.authority.refuses else "ok")

    def _uncertified(self, identities: Sequence[str]) -> list[str]:
        return [identity for identity in identities if identity not in self.authority.issued]

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self._happened.wait()

    def _wake(self) -> None:
        """Let those who wait look again."""
        self._happened.set()
        self._happened = asyncio.Event()

    def _record(self, entry: Entry) -> None:
        if self.config.record:
            self._tell({"event": "conversation", **entry})

    def _tell(self, answer: dict[str, Any]) -> None:
        """Send to the lab, once it has room: a lab that does not listen for a while must not stop the mesh."""
        try:
            self.channel.send(answer)
        except ChannelClosedError:
            self.stop()


def _views(common: Resources, own: Mapping[str, Resources]) -> Views:
    return Views(_snapshot(common), {InstanceId.parse(name): _snapshot(view) for name, view in own.items()})


def _snapshot(encoded: Resources) -> Snapshot:
    return Snapshot.of(
        {
            type_url: {name: base64.b64decode(body) for name, body in named.items()}
            for type_url, named in encoded.items()
        }
    )


def _spoken_nack(nack: Nack) -> NackSpoken:
    return NackSpoken(
        client=nack.client, node=nack.node, type_url=nack.type_url, version=nack.version, detail=nack.detail
    )


def _spoken_lag(lag: Lag) -> LagSpoken:
    return LagSpoken(client=lag.client, node=lag.node, type_url=lag.type_url, version=lag.version)
