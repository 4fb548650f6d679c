"""The agent between a lab and node proxies, over real sockets; its loop is turned by hand, and no rule is written."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshlab.agent.agent import Agent, EnrolledPod
from meshlab.errors import KernelRefusedError
from meshlab.kernel.channel import Channel, ChannelClosedError, pair
from meshlab.protocols.zds import Added, Deleted, ProxyEvent, ProxySession, SnapshotSent, ZdsPod


class NoRules(Agent):
    """Writes nothing, and is refused where the pod is called ``broken``."""

    def __init__(self, config: Mapping[str, Any], channel: Channel, netns: Sequence[int] = ()) -> None:
        self.written: list[str] = []
        self.taken: list[str] = []
        super().__init__(config, channel, netns)

    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        if pod.zds.name == "broken":
            raise KernelRefusedError("add table istio-ambient-nat", f"pod:{pod.key}", 1)
        self.written.append(f"{pod.key}{' again' if known else ''}{' bypass' if pod.bypass_inbound else ''}")

    def remove_rules(self, pod: EnrolledPod, closing: contextlib.ExitStack) -> None:
        if pod.zds.name == "stubborn":
            raise KernelRefusedError("delete table istio-ambient-nat", f"pod:{pod.key}", 1)
        self.taken.append(pod.key)


class Proxy:
    """A ztunnel's end: says hello when told, and answers when told."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5)
        self.sock.connect(str(path))
        self.session = ProxySession()
        self.inodes: list[int] = []

    def hello(self) -> None:
        self.sock.send(self.session.hello())

    def receive(self) -> ProxyEvent:
        packet, ancillary, _, _ = self.sock.recvmsg(1024, 64)
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload)
        for fd in fds:
            self.inodes.append(os.fstat(fd).st_ino)
            os.close(fd)
        return self.session.receive(packet, len(fds))

    def ack(self, error: str = "") -> None:
        self.sock.send(self.session.ack(error))

    def nothing_came(self) -> bool:
        self.sock.setblocking(False)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(5)
        return False


