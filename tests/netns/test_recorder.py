"""The recorder on a real veth: whole windows, bursts, drops that are counted, and output that is always drained.

A child owns two netns, a node's and a pod's, and hands sockets out; the recorder is a process of its own, as in a lab.
This file is also the child's program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

from meshlab.kernel import namespaces as ns
from meshlab.kernel.channel import Channel, ChannelClosedError, pair
from meshlab.kernel.netlink import NETLINK_ROUTE, RouteSocket
from meshlab.plan.changes import AddressAssign, Change, End, LinkUp, Route, Silence, Veth
from meshlab.plan.netns import netns_key
from meshlab.proofs import beacon
from meshlab.proofs.canary import canary, secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.packets import recorded
from meshlab.proofs.window import Window

# --- the child -------------------------------------------------------------------------------------------------------


def serve(channel: Channel) -> None:
    """Own one netns for each key, and open sockets in them."""
    if os.geteuid():
        uid, gid = os.geteuid(), os.getegid()
        ns.unshare(ns.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    made: dict[str, int] = {}
    while True:
        request, _ = channel.receive()
        key = request["netns"]
        if key not in made:
            ns.unshare(ns.CLONE_NEWNET)
            made[key] = ns.own_netns()
        ns.setns(made[key], ns.CLONE_NEWNET)
        if request["socket"] is None:
            channel.send({}, [made[key]])
        else:
            with socket.socket(*request["socket"]) as sock:
                channel.send({}, [sock.fileno()])


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        serve(Channel.from_fd(int(sys.argv[1])))
    sys.exit(0)


# --- a wire and a recorder -------------------------------------------------------------------------------------------

HOST, ETH0 = End("v-pod", 7), End("eth0", 8)
LINK = Link("node-1", HOST.index, "shop/client")
MAC = "02:00:00:00:00:07"
NODE4, POD4 = "192.168.0.1", "192.168.0.2"
SECRET = secret_of(bytes(range(8)))
BEACON_SECRET = secret_of(bytes(range(8, 16)))
WIRING = Wiring({(0, HOST.index): LINK}, {LINK.name: Site(LINK.name, LINK, frozenset(), enrolled=True)})


@dataclass
class Wire:
    """A node and a pod, joined by a veth."""

    channel: Channel
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def ask(self, netns: str, what: tuple[int, int, int] | None) -> int:
        self.channel.send({"netns": netns, "socket": what})
        _, (fd,) = self.channel.receive(timeout_s=20)
        return fd

    def socket(self, netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(fileno=self.ask(netns, (family, kind, protocol))))
        if family == socket.AF_INET:  # with a timeout Python waits for what MSG_DONTWAIT asks for
            sock.settimeout(20)
        return sock

    def build(self) -> None:
        netns = {key: self.ask(key, None) for key in ("node", "pod")}
        for fd in netns.values():
            self.stack.callback(os.close, fd)
        ends = {"node": (HOST, NODE4, POD4), "pod": (ETH0, POD4, NODE4)}
        veth = Veth(end=HOST, peer=ETH0, peer_netns=netns_key("pod"), mac=MAC)
        for key, (end, own, other) in ends.items():
            route = RouteSocket(self.socket(key, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE), key)
            first: list[Change] = [veth] if key == "node" else []
            route.apply([*first, Silence(end), LinkUp(end), AddressAssign(end, _ip(own))], netns)
            ends_route = Route(destination=ip_network(f"{other}/32"), end=end)
            route.apply([ends_route])
        for key, (end, _, _) in ends.items():
            route = RouteSocket(self.socket(key, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE), key)
            route.barrier(end)

    def put(self, some: beacon.Beacons) -> beacon.Beacons:
        """Beacons, from both ends."""
        senders = {
            True: (self.socket("node", socket.AF_PACKET, socket.SOCK_RAW), HOST),
            False: (self.socket("pod", socket.AF_PACKET, socket.SOCK_RAW), ETH0),
        }
        for one in some.expected.values():
            sender, end = senders[one.outgoing]
            for frame in beacon.frames(one, some.secret):
                sender.sendto(frame, (end.name, 0))
        return some

    def datagrams(self, count: int, payload: bytes) -> None:
        """From the pod to the node, where somebody takes them."""
        with self.socket("node", socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.bind((NODE4, 5000))
            sender = self.socket("pod", socket.AF_INET, socket.SOCK_DGRAM)
            for _ in range(count):
                sender.sendto(payload, (NODE4, 5000))


def _ip(text: str) -> Any:
    return ip_network(text).network_address


@dataclass
class Lab:
    """What the lab does with its recorder."""

    channel: Channel
    process: subprocess.Popen[bytes]
    fd: int = -1
    read: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, op: str, *fds: int, **more: Any) -> tuple[dict[str, Any], list[int]]:
        self.channel.send({"id": 1, "op": op, **more}, fds)
        while True:
            answer, received = self.channel.receive(timeout_s=30)
            if "event" not in answer:
                return answer, received
            self.events.append(answer)

    def begin(self, ring: socket.socket) -> None:
        assert self.ask("ring", ring.fileno(), node="node-1")[0]["index"] == 0
        ring.close()
        _, (self.fd,) = self.ask("capture")

    def next_bytes(self, timeout_s: float = 20) -> bytes:
        """What was recorded since, as soon as there is some."""
        answer, _ = self.ask("position", after=self.read, timeout_s=timeout_s)
        data = os.pread(self.fd, answer["position"] - self.read, self.read)
        self.read = answer["position"]
        return data

    def drops(self) -> Mapping[str, int]:
        return dict(self.ask("position")[0]["drops"])

    def packets(self, count: int) -> int:
        """How many were recorded, once there are ``count`` or no more come."""
        seen = 0
        while seen < count:
            data = self.next_bytes(timeout_s=2)
            if not data:
                break
            seen += sum(1 for _ in recorded(data))
        return seen


@pytest.fixture
def wire() -> Iterator[Wire]:
    ours, theirs = pair()
    argv = [sys.executable, __file__, str(theirs.fileno())]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], env=_ENVIRONMENT) as child:
        theirs.close()
        made = Wire(ours)
        try:
            made.build()
            yield made
        finally:
            made.stack.close()
            ours.close()
            child.wait(20)


@contextlib.contextmanager
def recording(entry: str = "meshlab.kernel.recorder:main", **config: Any) -> Iterator[Lab]:
    """A recorder, in a process of its own."""
    module, _, name = entry.partition(":")
    ours, theirs = pair()
    program = f"import json, sys; from {module} import {name} as main; main(*map(json.loads, sys.argv[1:]))"
    argv = [sys.executable, "-c", program, json.dumps(config), json.dumps({"control": theirs.fileno()})]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], env=_ENVIRONMENT) as process:
        theirs.close()
        lab = Lab(ours, process)
        try:
            yield lab
        finally:
            ours.close()
            if lab.fd >= 0:
                os.close(lab.fd)
            assert process.wait(20) == 0


_ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(sys.path)}


def ring_socket(wire: Wire) -> socket.socket:
    return wire.socket("node", socket.AF_PACKET, socket.SOCK_RAW)


def watched(wire: Wire, lab: Lab, payload: bytes) -> Window:
    """A whole window, as the lab makes one, around one TCP connection from the pod to the node."""
    follower = Follower(SECRET)
    follower.open()
    before = lab.drops()
    opening = wire.put(beacon.opening(BEACON_SECRET, [(0, HOST.index)], 1))
    server = wire.socket("node", socket.AF_INET, socket.SOCK_STREAM)
    server.bind((NODE4, 8080))
    server.listen()
    with wire.socket("pod", socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect((NODE4, 8080))
        accepted, _ = server.accept()
        with accepted:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            got = b"".join(iter(lambda: accepted.recv(1 << 16), b""))
    assert got == payload
    closing = wire.put(beacon.closing(BEACON_SECRET, [(0, HOST.index)], 100))
    waiting = closing.last()
    while waiting:
        data = lab.next_bytes(timeout_s=2)
        if not data:
            break
        follower.feed(data)
        waiting = closing.unheard(data, waiting)
    drops = {node: count - before[node] for node, count in lab.drops().items()}
    return follower.close(WIRING, opening.joined(closing), drops)


# --- promises --------------------------------------------------------------------------------------------------------


def test_a_window_sees_its_beacons_and_a_word_in_clear_in_a_stream_that_was_cut(wire: Wire) -> None:
    payload = bytes(70_000) + canary(SECRET, 42) + bytes(70_000)
    with recording() as lab:
        lab.begin(ring_socket(wire))
        window = watched(wire, lab, payload)
    assert (window.blind, window.missing) == ("", ())
    assert {(finding.number, finding.link, finding.outgoing) for finding in window.findings} == {(42, LINK, False)}
    sent = [flow for flow in window.flows if not flow.outgoing and flow.destination_port == 8080]
    assert [(flow.from_birth, flow.hole, flow.payload_bytes >= len(payload)) for flow in sent] == [(True, False, True)]


def test_a_ring_that_loses_what_arrives_misses_the_beacons_that_arrive(wire: Wire) -> None:
    with recording("meshlab.testing.mutants.capture:capture_loses_packets") as lab:
        lab.begin(ring_socket(wire))
        window = watched(wire, lab, canary(SECRET, 1))
    assert {one.outgoing for one in window.missing} == {False}
    assert len(window.missing) == 4
    assert not window.drops
    assert "4 of 8 beacons were not seen" in window.blind


def test_a_burst_is_kept_whole(wire: Wire) -> None:
    with recording() as lab:
        lab.begin(ring_socket(wire))
        wire.datagrams(20_000, bytes(100))
        assert lab.packets(20_000) == 20_000
        assert lab.drops() == {"node-1": 0}


def test_what_the_kernel_dropped_is_counted(wire: Wire) -> None:
    with recording() as lab:
        lab.begin(ring_socket(wire))
        os.kill(lab.process.pid, signal.SIGSTOP)
        wire.datagrams(200, bytes(60_000))
        os.kill(lab.process.pid, signal.SIGCONT)
        seen = lab.packets(10_000)
        (dropped,) = lab.drops().values()
    assert dropped > 0
    assert seen < 200 * 41


def test_beyond_the_bound_the_recorder_says_what_it_did_not_keep_and_goes_on_when_there_is_room(wire: Wire) -> None:
    follower = Follower(SECRET)
    with recording(limit_bytes=1 << 20) as lab:
        lab.begin(ring_socket(wire))
        follower.open()
        wire.datagrams(3_000, bytes(1_000))
        follower.feed(_all_of(lab))
        assert [event["event"] for event in lab.events] == ["backlog"]
        lab.ask("release", before=lab.read)
        assert os.fstat(lab.fd).st_blocks * 512 <= 8192
        wire.datagrams(10, b"there is room")
        assert lab.packets(10) == 10
    window = follower.close(WIRING, beacon.Beacons(BEACON_SECRET, {}), {})
    assert window.lost_bytes > 1 << 20
    assert "the window is larger than its bound" in window.blind


def _all_of(lab: Lab) -> bytes:
    return b"".join(iter(lambda: lab.next_bytes(timeout_s=1), b""))


def test_a_position_is_answered_at_its_deadline_when_nothing_comes(wire: Wire) -> None:
    with recording() as lab:
        lab.begin(ring_socket(wire))
        answer, _ = lab.ask("position", after=10**9, timeout_s=0.05)
        assert answer["position"] == 0


def test_programs_that_print_more_than_the_bound_are_never_stopped_and_keep_head_and_tail() -> None:
    with recording() as lab:
        program = "print('first'); print('thread panicked at x.rs:1'); print('x' * 3_000_000); print('last')"
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as talker:
            assert talker.stdout is not None
            lab.ask("log", talker.stdout.fileno(), name="talker")
            assert talker.wait(20) == 0
            log = lab.ask("logs")[0]["logs"]["talker"]
    assert log["bytes"] > 3_000_000
    assert log["text"].startswith("first\n")
    assert log["text"].endswith("x\nlast\n")
    assert 256 << 10 <= len(log["text"]) < 400_000
    assert log["alarms"] == ["thread panicked at x.rs:1"]
    assert f"{log['lost']} bytes left out" in log["text"]


@pytest.mark.parametrize("request_", [{"op": "dance"}, {"op": "release"}, {"op": "logs", "names": ["nobody"]}])
def test_a_request_that_makes_no_sense_gets_an_error_and_ends_nothing(request_: dict[str, Any]) -> None:
    with recording() as lab:
        assert "error" in lab.ask(**request_)[0]
        assert lab.ask("logs")[0] == {"id": 1, "logs": {}}


def test_a_descriptor_that_is_no_packet_socket_is_refused_with_its_errno() -> None:
    with recording() as lab, socket.socket() as other:
        assert "OSError" in lab.ask("ring", other.fileno(), node="node-1")[0]["error"]


def test_the_recorder_ends_with_its_channel_and_with_sigterm() -> None:
    with recording() as lab:
        lab.ask("logs")
        lab.process.terminate()
        assert lab.process.wait(20) == 0
        with pytest.raises(ChannelClosedError):
            lab.channel.receive(timeout_s=20)
