"""The captures of one lab: a ring in every node's netns, from before the first pod's link is up, and beacons on links.

``catch_up`` follows what was recorded; a window keeps what comes between its ends. What neither needs is freed.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from meshlab.lab.programs import Peer
from meshlab.lab.site import Site, named
from meshlab.plan.network import FABRIC as FABRIC_NETNS
from meshlab.plan.network import node_netns
from meshlab.proofs.beacon import Beacons, closing, frames, opening
from meshlab.proofs.canary import RANDOM_BYTES, secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import FABRIC, MGMT, PROXY, Link, LinkId, Wiring, site
from meshlab.proofs.window import Window

_FLUSH_S = 2.0
"""How long the last beacons may take from the wire to us, before they count as not seen."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Rings that the recorder was asked for: one takes it 16 ms, most of which the kernel waits."""

    rings: Mapping[str, int]
    """Node -> number of the request."""
    capture: int


def open_rings(site: Site, recorder: Peer) -> Opening:
    """Ask for a ring in every node's netns, without waiting."""
    nodes = [node.name for node in site.topology.nodes]
    sockets = site.open_sockets([(node_netns(node), socket.AF_PACKET, socket.SOCK_RAW, 0) for node in nodes])
    with ExitStack() as stack:
        rings = {
            node: recorder.post("ring", [stack.enter_context(sock).fileno()], node=node)
            for node, sock in zip(nodes, sockets, strict=True)
        }
    return Opening(rings, recorder.post("capture"))


@dataclass(slots=True)
class Captures:
    """See the module. Thread-safe: one window at a time."""

    site: Site
    recorder: Peer
    follower: Follower
    rings: Mapping[str, int]
    """Node -> index of its ring."""
    memfd: int
    canary_secret: bytes
    _beacon_secret: bytes
    _read: int = 0
    _next_beacon: int = 1
    _drops_at_open: Mapping[str, int] = field(default_factory=dict)
    _beacons: Beacons | None = None
    _wiring: Wiring | None = None
    _senders: dict[str, socket.socket] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def start(cls, site: Site, recorder: Peer, opening: Opening, analyzer: str) -> Captures:
        """When the rings stand, which have been opening since ``open_rings``."""
        rings = {node: int(recorder.answer(number, 10)[0]["index"]) for node, number in opening.rings.items()}
        _, fds = recorder.answer(opening.capture, 10)
        calls, beacons = (secret_of(secrets.token_bytes(RANDOM_BYTES)) for _ in range(2))
        follower = named(analyzer)(calls)  # type: ignore[operator]
        return cls(site, recorder, follower, rings, fds[0], calls, beacons)

    def wiring(self) -> Wiring:
        """Which link is whose."""
        if self._wiring is None:
            self._wiring = self._wire()
        return self._wiring

    def _wire(self) -> Wiring:
        links: dict[LinkId, Link] = {}
        network = self.site.network
        for name, node in network.nodes.items():
            for index, what in (
                (node.fabric.index, FABRIC),
                (node.management.index + 1, MGMT),
                (node.proxy.index, PROXY),
            ):
                links[self.rings[name], index] = Link(name, index, what)
        sites = {}
        mesh = self.site.topology.mesh
        for pod in mesh.pods:
            index = network.pods[pod.key].host_end.index
            link = links[self.rings[pod.node], index] = Link(pod.node, index, pod.key)
            enrolled = mesh.is_enrolled(pod)
            sites[pod.key] = site(pod, link, enrolled=enrolled)
        return Wiring(links, sites)

    def open_window(self) -> None:
        """Begin to keep what is recorded, with beacons on every pod's link and every node's fabric link."""
        with self._lock:
            answer = self._position()
            self._follow(answer["position"])
            self.follower.open()
            self._drops_at_open = answer["drops"]
            self._beacons = self._send(opening(self._beacon_secret, self._links(), self._next_beacon))

    def close_window(self) -> Window:
        """Put the last beacons on the links, wait until they were recorded, and say what was seen."""
        with self._lock:
            assert self._beacons is not None, "no window is open"
            last = self._send(closing(self._beacon_secret, self._links(), self._next_beacon))
            answer = self._flush(last)
            drops = {node: count - self._drops_at_open.get(node, 0) for node, count in answer["drops"].items()}
            window = self.follower.close(self.wiring(), self._beacons.joined(last), drops)
            self._beacons = None
            self._release()
            return window

    def catch_up(self) -> None:
        """Follow and free what was recorded, if the recorder has said that it is half full."""
        with self._lock:
            if any(event["event"] == "backlog" for event in self.recorder.drain()):
                self.recorder.events.clear()
                self._follow(self._position()["position"])
                if self._beacons is None:
                    self._release()

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1

    def _links(self) -> list[LinkId]:
        network = self.site.network
        fabric = [(self.rings[name], node.fabric.index) for name, node in network.nodes.items()]
        pods = self.site.topology.mesh.pods
        return [*fabric, *((self.rings[pod.node], network.pods[pod.key].host_end.index) for pod in pods)]

    def _position(self, after: int = -1, timeout_s: float = 0.0) -> dict[str, Any]:
        return self.recorder.ask("position", after=after, timeout_s=timeout_s)[0]

    def _follow(self, position: int) -> bytes:
        """Feed everything up to ``position``; what was fed, for those who look for beacons in it."""
        data = os.pread(self.memfd, position - self._read, self._read)
        assert len(data) == position - self._read, "a memfd gives what was asked for"
        self._read = position
        if data:
            self.follower.feed(data)
        return data

    def _release(self) -> None:
        self.recorder.answer(self.recorder.post("release", before=self._read), 10)

    def _flush(self, last: Beacons) -> dict[str, Any]:
        waiting, deadline = last.last(), time.monotonic() + _FLUSH_S
        answer = self._position()
        while True:
            waiting = last.unheard(self._follow(answer["position"]), waiting)
            if not waiting or time.monotonic() > deadline:
                return answer
            answer = self._position(after=self._read, timeout_s=0.1)

    def _send(self, beacons: Beacons) -> Beacons:
        """From both ends of each link: a ring that loses only what arrives would pass otherwise."""
        self._next_beacon += len(beacons.expected)
        ends = self._ends()
        wanted = [ends[beacon.link][0 if beacon.outgoing else 1] for beacon in beacons.expected.values()]
        self._open_senders(sorted({netns for netns, _ in wanted}))
        for beacon, (netns, interface) in zip(beacons.expected.values(), wanted, strict=True):
            sender = self._senders[netns]
            for frame in frames(beacon, self._beacon_secret):
                sender.sendto(frame, (interface, 0))
        return beacons

    def _ends(self) -> dict[LinkId, tuple[tuple[str, str], tuple[str, str]]]:
        """Link -> netns and interface of the node's end, and of the other one."""
        network = self.site.network
        ends = {}
        for name, node in network.nodes.items():
            other = (FABRIC_NETNS, node.port.name)
            ends[self.rings[name], node.fabric.index] = ((node.netns, node.fabric.name), other)
        for pod in self.site.topology.mesh.pods:
            wires = network.pods[pod.key]
            ends[self.rings[pod.node], wires.host_end.index] = (
                (wires.node_netns, wires.host_end.name),
                (wires.netns, wires.eth0.name),
            )
        return ends

    def _open_senders(self, netns: Sequence[str]) -> None:
        missing = [key for key in netns if key not in self._senders]
        sockets = self.site.open_sockets([(key, socket.AF_PACKET, socket.SOCK_RAW, 0) for key in missing])
        self._senders.update(zip(missing, sockets, strict=True))
