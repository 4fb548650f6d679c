"""Connections that a test holds open, and what becomes of them: for any data plane, right or broken on purpose."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from meshlab.model import Family, Outcome
from meshlab.plan.netns import pod_netns, proxy_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

LAB = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: connections}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/other: {node: node-1, serviceAccount: other}
    shop/near: {node: node-1, ports: [8080], serviceAccount: server, labels: {app: server}}
    shop/far: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
    out/plain: {node: node-2, ports: [8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
"""
DENY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""
LOOPBACK_PORT = 6060
SLOW_PORT = 9090
"""No pod declares it; a test listens on it, and lets nobody in for a while."""
DENY_PORTS = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: nobody, namespace: shop}}
spec:
  action: DENY
  rules: [{{to: [{{operation: {{ports: ["8080", "{SLOW_PORT}"]}}}}]}}]
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
SAME_NAME_ELSEWHERE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: out}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["1"]}}]}]}
"""
"""Named as ``DENY_CLIENT`` is, and of another namespace."""
FIRST_WORDS = {
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(32),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\n\r\n",
    "PROXY": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
    "SSH": b"SSH-2.0-x\r\n",
    "zeros": bytes(64),
    "one byte": b"x",
}
"""Of protocols that a proxy may sniff for."""
DEADLINE_S = 10.0
LASTS_S = 2.0
"""A connection that still carries bytes so long after a policy came into effect is not cut by it."""


def connected(lab: Lab, source: str, host: str, port: int, family: int = socket.AF_INET) -> socket.socket:
    """A connection from a pod; that it is accepted says nothing yet of its far end."""
    sock = lab.site.open_socket(pod_netns(source), family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.settimeout(DEADLINE_S)
    sock.connect((host, port))
    return sock


def open_to(lab: Lab, source: str, to: str, port: int) -> socket.socket:
    """A connection that the far app has answered once, so that it is open from end to end."""
    sock = connected(lab, source, str(lab.pod(to).ipv4), port)
    assert echoed(sock, b"open")
    return sock


def echoed(sock: socket.socket, data: bytes) -> bool:
    """Whether what is sent comes back; ``False`` if the connection has ended."""
    got = b""
    try:
        sock.sendall(data)
        while len(got) < len(data):
            more = sock.recv(1 << 16)
            if not more:
                return False
            got += more
    except ConnectionError:
        return False
    return got == data


def ends(sock: socket.socket) -> bool:
    """Whether a connection on which nothing is said ends."""
    sock.settimeout(LASTS_S)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def is_lifted_by_a_namesake(lab: Lab) -> bool:
    """Whether a policy of the same name in another namespace takes the effect of a policy away."""
    lab.apply(DENY_CLIENT)
    lab.apply(SAME_NAME_ELSEWHERE)
    return lab.pod("shop/client").http("http://shop/far:8080/").answered


def keeps_its_first_action(lab: Lab) -> bool:
    """Whether a policy that comes again with another action, and all else as before, has the effect of the first."""
    lab.apply(DENY_CLIENT.replace("DENY", "ALLOW"))
    assert lab.pod("shop/client").http("http://shop/far:8080/").answered
    lab.apply(DENY_CLIENT)
    return lab.pod("shop/client").http("http://shop/far:8080/").answered


def says_in_plaintext(lab: Lab, words: bytes) -> bool:
    """Whether what out/plain says first comes to an app in shop/far."""
    with lab.site.open_socket(
        pod_netns("shop/far"), socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    ) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", SLOW_PORT))
        listener.listen()
        listener.settimeout(LASTS_S)
        with (
            contextlib.suppress(ConnectionError, TimeoutError),
            connected(lab, "out/plain", str(lab.pod("shop/far").ipv4), SLOW_PORT) as sock,
        ):
            sock.sendall(words)
            app, _ = listener.accept()
            with app:
                app.settimeout(DEADLINE_S)
                return bool(app.recv(1))
    return False


def reaches_loopback(lab: Lab, source: str, family: Family) -> bool:
    """Whether a pod gets through to what listens on another pod's loopback address only."""
    kind, own = (socket.AF_INET6, "::1") if family == 6 else (socket.AF_INET, "127.0.0.1")
    with lab.site.open_socket(pod_netns("shop/far"), kind, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind((own, LOOPBACK_PORT))
        listener.listen()
        host = str(lab.pod("shop/far").pod.address(family))
        with (
            contextlib.suppress(ConnectionError, TimeoutError),
            connected(lab, source, host, LOOPBACK_PORT, kind) as sock,
        ):
            sock.settimeout(LASTS_S)
            sock.sendall(b"let me in")
            sock.recv(1)
        listener.settimeout(0)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
    return True


def is_cut_by_a_policy(lab: Lab, source: str) -> bool:
    """Whether a policy that denies everybody ends a connection that was open before it."""
    with open_to(lab, source, "shop/far", 8080) as sock:
        lab.apply(DENY_PORTS)
        until = time.monotonic() + LASTS_S
        while time.monotonic() < until:
            if not echoed(sock, b"still here"):
                return True
    return False


def is_cut_while_its_app_is_dialled(lab: Lab, source: str) -> bool:
    """Whether a policy ends a connection whose app has not accepted yet, and no byte of it reaches the app."""
    with (
        _full_listener(lab) as (listener, filler),
        connected(lab, source, str(lab.pod("shop/far").ipv4), SLOW_PORT) as sock,
    ):
        sock.sendall(b"early")
        _wait_for_a_dial(lab)
        lab.apply(DENY_PORTS)
        waiting, _ = listener.accept()  # so that there is room: the proxy's SYN is answered when it comes again
        waiting.close()
        filler.close()
        if not ends(sock):
            return False
        listener.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            app, _ = listener.accept()
            with app:
                app.settimeout(DEADLINE_S)
                return app.recv(1) == b""
    return True


@contextlib.contextmanager
def _full_listener(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An app in shop/far that does not accept, with one connection of its own in its queue: that is all it takes."""
    here = (pod_netns("shop/far"), socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener, filler = lab.site.open_sockets([here, here])
    with listener, filler:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", SLOW_PORT))
        listener.listen(0)
        listener.settimeout(DEADLINE_S)
        filler.settimeout(DEADLINE_S)
        filler.connect(("127.0.0.1", SLOW_PORT))
        yield listener, filler


def _wait_for_a_dial(lab: Lab) -> None:
    """Until somebody in shop/far has sent a SYN to the slow port (proc(5), /proc/net/tcp: state 02)."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        tables = lab.pod("shop/far").exec("cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.decode()
        rows = [line.split() for line in tables.splitlines()]
        if any(row[2].endswith(f":{SLOW_PORT:04X}") and row[3] == "02" for row in rows if len(row) > 3):
            return
    raise AssertionError("no proxy has dialled the app")


def is_denied_after_a_version_was_refused(lab: Lab) -> bool:
    """Whether a policy goes on denying after the proxies refused a new version of it, which they cannot read."""
    lab.apply(DENY_PORTS)
    assert "shop/nobody" in lab.push_raw("istio.security.Authorization", "shop/nobody", b"\xff\xff\xff", timeout_s=1)
    return lab.pod("shop/client").http("http://shop/far:8080/").outcome in Outcome.REFUSED


def readiness(lab: Lab, node: str) -> int:
    """The status of ``/healthz/ready`` on a node proxy's port 15021; 0: it is closed."""
    with lab.site.open_socket(proxy_netns(node), socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect(("127.0.0.1", 15021))
        except ConnectionRefusedError:
            return 0
        sock.sendall(b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return int(sock.makefile("rb").readline().split()[1])
