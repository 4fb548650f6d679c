"""The agent as a program, with a kernel: it comes back to pods that have their rules, and to pods that lost them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlab.kernel.channel import Channel, pair
from meshlab.kernel.nftables import render
from meshlab.plan.redirect import inpod_rules
from meshlab.protocols.zds import Added, ProxySession, SnapshotSent

DEADLINE_S = 20
PODS = [
    {"uid": f"uid-{name}", "name": name, "namespace": "shop", "service_account": "default", "bypass_inbound": bypasses}
    for name, bypasses in (("kept", False), ("lost", False), ("gateway", True))
]
"""The rules of the first are there; the second has none, and the third those of a pod without the annotation."""
STARTED = """
import json, os, socket, sys
from meshlab.agent import rules
from meshlab.agent.main import main
from meshlab.kernel import namespaces as ns
from meshlab.kernel.netlink import NETLINK_ROUTE, RouteSocket
from meshlab.plan.changes import LO, End, LinkUp
from meshlab.plan.redirect import inpod_rules
uid, gid = os.geteuid(), os.getegid()
ns.unshare(ns.CLONE_NEWUSER)
for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
fds = {"control": int(sys.argv[2])}
for place in range(3):
    ns.unshare(ns.CLONE_NEWNET)
    fds[f"netns-{place}"] = ns.own_netns()
    RouteSocket(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE), "pod").apply([LinkUp(End("lo", LO))])
    if place != 1:
        rules.write(fds[f"netns-{place}"], "pod", inpod_rules())
main(json.loads(sys.argv[1]), fds)
"""


class Running:
    """An agent, the lab's end of its channel, and a proxy that has connected."""

    def __init__(self, process: subprocess.Popen[bytes], lab: Channel, uds: Path) -> None:
        self.process = process
        self._lab = lab
        self.events: list[dict[str, Any]] = []
        self.rules(PODS[0]["uid"])  # once it answers, it listens
        self.proxy = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.proxy.settimeout(DEADLINE_S)
        self.proxy.connect(str(uds))

    def ask(self, **request: Any) -> dict[str, Any]:
        self._lab.send({"id": 1, **request})
        while "event" in (message := self._lab.receive(DEADLINE_S)[0]):
            self.events.append(message)
        return dict(message)

    def rules(self, uid: object) -> str:
        return str(self.ask(op="rules", uid=uid)["text"])


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Running]:
    ours, theirs = pair()
    uds = tmp_path / "zds.sock"
    config = {"node": "node-1", "uds": str(uds), "pods": PODS}
    argv = [sys.executable, "-c", STARTED, json.dumps(config), str(theirs.fileno())]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], env=environment) as process:
        theirs.close()
        running = Running(process, ours, uds)
        try:
            yield running
        finally:
            running.proxy.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
            ours.close()


def test_rules_that_are_right_stay_and_others_are_mended_before_a_proxy_comes(agent: Running) -> None:
    plain, bypassing = render(inpod_rules().ruleset), render(inpod_rules(bypass_inbound=True).ruleset)
    assert [agent.rules(pod["uid"]) for pod in PODS] == [plain, plain, bypassing]


def test_a_proxy_is_told_of_all_of_them_and_the_lab_of_the_proxy(agent: Running) -> None:
    session = ProxySession()
    agent.proxy.send(session.hello())
    told, inodes = [], set()
    for _ in PODS:
        packet, fds, _, _ = socket.recv_fds(agent.proxy, 1024, 2)
        event = session.receive(packet, len(fds))
        assert isinstance(event, Added)
        told.append(event.pod.uid)
        for fd in fds:
            inodes.add(os.fstat(fd).st_ino)
            os.close(fd)
        agent.proxy.send(session.ack())
    assert (told, len(inodes)) == ([pod["uid"] for pod in PODS], 3)
    assert isinstance(session.receive(agent.proxy.recv(1024), 0), SnapshotSent)
    agent.proxy.send(session.ack())
    while not agent.events:
        (connection,) = agent.ask(op="status")["connections"]
    assert agent.events == [{"event": "synced", "connection": 1, "pid": os.getpid(), "pods": sorted(told)}]
    assert connection["pid"] == os.getpid()


def test_a_pod_that_is_released_is_known_no_more(agent: Running) -> None:
    uids = [pod["uid"] for pod in PODS]
    with_rules = agent.ask(op="status")["uids"]
    assert with_rules == sorted(map(str, uids))
    answer = agent.ask(op="release", uids=uids)
    assert (answer["released"], answer["failed"], answer["unacknowledged"]) == (uids, {}, [])
    assert agent.ask(op="status")["uids"] == []