class Bench:
    """An agent, the lab's end of its channel, and proxies."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.uds = folder / "ztunnel" / "ztunnel.sock"
        self.lab, theirs = pair()
        netns = [os.open("/proc/self/ns/net", os.O_RDONLY) for _ in config.get("pods", ())]
        self.agent = NoRules({"node": "node-1", "uds": str(self.uds), **config}, theirs, netns)
        self.proxies: list[Proxy] = []
        self.events: list[dict[str, Any]] = []
        self._number = 0

    def proxy(self) -> Proxy:
        proxy = Proxy(self.uds)
        self.proxies.append(proxy)
        self.agent.step(5)
        return proxy

    def ask(self, operation: str, fds: tuple[int, ...] = (), **fields: Any) -> int:
        self._number += 1
        self.lab.send({"id": self._number, "op": operation, **fields}, fds)
        self.agent.step(5)
        return self._number

    def enrol(self, *names: str, **fields: Any) -> int:
        with open("/proc/self/ns/net") as netns:
            return self.ask("enrol", (netns.fileno(),) * len(names), pods=[asked(name) for name in names], **fields)

    def answer(self) -> dict[str, Any]:
        while True:
            message, _ = self.lab.receive(timeout_s=5)
            if "event" not in message:
                return dict(message)
            self.events.append(message)

    def unanswered(self) -> bool:
        try:
            while "event" in (message := self.lab.receive(timeout_s=0)[0]):
                self.events.append(message)
        except (TimeoutError, ChannelClosedError):
            return True
        return False

    def close(self) -> None:
        self.agent.close()
        self.lab.close()
        for proxy in self.proxies:
            proxy.sock.close()


def asked(name: str) -> dict[str, str]:
    return {
        "uid": f"uid-{name}",
        "name": name,
        "namespace": "shop",
        "service_account": "default",
        "ipv4": "",
        "ipv6": "",
    }


def added(name: str) -> Added:
    return Added(ZdsPod(uid=f"uid-{name}", name=name, namespace="shop", service_account="default"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def factory(**config: Any) -> Bench:
        made.append(Bench(tmp_path, **config))
        return made[-1]

    yield factory
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


def synced(bench: Bench, *names: str) -> Proxy:
    """A proxy that has been told of these pods, which the agent knows."""
    proxy = bench.proxy()
    proxy.hello()
    bench.agent.step(5)
    for name in names:
        assert proxy.receive() == added(name)
        proxy.ack()
        bench.agent.step(5)
    assert isinstance(proxy.receive(), SnapshotSent)
    proxy.ack()
    bench.agent.step(5)
    return proxy


def test_a_pod_is_enrolled_when_its_rules_are_written_and_the_proxy_has_acknowledged(bench: Bench) -> None:
    proxy = synced(bench)
    number = bench.enrol("client")
    assert bench.agent.written == ["shop/client"]
    assert proxy.receive() == added("client")
    assert bench.unanswered()
    proxy.ack()
    bench.agent.step(5)
    assert bench.answer() == {"id": number, "enrolled": ["uid-client"], "pending": {}}


def test_the_proxy_gets_the_pods_own_netns(bench: Bench) -> None:
    proxy = synced(bench)
    bench.enrol("client")
    proxy.receive()
    assert proxy.inodes == [os.stat("/proc/self/ns/net").st_ino]


def test_pods_are_handed_over_one_by_one_in_the_order_asked(bench: Bench) -> None:
    proxy = synced(bench)
    number = bench.enrol("client", "a-server")
    assert proxy.receive() == added("client")
    assert proxy.nothing_came()
    proxy.ack()
    bench.agent.step(5)
    assert proxy.receive() == added("a-server")
    proxy.ack()
    bench.agent.step(5)
    assert bench.answer() == {"id": number, "enrolled": ["uid-client", "uid-a-server"], "pending": {}}


def test_pods_asked_for_before_a_proxy_came_are_in_its_snapshot(bench: Bench) -> None:
    number = bench.enrol("client", "server")
    assert bench.unanswered()
    synced(bench, "client", "server")
    assert bench.answer() == {"id": number, "enrolled": ["uid-client", "uid-server"], "pending": {}}


def test_a_pod_whose_rules_are_refused_is_pending_and_no_proxy_hears_of_it(bench: Bench) -> None:
    proxy = synced(bench)
    number = bench.enrol("broken", "client")
    assert proxy.receive() == added("client")
    proxy.ack()
    bench.agent.step(5)
    answer = bench.answer()
    assert (answer["id"], answer["enrolled"]) == (number, ["uid-client"])
    assert answer["pending"]["uid-broken"].startswith("rules: add table istio-ambient-nat in netns 'pod:shop/broken'")


def test_a_pod_that_the_proxy_refuses_is_pending_with_its_words(bench: Bench) -> None:
    proxy = synced(bench)
    number = bench.enrol("client")
    proxy.receive()
    proxy.ack("failure to start proxy : Bind(15008)")
    bench.agent.step(5)
    why = "the node proxy refused it: failure to start proxy : Bind(15008)"
    assert bench.answer() == {"id": number, "enrolled": [], "pending": {"uid-client": why}}


def test_without_a_proxy_everything_is_pending_at_the_deadline(bench: Bench) -> None:
    number = bench.enrol("client", timeout_s=0.01)
    bench.agent.step(5)
    why = "no node proxy is connected to the agent"
    assert bench.answer() == {"id": number, "enrolled": [], "pending": {"uid-client": why}}


def test_what_the_lab_gives_up_is_pending_at_once_with_its_reason(bench: Bench) -> None:
    enrol = bench.enrol("client", timeout_s=3600)
    bench.ask("give_up", why="the node proxy is gone: exit status 1")
    why = "the node proxy is gone: exit status 1"
    assert bench.answer() == {"id": enrol, "enrolled": [], "pending": {"uid-client": why}}


def test_a_proxy_that_does_not_answer_leaves_its_pod_pending_at_the_deadline(bench: Bench) -> None:
    synced(bench)
    number = bench.enrol("client", timeout_s=0.01)
    bench.agent.step(5)
    why = "the node proxy has not acknowledged it"
    assert bench.answer() == {"id": number, "enrolled": [], "pending": {"uid-client": why}}


def test_where_no_proxy_was_asked_for_rules_are_written_and_the_answer_is_pending_at_once(bench: Bench) -> None:
    number = bench.enrol("client", no_proxy=True)
    assert bench.agent.written == ["shop/client"]
    assert bench.answer() == {"id": number, "enrolled": [], "pending": {"uid-client": "no node proxy was asked for"}}


def test_a_proxy_that_comes_again_is_told_of_every_pod_again(bench: Bench) -> None:
    proxy = synced(bench)
    bench.enrol("client")
    proxy.receive()
    proxy.ack()
    bench.agent.step(5)
    proxy.sock.close()
    bench.agent.step(5)
    synced(bench, "client")
    assert bench.proxies[-1].inodes == [os.stat("/proc/self/ns/net").st_ino]


def test_a_proxy_that_is_lost_in_the_middle_leaves_the_pod_to_the_next(bench: Bench) -> None:
    proxy = synced(bench)
    number = bench.enrol("client")
    proxy.receive()
    proxy.sock.close()
    bench.agent.step(5)
    assert bench.unanswered()
    synced(bench, "client")
    assert bench.answer() == {"id": number, "enrolled": ["uid-client"], "pending": {}}


def test_a_proxy_that_is_lost_in_the_middle_leaves_the_pod_to_the_one_before(bench: Bench) -> None:
    old, new = synced(bench), synced(bench)
    number = bench.enrol("client")
    assert new.receive() == added("client")
    assert old.nothing_came()
    new.sock.close()
    bench.agent.step(5)
    assert old.receive() == added("client")
    old.ack()
    bench.agent.step(5)
    assert bench.answer() == {"id": number, "enrolled": ["uid-client"], "pending": {}}


def test_of_two_proxies_the_newest_is_told_of_a_new_pod_and_both_of_its_end(bench: Bench) -> None:
    old, new = synced(bench), synced(bench)
    bench.enrol("client")
    assert new.receive() == added("client")
    new.ack()
    bench.agent.step(5)
    assert bench.answer()["enrolled"] == ["uid-client"]
    number = bench.ask("remove", uids=["uid-client"])
    assert [old.receive(), new.receive()] == [Deleted("uid-client"), Deleted("uid-client")]
    old.ack()
    bench.agent.step(5)
    assert bench.unanswered()
    new.ack()
    bench.agent.step(5)
    assert bench.answer() == {"id": number, "removed": ["uid-client"], "unacknowledged": []}
    assert bench.agent.taken == []


def test_a_proxy_that_breaks_the_protocol_is_dropped_and_the_agent_lives(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = bench.proxy()
    proxy.sock.send(b"\xff\xff")
    bench.agent.step(5)
    assert proxy.sock.recv(1) == b""
    assert "agent of node-1: ZDS connection 1 ended: ffff is no ZdsHello" in capfd.readouterr().err
    synced(bench)


@pytest.mark.parametrize("fds", [0, 1])
def test_a_proxy_that_sends_too_much_is_dropped(bench: Bench, fds: int) -> None:
    proxy = bench.proxy()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))] * fds
    proxy.sock.sendmsg([b"\x08\x01" if fds else b"\x08\x01" + bytes(2000)], control)
    bench.agent.step(5)
    assert proxy.sock.recv(1) == b""


def test_an_unknown_request_is_answered_with_an_error_that_lists_what_there_is(bench: Bench) -> None:
    number = bench.ask("enroll")
    assert bench.answer() == {
        "id": number,
        "error": "ValueError: no operation 'enroll'; there are enrol, give_up, release, remove, rules, status",
    }


def test_the_socket_of_an_agent_that_was_killed_is_in_nobodys_way(make: Callable[..., Bench]) -> None:
    make()
    synced(make())


def test_a_record_has_every_packet_with_who_said_it(make: Callable[..., Bench]) -> None:
    bench = make(record=True)
    proxy = synced(bench)
    bench.enrol("client")
    proxy.receive()
    proxy.ack()
    bench.agent.step(5)
    bench.answer()
    said = [(event["k"], event.get("msg")) for event in bench.events if event["event"] == "conversation"]
    info = {"name": "client", "namespace": "shop", "service_account": "default"}
    assert said == [
        ("zds-accept", None),
        ("zds-from-ztunnel", {"version": 1}),
        ("zds-to-ztunnel", {"snapshot_sent": {}}),
        ("zds-from-ztunnel", {"ack": {}}),
        ("zds-synced", None),
        ("zds-to-ztunnel", {"add": {"uid": "uid-client", "workload_info": info}}),
        ("zds-from-ztunnel", {"ack": {}}),
    ]
    assert [event["nfds"] for event in bench.events if event.get("k") == "zds-to-ztunnel"] == [0, 1]


def test_a_lab_that_does_not_read_its_record_keeps_no_proxy_waiting_and_misses_nothing_later(
    make: Callable[..., Bench],
) -> None:
    bench = make(record=True)
    proxy = synced(bench)
    names = [f"pod-{number}" for number in range(300)]
    bench.enrol(*names)
    for _ in names:
        proxy.receive()
        proxy.ack()
        bench.agent.step(5)
    enrolled: list[str] = []
    while not enrolled:
        bench.agent.step(0)  # it writes what there is room for now
        with contextlib.suppress(TimeoutError):
            message, _ = bench.lab.receive(timeout_s=0)
            bench.events.append(message)
            enrolled = message.get("enrolled", [])
    assert enrolled == [f"uid-{name}" for name in names]
    assert sum(event.get("k") == "zds-to-ztunnel" for event in bench.events) == len(names) + 1


@pytest.mark.parametrize("record", [False, True])
def test_an_agent_whose_lab_is_gone_ends(make: Callable[..., Bench], record: bool) -> None:
    bench = make(record=record)
    bench.proxy()
    bench.lab.close()
    stop, wake = os.pipe()
    bench.agent.run(stop)
    os.close(stop)
    os.close(wake)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(str(bench.uds))


def test_an_agent_that_is_told_to_stop_ends(bench: Bench) -> None:
    stop, wake = os.pipe()
    os.write(wake, b"x")
    bench.agent.run(stop)
    os.close(stop)
    os.close(wake)
    with pytest.raises(ChannelClosedError):
        bench.lab.receive(timeout_s=5)


# --- pods that go, agents that come back, and two proxies ------------------------------------------------------------


def enrolled(bench: Bench, proxy: Proxy, *names: str) -> None:
    """Enrol pods with the newest proxy."""
    bench.enrol(*names)
    for name in names:
        assert proxy.receive() == added(name)
        proxy.ack()
        bench.agent.step(5)
    assert bench.answer()["enrolled"] == [f"uid-{name}" for name in names]


def test_a_release_takes_the_rules_away_before_any_proxy_hears_of_it(bench: Bench) -> None:
    proxy = synced(bench)
    enrolled(bench, proxy, "client", "server")
    number = bench.ask("release", uids=["uid-client"])
    assert bench.agent.taken == ["shop/client"]
    assert proxy.receive() == Deleted("uid-client")
    assert bench.unanswered()
    proxy.ack()
    bench.agent.step(5)
    answer = {"id": number, "released": ["uid-client"], "failed": {}, "unacknowledged": []}
    assert bench.answer() == answer
    proxy.sock.close()
    bench.agent.step(5)
    synced(bench, "server")


def test_a_pod_whose_rules_cannot_be_taken_away_stays_with_its_proxy(bench: Bench) -> None:
    proxy = synced(bench)
    enrolled(bench, proxy, "stubborn")
    number = bench.ask("release", uids=["uid-stubborn", "uid-nobody"])
    answer = bench.answer()
    assert (answer["id"], answer["released"]) == (number, [])
    assert answer["failed"]["uid-stubborn"].startswith("rules: delete table istio-ambient-nat in netns")
    assert answer["failed"]["uid-nobody"] == "the agent of node-1 does not know it"
    assert proxy.nothing_came()


@pytest.mark.parametrize("operation", ["release", "remove"])
def test_a_proxy_that_goes_is_not_waited_for(bench: Bench, operation: str) -> None:
    proxy = synced(bench)
    enrolled(bench, proxy, "client")
    number = bench.ask(operation, uids=["uid-client"])
    proxy.receive()
    assert bench.unanswered()
    proxy.sock.close()
    bench.agent.step(5)
    answer = bench.answer()
    assert (answer["id"], answer["unacknowledged"]) == (number, [])


@pytest.mark.parametrize("operation", ["release", "remove"])
def test_what_a_proxy_has_not_acknowledged_at_the_deadline_is_said(bench: Bench, operation: str) -> None:
    proxy = synced(bench)
    enrolled(bench, proxy, "client")
    number = bench.ask(operation, uids=["uid-client"], timeout_s=0.01)
    bench.agent.step(5)
    answer = bench.answer()
    assert (answer["id"], answer["unacknowledged"]) == (number, ["uid-client"])


@pytest.mark.parametrize("uids", [[], ["uid-nobody"]], ids=["none", "unknown"])
def test_to_remove_nothing_that_is_known_is_done_at_once(bench: Bench, uids: list[str]) -> None:
    synced(bench)
    number = bench.ask("remove", uids=uids)
    assert bench.answer() == {"id": number, "removed": uids, "unacknowledged": []}


def test_a_pod_that_is_removed_while_it_is_enrolled_is_pending_and_no_proxy_is_told_of_it_again(bench: Bench) -> None:
    enrol = bench.enrol("client")
    remove = bench.ask("remove", uids=["uid-client"])
    why = "it was taken away meanwhile"
    assert bench.answer() == {"id": enrol, "enrolled": [], "pending": {"uid-client": why}}
    assert bench.answer() == {"id": remove, "removed": ["uid-client"], "unacknowledged": []}
    synced(bench)


def test_a_removed_pod_leaves_no_descriptor(bench: Bench) -> None:
    proxy = synced(bench)
    before = len(os.listdir("/proc/self/fd"))
    enrolled(bench, proxy, "client")
    enrolled(bench, proxy, "client")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    bench.ask("remove", uids=["uid-client"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_agent_that_comes_back_knows_its_pods_before_a_proxy_can_connect(make: Callable[..., Bench]) -> None:
    bench = make(pods=[asked("client"), asked("broken")])
    assert bench.agent.written == ["shop/client again"]
    proxy = synced(bench, "client")
    assert proxy.inodes == [os.stat("/proc/self/ns/net").st_ino]
    bench.ask("status")
    status = bench.answer()
    assert status["uids"] == ["uid-client"]
    assert status["without_rules"]["uid-broken"].startswith("rules: add table istio-ambient-nat")


def test_a_pod_that_is_enrolled_again_is_written_only_where_it_differs(bench: Bench) -> None:
    proxy = synced(bench)
    enrolled(bench, proxy, "client")
    enrolled(bench, proxy, "client")
    with open("/proc/self/ns/net") as netns:
        bench.ask("enrol", (netns.fileno(),), pods=[{**asked("client"), "bypass_inbound": True}])
    assert bench.agent.written == ["shop/client", "shop/client again", "shop/client again bypass"]


def test_it_says_which_proxy_has_its_snapshot(bench: Bench) -> None:
    enrol = bench.enrol("client")
    first = synced(bench, "client")
    assert bench.answer()["id"] == enrol
    second = bench.proxy()
    enrolled(bench, synced(bench, "client"), "server")
    bench.ask("status")
    both = ["uid-client", "uid-server"]
    assert bench.answer()["connections"] == [
        {"number": 1, "pid": os.getpid(), "synced": True, "uids": ["uid-client"]},
        {"number": 2, "pid": os.getpid(), "synced": False, "uids": []},
        {"number": 3, "pid": os.getpid(), "synced": True, "uids": both},
    ]
    assert [event for event in bench.events if event["event"] == "synced"] == [
        {"event": "synced", "connection": 1, "pid": os.getpid(), "pods": ["uid-client"]},
        {"event": "synced", "connection": 3, "pid": os.getpid(), "pods": ["uid-client"]},
    ]
    assert first.nothing_came()
    second.sock.close()
