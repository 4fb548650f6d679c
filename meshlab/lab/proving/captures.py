"""The captures of one lab: a ring in every node's netns, from before the first pod's link is up, and beacons on links.

A window keeps what comes between its ends. What is recorded outside windows is followed by a thread and freed, so that
the lab may live as long as it likes. The thread begins at a quarter of the recorder's bound, and follows a gigabyte of
bulk in about a second, or 100,000 packets. Before each batch of calls ``keep_up`` makes room in the recorder, however
busy the machine is.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from meshlab.errors import LabError, LabLostError, UsageError
from meshlab.kernel.conversation import Number
from meshlab.kernel.messages import Done
from meshlab.kernel.recorder_requests import OpenCapture, OpenRing, Position, Recorded, ReleaseBlocks, RingIndex
from meshlab.lab.running.programs import Peer
from meshlab.lab.site import Site, enrolled_keys, named
from meshlab.model import Pod
from meshlab.plan.netns import CONTROL_PLANE, NetnsKey, node_netns, pod_netns
from meshlab.plan.netns import FABRIC as FABRIC_NETNS
from meshlab.proofs.beacon import Beacons, closing, frames, opening
from meshlab.proofs.canary import RANDOM_BYTES, secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import FABRIC, MGMT, PROXY, Link, LinkId, Wiring, site
from meshlab.proofs.packets import RECORD
from meshlab.proofs.window import Window

_FLUSH_S = 20.0
"""How long the last beacons may take from the wire to us, before they count as not seen."""
_SILENCE_S = 0.1
_SILENCES = 20
"""After so many times that much in which nothing at all was recorded they are not waited for."""
_LOOK_S = 0.05
_FOLLOW_AT_BYTES = 64 << 20
_STRETCH_BYTES = 8 << 20
"""How much is read at once outside windows."""
_NEVER_NS = 1 << 63
_BROKEN = "the recording of this lab is broken: another than its recorder has written there"

End = tuple[NetnsKey, str]
"""A netns by its key, and an interface in it."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Rings that the recorder was asked for: one takes it 16 ms, most of which the kernel waits."""

    rings: Mapping[str, Number[RingIndex]]
    """Node -> number of the request."""
    capture: Number[Done]


def open_rings(site: Site, recorder: Peer) -> Opening:
    """Ask for a ring in every node's netns, without waiting."""
    nodes = [node.name for node in site.topology.nodes]
    sockets = site.open_sockets([(node_netns(node), socket.AF_PACKET, socket.SOCK_RAW, 0) for node in nodes])
    with ExitStack() as stack:
        rings = {
            node: recorder.post(OpenRing(node), [stack.enter_context(sock).fileno()])
            for node, sock in zip(nodes, sockets, strict=True)
        }
    return Opening(rings, recorder.post(OpenCapture()))


