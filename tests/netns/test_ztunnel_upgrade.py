"""A reference ztunnel takes the place of another on one node, while calls go on in both directions."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from open_connections import DEADLINE_S, LAB, echoed, open_to

from meshlab.lab import cluster
from meshlab.model import Call, Outcome
from meshlab.plan.netns import NetnsKey, node_netns, proxy_netns
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.running.programs import Program

LabFactory = Callable[..., AbstractContextManager["Lab"]]
NODE = "node-2"
PLACES = (proxy_netns(NODE), node_netns(NODE))
"""Where the ztunnels of the node run in turns: two of them cannot share a netns, whose 15021 one of them has."""


class Traffic:
    """Calls to and from the node, one batch after another."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        here, there, other = lab.pods("shop/far", "shop/client", "shop/other")
        to_here = [pod.plan_http("http://shop/far:8080/", timeout_s=DEADLINE_S) for pod in (there, other)]
        self._batch = [*to_here, here.plan_http("http://shop/near:8080/", timeout_s=DEADLINE_S)] * 10
        self._made = threading.Condition()
        self._ending = threading.Event()
        self.calls: list[Call] = []

    def run(self) -> None:
        while not self._ending.is_set():
            batch = self._lab.calls(self._batch)
            with self._made:
                self.calls += batch
                self._made.notify_all()

    def wait_for_more(self, batches: int = 2) -> None:
        """Return when so many more batches were made: one of them began after this was called."""
        with self._made:
            enough = len(self.calls) + batches * len(self._batch)
            assert self._made.wait_for(lambda: len(self.calls) >= enough, DEADLINE_S)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()


def _start(lab: Lab, place: NetnsKey, **env: str) -> Program:
    """Start one more ztunnel for the node, and return it when it serves every pod."""
    site = lab.site
    proxy = cluster.next_proxy(site, NODE, site.choices[NODE], 0)
    site.proxies[NODE].append(proxy)
    lab.transitions.configuration.admit()
    launch = proxy.choice.launch(cluster.slot(site, NODE, proxy))
    started = site.programs.python(
        proxy.instance,
        str(launch.entry),
        {"env": {**launch.env, **env}},
        {},
        netns=site.netns[place],
        mntns=site.mounts.of_node(NODE),
        capabilities=cluster.PROXY_CAPABILITIES,
        control=False,
    )
    deadline = time.monotonic() + DEADLINE_S
    while b" 200 " not in _answer(lab, place, 15021, "/healthz/ready"):
        assert time.monotonic() < deadline, lab.logs(started.name)
    return started


def _answer(lab: Lab, place: NetnsKey, port: int, path: str) -> bytes:
    """What a ztunnel answers to a GET; nothing: it does not listen."""
    with lab.site.open_socket(place, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return b""
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        return sock.makefile("rb").read()


def test_no_call_fails_and_no_open_connection_ends_while_ztunnels_take_each_others_place(
    lab_factory: LabFactory,
) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        name, pid = f"ztunnel@{NODE}", lab.site.programs.by_name[f"ztunnel@{NODE}"].pid
        for number in range(4):
            successor = _start(lab, PLACES[(number + 1) % 2])
            traffic = Traffic(lab)
            with (
                traffic.going_on(),
                open_to(lab, "shop/client", "shop/far", 8080) as inwards,
                open_to(lab, "shop/far", "shop/near", 8080) as outwards,
            ):
                traffic.wait_for_more()
                lab.site.programs.end(name, signal.SIGTERM)
                traffic.wait_for_more()
                assert echoed(inwards, b"still here")
                assert echoed(outwards, b"still here")
            assert lab.sandbox.wait_exit(pid, DEADLINE_S) == 0
            wrong = [call for call in traffic.calls if call.outcome is not Outcome.OK]
            assert not wrong, wrong[:3]
            name, pid = successor.name, successor.pid


def test_what_is_open_at_the_deadline_ends_with_a_fin_and_the_ztunnel_in_order(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        hurried = _start(lab, PLACES[1], CONNECTION_TERMINATION_DEADLINE="500ms")
        first = lab.site.programs.by_name[f"ztunnel@{NODE}"]
        lab.site.programs.end(first.name, signal.SIGTERM)
        assert lab.sandbox.wait_exit(first.pid, DEADLINE_S) == 0
        with (
            open_to(lab, "shop/client", "shop/far", 8080) as inwards,
            open_to(lab, "shop/far", "shop/near", 8080) as outwards,
        ):
            began = time.monotonic()
            lab.site.programs.end(hurried.name, signal.SIGTERM)
            assert (inwards.recv(1), outwards.recv(1)) == (b"", b"")
            assert 0.4 < time.monotonic() - began < 3
        assert lab.sandbox.wait_exit(hurried.pid, DEADLINE_S) == 0


def test_an_idle_ztunnel_that_has_carried_calls_ends_long_before_its_deadline(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        assert lab.pod("shop/client").http("http://shop/far:8080/").outcome is Outcome.OK  # a connection is pooled
        ztunnel = lab.site.programs.by_name[f"ztunnel@{NODE}"]
        began = time.monotonic()
        lab.site.programs.end(ztunnel.name, signal.SIGTERM)
        assert lab.sandbox.wait_exit(ztunnel.pid, DEADLINE_S) == 0
        assert time.monotonic() - began < 2, "and not 5"


def test_the_pods_and_the_messages_of_a_node_are_in_its_metrics(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        lines = _answer(lab, proxy_netns("node-1"), 15020, "/metrics").decode().splitlines()
        assert "workload_manager_active_proxy_count 3.0" in lines
        assert "workload_manager_pending_proxy_count 0.0" in lines
        received = [line for line in lines if line.startswith("istio_xds_message_bytes_total{")]
        assert {line.partition(" ")[0] for line in received} == {
            f'istio_xds_message_bytes_total{{url="{url}"}}' for url in (ADDRESS_TYPE, AUTHORIZATION_TYPE)
        }
        assert all(float(line.rpartition(" ")[2]) > 0 for line in received)


def test_a_call_is_in_the_metrics_of_both_ends(lab_factory: LabFactory) -> None:
    with lab_factory(LAB, ztunnel="reference") as lab:
        assert lab.pod("shop/client").http("http://shop/far:8080/").outcome is Outcome.OK
        reporters = {"node-1": 'reporter="source"', "node-2": 'reporter="destination"'}
        deadline = time.monotonic() + DEADLINE_S
        for node, reporter in reporters.items():
            while not (
                lines := [
                    line
                    for line in _answer(lab, proxy_netns(node), 15020, "/stats/prometheus").decode().splitlines()
                    if line.startswith("istio_tcp_connections_closed_total") and reporter in line
                ]
            ):
                assert time.monotonic() < deadline
            for label in ('source_principal="spiffe://cluster.local/ns/shop/sa/client"', 'response_flags="-"'):
                assert label in lines[0]
