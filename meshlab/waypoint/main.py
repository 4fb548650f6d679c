"""The program: ``main(config, fds)`` for a lab. It listens on 15008 of its own pod, and its control plane is the lab's.

Order at the start: its certificate, its listener, then the manifests; so what it acknowledges it serves.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from meshlab.errors import ProtocolError
from meshlab.model import HttpRequest, Mesh, PodPort, Service, ServicePort, SpiffeId
from meshlab.model.ambient import HBONE_PORT
from meshlab.oracle import tcp
from meshlab.oracle.http import DENIED, UNAVAILABLE, Came, Forwarded, Share, authorize, shares
from meshlab.protocols.hbone import Refusal, Target
from meshlab.protocols.messages import MANIFESTS_TYPE
from meshlab.protocols.xds import DeltaClient, Node, Update
from meshlab.proxykit import sockets
from meshlab.proxykit.ca_client import CaClient
from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.config import Config
from meshlab.proxykit.listener import Listener
from meshlab.proxykit.pool import TRIES, ClientTunnel, Key, Pool, UntouchedError, connect_client
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import Tls, in_trust_domain, one_of
from meshlab.proxykit.xds_client import XdsClient
from meshlab.topology import load
from meshlab.waypoint.heads import draw
from meshlab.waypoint.http import HttpStream
from meshlab.waypoint.serving import Asked, Client, Known
from meshlab.waypoint.tunnel import ServerTunnel, Way

_BACKLOG = 1024


class _Client(DeltaClient):
    def __init__(self, node: Node) -> None:
        super().__init__(node, (MANIFESTS_TYPE,))


class _Stream(XdsClient):
    client_class = _Client


class Waypoint:
    """One waypoint, from its environment to SIGTERM."""

    stream_class: ClassVar[type[HttpStream]] = HttpStream

    def __init__(self, config: Config, identity: SpiffeId) -> None:
        self.tasks = Tasks()
        self.known = Known(f"{config.pod_namespace}/{config.pod_name}")
        self._identity = identity
        self._config = config
        self.rng = random.Random()  # noqa: S311  # endpoints, no secrets
        self._ca = CaClient(config)
        self._certificates = Certificates(self._ca.issue, time.time, asyncio.sleep, self.rng, self.tasks)
        self._xds = _Stream(config, self._apply)
        self._texts: dict[str, str] = {}
        self._pool = Pool(self.connect_peer)
        self._tunnels: set[ServerTunnel] = set()

    async def run(self) -> None:
        """Serve until SIGTERM."""
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await self._certificates.get(self._identity)
        listener = Listener(_listening(), self._accept)
        self.tasks.spawn(self._xds.run())
        await stopped.wait()
        listener.close()
        await self.tasks.cancel()
        self._pool.close()
        await self._xds.close()
        await self._ca.close()

    def _apply(self, update: Update) -> Mapping[str, str]:
        for name in update.removed:
            self._texts.pop(name, None)
        self._texts.update((name, message.value) for name, message in update.resources.items())
        if "manifests" in self._texts:
            self.known = Known(
                self.known.key,
                load(self._texts["manifests"], "manifests").mesh,
                load(self._texts["also"], "also").mesh if "also" in self._texts else None,
                frozenset(self._texts.get("unhealthy", "").split()),
            )
        return {}

    # --- in --------------------------------------------------------------------------------------------------------

    def _accept(self) -> ServerTunnel:
        tunnel = ServerTunnel(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel

    async def secure(self) -> Tls:
        credentials = await self._certificates.get(self._identity)
        check = in_trust_domain(self._identity.trust_domain)
        return Tls(credentials.server_context, server_side=True, check_peer=check)

    def choose(self, authority: str, client: Client) -> Way | Refusal:
        """Where a CONNECT leads. Where requests are read, they are judged one by one; else it is judged as a whole."""
        asked = self.known.asked(authority)
        if isinstance(asked, Refusal):
            return asked
        if asked.is_http:
            return Way(asked, Target(asked.address, asked.number))
        decision = authorize(asked.mesh, asked.waypoint, asked.service, asked.connection(client), None)
        if not decision.allowed:
            return Refusal(DENIED, decision.rule)
        if asked.service is None or asked.port is None:
            assert asked.pod is not None
            return Way(asked, *self.pick([PodPort(asked.pod.key, asked.number)], client))
        share = draw(self.connections(asked.mesh, asked.service, asked.port), self.rng)
        return Way(asked, *self.pick(share.pods, client)) if share.pods else Refusal(UNAVAILABLE, share.rule)

    def connections(self, mesh: Mesh, service: Service, port: ServicePort) -> Sequence[tcp.Share]:
        return tcp.shares(mesh, service, port, sorted(self.known.unhealthy))

    def pick(self, endpoints: Sequence[PodPort], client: Client) -> tuple[Target, PodPort]:
        endpoint = self.rng.choice(endpoints)
        pod = self.known.mesh.pod(endpoint.pod)
        return Target(pod.ipv4 if client.address.version == 4 else pod.ipv6, endpoint.port), endpoint

    # --- requests --------------------------------------------------------------------------------------------------

    async def speak(self, authority: str, asked: Asked, client: Client, half: Half) -> None:
        """Serve the requests of a stream, each by what is in effect when it comes.

        A waypoint that no longer serves the address goes on as it was asked for: the connection came before.
        """

        def judge(request: HttpRequest) -> Share:
            now = self.known.asked(authority)
            return self.judge(asked if isinstance(now, Refusal) else now, client, request)

        async def reach(pods: Sequence[PodPort]) -> Half:
            try:
                target, endpoint = self.pick(pods, client)
            except KeyError as error:
                raise ProtocolError("the endpoint was deleted while its request was delayed") from error
            return await self.connect(target, endpoint)

        await self.stream_class(half, self.tasks, judge, reach).serve()

    def judge(self, asked: Asked, client: Client, request: HttpRequest) -> Share:
        assert asked.service is not None, "requests are read at the ports of Services"
        assert asked.port is not None
        came = Came(asked.waypoint, asked.service, asked.port, asked.connection(client), request, time.time())
        share = draw(self.shares(asked.mesh, came), self.rng)
        if isinstance(outcome := share.outcome, Forwarded) and outcome.copies:
            copies = tuple(copy for copy in outcome.copies if self.rng.random() < copy.chance)
            return replace(share, outcome=replace(outcome, copies=copies))
        return share

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return shares(mesh, came, sorted(self.known.unhealthy))

    # --- out -------------------------------------------------------------------------------------------------------

    async def connect(self, target: Target, endpoint: PodPort) -> Half:
        """Reach an endpoint: in a tunnel where it is in the mesh, else in plaintext."""
        mesh = self.known.mesh
        pod, own = mesh.pod(endpoint.pod), self.known.own
        assert own is not None, "an endpoint was chosen from what was sent"
        if not mesh.is_enrolled(pod):
            return await connect_plain(target)
        peers = frozenset({str(pod.identity(mesh.trust_domain))})
        source = own.ipv4 if target.address.version == 4 else own.ipv6
        key = Key(self._identity, source, peers, Target(target.address, HBONE_PORT))
        for tries_left in reversed(range(TRIES)):
            half = Half()
            tunnel = await self.tunnel(key)
            try:
                await tunnel.open(_text(target), {}, half)
                break
            except UntouchedError:  # the peer is being replaced, and the next connection is its successor's
                if not tries_left:
                    raise
        self._log("outbound", Target(source, 0), str(self._identity), _text(target), str(tunnel.tls.peer or ""))
        return half

    async def tunnel(self, key: Key) -> ClientTunnel:
        """One with room for a stream."""
        return await self._pool.get(key)

    async def connect_peer(self, key: Key) -> ClientTunnel:
        credentials = await self._certificates.get(key.identity)
        tls = Tls(credentials.client_context, server_side=False, check_peer=one_of(key.peers))
        return await connect_client(await _dial(key.destination), tls, sockets.CONNECT_TIMEOUT_S)

    # --- what it says ----------------------------------------------------------------------------------------------

    def opened(self, authority: str, source: Target, peer: str) -> None:
        self._log("inbound", source, peer, authority, str(self._identity))

    def _log(self, direction: str, source: Target, client: str, authority: str, server: str) -> None:
        """One line for each connection, with a ztunnel's field names."""
        line = {
            "level": "debug",
            "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "scope": "access",
            "message": "connection opened",
            "src.addr": _text(source),
            "src.identity": client,
            "dst.hbone_addr": authority,
            "dst.identity": server,
            "direction": direction,
        }
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def _listening() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", HBONE_PORT))
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


async def _dial(target: Target) -> socket.socket:
    family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(sockets.CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (str(target.address), target.port))
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_plain(target: Target) -> Half:
    _, half = await asyncio.get_running_loop().create_connection(Half, sock=await _dial(target))
    return half


def _text(target: Target) -> str:
    return f"[{target.address}]:{target.port}" if target.address.version == 6 else f"{target.address}:{target.port}"


def run(config: Mapping[str, Any], fds: Mapping[str, int], program: type[Waypoint] = Waypoint) -> None:
    """A waypoint, from its environment to SIGTERM."""
    env = config["env"]

    async def serve() -> None:
        await program(Config.from_env(env), SpiffeId.parse(env["WORKLOAD_IDENTITY"])).run()

    asyncio.run(serve())


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """The reference waypoint."""
    run(config, fds)