@dataclass(slots=True)
class Captures:
    """See the module. Thread-safe; one window at a time."""

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
    _drops: Mapping[str, int] = field(default_factory=dict)
    """By node, as of the last look outside a window."""
    _beacons: Beacons | None = None
    _wirings: list[tuple[int, Wiring]] = field(default_factory=list)
    """Since when, and what: of the open window each, else the latest."""
    _wired_for: object = None
    """What the latest was made from."""
    _senders: dict[NetnsKey, socket.socket] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def start(cls, site: Site, recorder: Peer, opening: Opening, analyzer: str) -> Captures:
        """When the rings stand, which have been opening since ``open_rings``."""
        rings = {node: recorder.answer(number, 10)[0]["index"] for node, number in opening.rings.items()}
        _, fds = recorder.answer(opening.capture, 10)
        calls, beacons = (secret_of(secrets.token_bytes(RANDOM_BYTES)) for _ in range(2))
        follower = named(analyzer)(calls)  # type: ignore[operator]
        captures = cls(site, recorder, follower, rings, fds[0], calls, beacons)
        captures.rewired(site.mesh.pods, enrolled_keys(site.mesh))
        captures._thread = threading.Thread(target=captures._follow_along, name="meshlab-captures", daemon=True)
        captures._thread.start()
        return captures

    def wirings(self) -> list[tuple[int, int, Wiring]]:
        """Which link was whose from when on, and until when: of the open window each, else the latest."""
        with self._lock:
            ends = [since_ns for since_ns, _ in self._wirings[1:]]
            spans = zip(self._wirings, [*ends, _NEVER_NS], strict=True)
            return [(since_ns, until_ns, wiring) for (since_ns, wiring), until_ns in spans]

    def wiring(self, at_ns: int | None = None) -> Wiring:
        """Which link is whose: at a moment of CLOCK_REALTIME; now, if not given."""
        with self._lock:
            if at_ns is None:
                return self._wirings[-1][1]
            known = [wiring for since_ns, wiring in self._wirings if since_ns <= at_ns]
            return known[-1] if known else self._wirings[0][1]

    # --- a lab that changes ------------------------------------------------------------------------------------------

    def joined(self, pods: Sequence[Pod]) -> None:
        """The links of these pods are up. An open window gets its beacons on them."""
        with self._lock:
            if self._beacons is not None:
                links = [self._link_of(pod.key) for pod in pods]
                self._beacons = self._beacons.joined(self._send(opening(self._beacon_secret, links, self._next_beacon)))

    def leaving(self, pods: Sequence[Pod]) -> None:
        """The links of these pods are about to go: an open window gets its last beacons on them."""
        with self._lock:
            there = [pod for pod in pods if pod.key in self.site.pods]
            if self._beacons is not None:
                links = [self._link_of(pod.key) for pod in there]
                self._beacons = self._beacons.joined(self._send(closing(self._beacon_secret, links, self._next_beacon)))
            for pod in there:
                if (sender := self._senders.pop(pod_netns(pod.key), None)) is not None:
                    sender.close()

    def rewired(self, pods: Sequence[Pod], enrolled: frozenset[str]) -> None:
        """Pods or their membership have changed: what packets carry from now on is read by this.

        Args:
            enrolled: keys of the pods that are in the mesh for certain: while one enters or leaves it, it is not.
        """
        with self._lock:
            wired_for = tuple(pods), enrolled, tuple(self.site.pods.values()), len(self.site.netns)
            if self._wired_for == wired_for:
                return
            self._wired_for = wired_for
            if self._beacons is None:
                self._wirings = self._wirings[-1:]
            self._wirings.append((time.time_ns(), self._wire(pods, enrolled)))

    def _link_of(self, pod: str) -> LinkId:
        network = self.site.pods[pod]
        return self.rings[network.node], network.host_end.index

    def _wire(self, pods: Sequence[Pod], members: frozenset[str]) -> Wiring:
        """Links that have gone are kept: what was recorded on them is still in the window."""
        links = dict(self._wirings[-1][1].links) if self._wirings else {}
        for name, node in self.site.network.nodes.items():
            links[self.rings[name], node.fabric.index] = Link(name, node.fabric.index, FABRIC)
            links[self.rings[name], node.mgmt.index] = Link(name, node.mgmt.index, MGMT)
            for proxy in node.proxies:
                if proxy.netns in self.site.netns:
                    links[self.rings[name], proxy.end.index] = Link(name, proxy.end.index, PROXY)
        now_ns = time.time_ns()
        before = self._wirings[-1][1].sites if self._wirings else {}
        sites = {}
        for pod in pods:
            if (network := self.site.pods.get(pod.key)) is not None:
                index = network.host_end.index
                link = links[self.rings[pod.node], index] = Link(pod.node, index, pod.key)
                enrolled, known = pod.key in members or bool(pod.gateway), before.get(pod.key)
                stays = known is not None and (known.link, known.enrolled) == (link, enrolled)
                since_ns = known.since_ns if known is not None and stays else now_ns
                sites[pod.key] = site(pod, link, enrolled=enrolled, since_ns=since_ns)
        return Wiring(links, sites)

    # --- windows -----------------------------------------------------------------------------------------------------

    def open_window(self) -> None:
        """Begin to keep what is recorded, with beacons at both ends of every link.

        Raises:
            UsageError: a window of this lab is open.
        """
        with self._lock:
            if self._beacons is not None:
                raise UsageError(
                    "a capture of this lab is open already: use that one. It can be proven and looked at while it is"
                    " open, and tells calls apart by their canaries and times"
                )
            self._catch_up()
            self.follower.open()
            try:
                self._beacons = self._send(opening(self._beacon_secret, self._links(), self._next_beacon))
            except BaseException:
                self.follower.abandon()
                raise

    def look(self) -> Window:
        """What the open window has seen until now; it stays open. The beacons of its end are put on the links."""
        with self._lock:
            return self.follower.look(self.wiring(), *self._bring_home())

    def close_window(self) -> Window:
        """Put the last beacons on the links, wait until they were recorded, and say what was seen."""
        with self._lock:
            try:
                window = self.follower.close(self.wiring(), *self._bring_home())
            except BaseException:
                self.follower.abandon()
                raise
            finally:
                self._beacons = None
            self._release()
            return window

    def _bring_home(self) -> tuple[Beacons, Mapping[str, int]]:
        """Take in everything until now, with beacons behind it.

        Returns the window's beacons, and by node how many packets were lost in it.
        """
        if self._beacons is None:
            raise LabError("this capture is open no more, and has no end: the lab was lost, or it was interrupted")
        self._follow(self._position()["position"])  # first: it may take longer than beacons may
        last = self._send(closing(self._beacon_secret, self._links(), self._next_beacon))
        self._beacons = self._beacons.joined(last)
        answer = self._flush(last)
        return self._beacons, {node: count - self._drops.get(node, 0) for node, count in answer["drops"].items()}

    # --- outside windows ---------------------------------------------------------------------------------------------

    def keep_up(self) -> None:
        """Follow and free what was recorded, if that is much and no window keeps it.

        A file in memory says its size without the recorder, so asking costs nothing.
        """
        if not self._closing.is_set() and os.fstat(self.memfd).st_size - self._read > _FOLLOW_AT_BYTES:
            with self._lock:
                if self._beacons is None:
                    self._catch_up()

    def _catch_up(self) -> None:
        answer = self._position()
        for data in self._stretches(answer["position"]):
            self._feed(data)
            self._release()
        if any(count > self._drops.get(node, 0) for node, count in answer["drops"].items()):
            self.follower.lost()
        self._drops = answer["drops"]

    def _stretches(self, position: int) -> Iterator[bytes]:
        """What was recorded until ``position``, some whole records at a time."""
        while self._read < position and not self._closing.is_set():
            data = os.pread(self.memfd, min(position - self._read, _STRETCH_BYTES), self._read)
            if not (whole := _whole_records(data)):
                raise LabError(_BROKEN)
            self._read += whole
            yield data[:whole]

    def _follow_along(self) -> None:
        """The thread."""
        while not self._closing.wait(_LOOK_S):
            try:
                self.keep_up()
            except LabLostError:
                return  # the audit says why
            except LabError:
                continue  # the recorder hangs; who opens a window hears of it

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for sender in self._senders.values():
            sender.close()
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1

    # --- beacons and positions ---------------------------------------------------------------------------------------

    def _links(self) -> list[LinkId]:
        return list(self._ends())

    def _position(self, after: int = -1, timeout_s: float = 0.0) -> Recorded:
        return self.recorder.ask(Position(after, timeout_s))[0]

    def _follow(self, position: int) -> bytes:
        """Feed everything up to ``position``; what was fed, for those who look for beacons in it."""
        data = os.pread(self.memfd, position - self._read, self._read)
        assert len(data) == position - self._read, "a memfd gives what was asked for"
        self._read = position
        if data:
            self._feed(data)
        return data

    def _feed(self, data: bytes) -> None:
        try:
            self.follower.feed(data)
        except ValueError as error:
            raise LabError(f"{_BROKEN} ({error})") from error

    def _release(self) -> None:
        self.recorder.ask(ReleaseBlocks(self._read))

    def _flush(self, last: Beacons) -> Recorded:
        waiting, deadline, silences = last.last(), time.monotonic() + _FLUSH_S, 0
        while True:
            answer = self._position(after=self._read, timeout_s=_SILENCE_S)
            new = self._follow(answer["position"])
            waiting = last.unheard(new, waiting)
            silences = 0 if new else silences + 1
            if not waiting or silences == _SILENCES or time.monotonic() > deadline:
                return answer

    def _send(self, beacons: Beacons) -> Beacons:
        """From both ends of each link: a ring that loses only what arrives would pass otherwise."""
        self._next_beacon += len(beacons.expected)
        ends = self._ends()
        wanted = [ends[beacon.link][0 if beacon.outgoing else 1] for beacon in beacons.expected.values()]
        self._open_senders(sorted({netns for netns, _ in wanted}))
        for beacon, (netns, interface) in zip(beacons.expected.values(), wanted, strict=True):
            sender = self._senders[netns]
            for frame in frames(beacon, self._beacon_secret):
                _put(sender, frame, interface)
        return beacons

    def _ends(self) -> dict[LinkId, tuple[End, End]]:
        """Of every link of every node: the node's end, and the other one."""
        ends: dict[LinkId, tuple[End, End]] = {}
        for name, node in self.site.network.nodes.items():
            ring = self.rings[name]
            ends[ring, node.fabric.index] = (node.netns, node.fabric.name), (FABRIC_NETNS, node.port.name)
            ends[ring, node.mgmt.index] = (node.netns, node.mgmt.name), (CONTROL_PLANE, node.management.name)
            for proxy in node.proxies:
                if proxy.netns in self.site.netns:
                    ends[ring, proxy.end.index] = (node.netns, proxy.end.name), (proxy.netns, proxy.eth0.name)
        for wires in self.site.pods.values():
            ends[self.rings[wires.node], wires.host_end.index] = (
                (wires.node_netns, wires.host_end.name),
                (wires.netns, wires.eth0.name),
            )
        return ends

    def _open_senders(self, netns: Sequence[NetnsKey]) -> None:
        missing = [key for key in netns if key not in self._senders]
        sockets = self.site.open_sockets([(key, socket.AF_PACKET, socket.SOCK_RAW, 0) for key in missing])
        self._senders.update(zip(missing, sockets, strict=True))


def _put(sender: socket.socket, frame: bytes, interface: str) -> None:
    """On a link that is down, or is no more, nothing is seen: its beacons are missing then."""
    try:
        sender.sendto(frame, (interface, 0))
    except OSError as error:
        if error.errno not in {errno.ENETDOWN, errno.ENODEV, errno.ENXIO}:
            raise


def _whole_records(data: bytes) -> int:
    """How many bytes of ``data`` are whole records."""
    at = 0
    while at + RECORD.size <= len(data):
        end = at + RECORD.size + RECORD.unpack_from(data, at)[2]
        if end > len(data):
            break
        at = end
    return at
