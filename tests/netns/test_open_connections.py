"""Connections that stay open while a lab changes: what can be done with one, and who is said to have ended it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

import pytest

from meshlab.apps.echo_requests import ReadReceived
from meshlab.errors import ConnectionEndedError, DeadlineError, UsageError
from meshlab.plan.netns import pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

MANY = 1000
TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: open-connections}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/intruder: {node: node-1, serviceAccount: intruder}
    shop/server: {node: node-2, ports: [8080, 9090], serviceAccount: server, labels: {app: server}}
    shop/mail: {node: node-2, ports: [{containerPort: 2525, mode: server-first}]}
    shop/upper:
      node: node-2
      ports: [7000]
      run:
        - python3
        - -c
        - |
          import socketserver
          class Upper(socketserver.BaseRequestHandler):
              def handle(self):
                  while data := self.request.recv(4096):
                      self.request.sendall(data.upper())
          class Server(socketserver.ThreadingTCPServer):
              allow_reuse_address = True
              daemon_threads = True
          Server(("", 7000), Upper).serve_forever()
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-intruders, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/intruder]}}]}]
"""
DENY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}], to: [{operation: {ports: ["8080"]}}]}]
"""


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory(TOPOLOGY) as lab:
        yield lab


@contextmanager
def listening(lab: Lab) -> Iterator[tuple[socket.socket, str]]:
    """A listener of the test's own on the loopback of shop/server, and its address."""
    with lab.site.open_socket(pod_netns("shop/server"), socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(5)
        yield listener, f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("address", ["shop/server:8080", "server:80", "mail:2525"])
def test_an_open_connection_answers_as_often_as_it_is_asked(lab: Lab, address: str, family: Literal[4, 6]) -> None:
    with lab.pod("shop/client").connect(address, family=family) as line:
        assert line.alive
        assert line.closed_by == ""
        assert line.peer in {"shop/server", "shop/mail"}
        assert line.family == family
        assert line.local is not None
        assert line.local[0] == lab.pod("shop/client").pod.address(family)
        assert line.opened_ns > 0
        assert line.ask() == line.ask()
        assert line.ask(b"\0" * 1_000_000) == b"\0" * 1_000_000
        line.send(b"one ")
        line.send(b"two")
        assert line.receive(7) == b"one two"
    assert line.closed_by == "us"
    assert not line.alive


def test_a_program_of_a_pods_own_gets_the_bytes_as_they_are(lab: Lab) -> None:
    with lab.pod("shop/client").connect("upper:7000") as line:
        assert line.alive
        assert line.peer == ""
        assert line.ask(b"select 1;") == b"SELECT 1;"


def test_its_opening_carries_a_canary_to_the_server(lab: Lab) -> None:
    with lab.pod("shop/client").connect("server:80") as line, lab.pod("shop/client").connect("server:80") as other:
        assert line.canary.startswith(b"mlc-%d-" % line.number)
        assert line.number != other.number
        echo = lab.site.peer("echo", "node-2")
        assert echo is not None
        answer, _ = echo.ask(ReadReceived([line.canary.decode(), "mlc-99999-never"], 0))
    assert answer["received"] == {line.canary.decode(): {"shop/server": 1}}


def test_a_half_closed_connection_still_receives_and_then_the_echo_closes(lab: Lab) -> None:
    line = lab.pod("shop/client").connect("shop/server:8080")
    line.send(b"last words")
    line.half_close()
    assert line.receive(10) == b"last words"
    assert line.wait_closed() == "peer"
    assert line.receive() == b""
    with pytest.raises(UsageError, match="half-closed"):
        line.send(b"more")
    line.close()
    assert line.closed_by == "peer"


def test_a_reset_is_a_reset_at_the_other_end(lab: Lab) -> None:
    """Out of the mesh, since a ztunnel may turn a RST into a FIN."""
    with listening(lab) as (listener, address):
        line = lab.pod("shop/server").connect(address)
        app, _ = listener.accept()
        with app:
            app.settimeout(5)
            line.reset()
            with pytest.raises(ConnectionResetError):
                app.recv(1)
    assert line.closed_by == "us"


@pytest.mark.parametrize(("linger_s", "word"), [(None, "peer"), (0, "peer-reset")])
def test_it_says_whether_the_peer_closed_or_reset(lab: Lab, linger_s: int | None, word: str) -> None:
    with listening(lab) as (listener, address):
        line = lab.pod("shop/server").connect(address)
        app, _ = listener.accept()
        assert line.alive
        if linger_s is not None:
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        app.close()
    assert not line.alive
    assert line.closed_by == word
    assert line.closed_at_ns > line.opened_ns
    with pytest.raises(ConnectionEndedError, match=f"shop/server to {address} was ended by '{word}' at"):
        line.ask()
    line.close()


def test_what_is_not_answered_in_time_is_a_deadline_and_the_connection_stays_open(lab: Lab) -> None:
    with lab.pod("shop/client").connect("upper:7000") as line:
        with pytest.raises(DeadlineError, match=r"nothing was received within 0\.05 s"):
            line.receive(timeout_s=0.05)
        with pytest.raises(DeadlineError, match=r"nothing was closed within 0\.05 s"):
            line.wait_closed(timeout_s=0.05)
        assert line.ask(b"x") == b"X"


def test_a_port_where_nobody_listens_refuses(lab: Lab) -> None:
    line = lab.pod("shop/server").connect("127.0.0.1:4999")
    assert line.closed_by == "refused"
    assert "refused" in repr(line)


def test_a_denied_connection_is_never_open(lab: Lab) -> None:
    line = lab.pod("shop/intruder").connect("shop/server:8080")
    assert line.closed_by in {"peer", "peer-reset"}
    assert line.peer == ""
    with pytest.raises(ConnectionEndedError, match="shop/intruder to shop/server:8080"):
        line.ask()


def test_fewer_than_one_is_refused_and_so_is_a_place_that_is_not_there(lab: Lab) -> None:
    client = lab.pod("shop/client")
    with pytest.raises(UsageError, match="connections, not 0"):
        client.connect_many("server:80", 0)
    with pytest.raises(UsageError, match="no Service and no pod"):
        client.connect("nowhere:80")
    with pytest.raises(UsageError, match=r"connect\(\): 'timeout_s'"):
        client.connect("server:80", timeout_s=-1)


def test_a_policy_that_denies_them_cuts_them_and_leaves_the_others(lab: Lab) -> None:
    client = lab.pod("shop/client")
    lines, other = client.connect_many("shop/server:8080", 20), client.connect("shop/server:9090")
    assert all(line.alive for line in lines)
    lab.apply(DENY_CLIENT)
    try:
        assert {line.wait_closed() for line in lines} <= {"peer", "peer-reset"}
        assert other.ask(b"still") == b"still"
    finally:
        lab.delete(DENY_CLIENT)
    for line in (*lines, other):
        line.close()


def test_two_threads_that_ask_one_connection_get_their_own_answers(lab: Lab) -> None:
    errors: list[Exception] = []
    with lab.pod("shop/client").connect("server:80") as line:

        def work(word: bytes) -> None:
            try:
                for _ in range(50):
                    assert line.ask(word) == word
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(b"%d" % number * 100,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_thousand_stay_open_at_once_and_end_with_the_lab(lab_factory: LabFactory) -> None:
    with lab_factory(TOPOLOGY) as lab:
        lines = lab.pod("shop/client").connect_many("shop/server:8080", MANY)
        assert [line.closed_by for line in lines if not line.alive] == []
        assert len({line.local for line in lines}) == MANY
        assert {line.peer for line in lines} == {"shop/server"}
        assert {line.ask(b"%d" % line.number) == b"%d" % line.number for line in lines} == {True}
    assert {line.closed_by for line in lines} == {"us"}
