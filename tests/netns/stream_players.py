"""Plays ``drawn_streams``: both ends of every connection, with sockets of its own in the pods, all at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drawn_streams import CHANGE_S, END_S, FIRST_PORT, SERVICE_PORTS, Half, Script, Seen, content

from meshlab.model import Call
from meshlab.plan.netns import pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

SERVER = "shop/far"
SERVICE = "streams"
LINGERS_S = 8.0
"""How long after ``END_S`` the last bytes may take on a busy machine."""
_READ_BYTES = 1 << 16
_ASKED_PORT = 7000
_STAND_IN = f"""
import socket
listeners = [
    socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    for port in range({FIRST_PORT}, {FIRST_PORT + SERVICE_PORTS})
]
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.bind(("127.0.0.1", {_ASKED_PORT}))
_, whom = asked.recvfrom(1)
for listener in listeners:
    listener.close()
asked.sendto(b".", whom)
asked.recv(1)
"""
"""Listens where the service leads until the lab is ready, which waits for it, and makes room when it is asked to."""
LAB = f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: streams}}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {{node: node-1, serviceAccount: client}}
    shop/other: {{node: node-1, serviceAccount: other}}
    shop/far:
      node: node-2
      serviceAccount: server
      labels: {{app: server}}
      run: {json.dumps(["python3", "-c", _STAND_IN])}
    shop/echo: {{node: node-2, ports: [8080], serviceAccount: server}}
    out/plain: {{node: node-2, ports: [8080]}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {SERVICE}, namespace: shop}}
spec:
  selector: {{app: server}}
  ports: [{", ".join(f"{{name: p{port}, port: {port}}}" for port in range(FIRST_PORT, FIRST_PORT + SERVICE_PORTS))}]
"""


def changed(scripts: Sequence[Script]) -> str:
    """The policies after the change: others allow what was allowed, and some connections are denied."""
    ports = ", ".join(f'"{one.port}"' for one in scripts if one.denied)
    return f"""{_allowing("after")}---{DENIED_FROM_THE_FIRST}---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: change, namespace: shop}}
spec:
  action: DENY
  rules: [{{to: [{{operation: {{ports: [{ports}]}}}}]}}]
"""


DENIED_FROM_THE_FIRST = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: first, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}], to: [{operation: {ports: ["8080"]}}]}]
"""
"""In effect when the play begins; a call that it denies is made when nothing was configured for ``CHANGE_S``."""


def _allowing(name: str) -> str:
    """A policy that lets everything through."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{rules: [{{}}]}}
"""


@dataclass(frozen=True, slots=True)
class Played:
    seen: list[tuple[Seen, Seen]]
    """What came to each client and each server."""
    denied: Call


def play(lab: Lab, scripts: Sequence[Script]) -> Played:
    """Play all scripts at once, with the change in their middle."""
    lab.apply(f"{_allowing('before')}---{DENIED_FROM_THE_FIRST}")
    _make_room(lab)
    with contextlib.ExitStack() as stack:
        clients, listeners = ([stack.enter_context(sock) for sock in socks] for socks in _sockets(lab, scripts))
        return asyncio.run(_Stage(lab, scripts).run(clients, listeners))


def _make_room(lab: Lab) -> None:
    with lab.site.open_socket(pod_netns(SERVER), socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as sock:
        sock.settimeout(LINGERS_S)
        sock.connect(("127.0.0.1", _ASKED_PORT))
        sock.send(b"?")
        assert sock.recv(1) == b"."


def _sockets(lab: Lab, scripts: Sequence[Script]) -> Iterator[list[socket.socket]]:
    families = [socket.AF_INET6 if one.family == 6 else socket.AF_INET for one in scripts]
    for pods in ([one.source for one in scripts], [SERVER] * len(scripts)):
        yield lab.site.open_sockets(
            [
                (pod_netns(pod), family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                for pod, family in zip(pods, families, strict=True)
            ]
        )


class _Stage:
    def __init__(self, lab: Lab, scripts: Sequence[Script]) -> None:
        self._lab = lab
        self._scripts = scripts
        self._seen = [(Seen(), Seen()) for _ in scripts]

    async def run(self, clients: Sequence[socket.socket], listeners: Sequence[socket.socket]) -> Played:
        self._loop = asyncio.get_running_loop()
        for script, listener in zip(self._scripts, listeners, strict=True):
            listener.setblocking(False)
            listener.bind(("::" if script.family == 6 else "0.0.0.0", script.port))
            listener.listen()
        self._began = self._loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S + LINGERS_S), asyncio.TaskGroup() as group:
                change = group.create_task(self._change())
                for place, (client, listener) in enumerate(zip(clients, listeners, strict=True)):
                    group.create_task(self._client(place, client))
                    group.create_task(self._server(place, listener))
        for (_, at_server), listener in zip(self._seen, listeners, strict=True):
            at_server.more = _waiting(listener)
        return Played(self._seen, change.result())

    @property
    def _now_s(self) -> float:
        return self._loop.time() - self._began

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._now_s))

    async def _change(self) -> Call:
        await self._until(CHANGE_S)
        denied = await asyncio.to_thread(self._lab.pod("shop/client").http, "http://shop/echo:8080/")
        await asyncio.to_thread(self._lab.replace, changed(self._scripts))
        return denied

    async def _client(self, place: int, sock: socket.socket) -> None:
        script, (seen, _) = self._scripts[place], self._seen[place]
        sock.setblocking(False)
        await self._until(script.opens_s)
        [service] = self._lab.mesh.services
        address = (service if script.by_service else self._lab.pod(SERVER).pod).address(script.family)
        try:
            await self._loop.sock_connect(sock, (str(address), script.port))
        except OSError as error:
            self._ended(seen, f"refusal ({error})")
            return
        await self._both(sock, script.client, content(script, from_client=True), seen, script.reset_s)

    async def _server(self, place: int, listener: socket.socket) -> None:
        script, (_, seen) = self._scripts[place], self._seen[place]
        sock, _ = await self._loop.sock_accept(listener)
        with sock:
            await self._both(sock, script.server, content(script, from_client=False), seen, None)

    async def _both(self, sock: socket.socket, half: Half, said: bytes, seen: Seen, reset_s: float | None) -> None:
        """Write, read, and close when both sides have ended, or with a RST when the script says so."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write(sock, half, said)), group.create_task(self._read(sock, half, seen))]
            if reset_s is not None:
                await self._until(reset_s)
                for task in tasks:
                    task.cancel()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._ended(seen, "reset")
        sock.close()

    async def _write(self, sock: socket.socket, half: Half, said: bytes) -> None:
        at = 0
        with contextlib.suppress(OSError):  # who reads says how it ended
            for when, size in half.writes:
                await self._until(when)
                await self._loop.sock_sendall(sock, said[at : at + size])
                at += size
            await self._until(half.fin_s)
            sock.shutdown(socket.SHUT_WR)

    async def _read(self, sock: socket.socket, half: Half, seen: Seen) -> None:
        start, stop = half.unread
        try:
            while data := await self._loop.sock_recv(sock, _READ_BYTES):
                seen.came.append((len(seen.got), self._now_s))
                seen.got += data
                if start <= self._now_s < stop:
                    await self._until(stop)
        except OSError:
            self._ended(seen, "reset")
        else:
            self._ended(seen, "fin")

    def _ended(self, seen: Seen, how: str) -> None:
        if not seen.end:
            seen.end, seen.end_s = how, self._now_s


def _waiting(listener: socket.socket) -> int:
    """How many connections have come that nobody has accepted."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count
