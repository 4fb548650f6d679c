"""Short histories of a mesh that changes: what each does, and whether what follows is as the manifests say.

Each takes a lab of ``LAB``, right or broken on purpose, and uses nothing but the public interface.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from meshlab.errors import DeadlineError, ProofFailedError

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.calls.connections import OpenConnection

TICKER = """
import contextlib, socket, threading, time
def tick(connection):
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass
        while True:
            connection.sendall(b".")
            time.sleep(0.02)
server = socket.create_server(("", 7000))
while True:
    threading.Thread(target=tick, args=(server.accept()[0],), daemon=True).start()
"""
"""A program that goes on talking to a client that has sent its FIN."""
LAB = f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: histories}}
spec:
  nodes: [node-1, node-2]
  images: {{"*": {{}}}}
  pods:
    shop/client: {{node: node-1, serviceAccount: client}}
    shop/near: {{node: node-1, ports: [8080], serviceAccount: server, labels: {{app: server}}}}
    shop/server: {{node: node-2, ports: [8080], serviceAccount: server, labels: {{app: server}}}}
    shop/ticker: {{node: node-2, ports: [7000], run: {json.dumps(["python3", "-c", TICKER])}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: shop}}
spec: {{selector: {{app: server}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""
DENY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""
DENY_AT_SERVERS = DENY_CLIENT.replace("spec:", "spec:\n  selector: {matchLabels: {app: server}}")
ALLOW_CLIENT = DENY_CLIENT.replace("DENY", "ALLOW").replace("no-client", "only-client")
NEAR = "{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: shop}}"
SERVER = "{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop}}"
SERVER_URL = "http://shop%2Fserver:8080/"
NEAR_URL = "http://shop%2Fnear:8080/"
CUT_WITHIN_S = 1.0
"""A connection that is open so long after a change was in effect is not cut by it."""
CALLS_TO_REACH_BOTH = 16
"""Of so many calls to a service of two endpoints all choose the same one in 1 of 32,768 histories."""


def _pod(name: str, node: str, account: str, address: str = "") -> str:
    status = f"status: {{podIPs: [{{ip: {address}}}]}}" if address else ""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  containers: [{{name: c, image: any, ports: [{{containerPort: 8080}}]}}]
{status}
"""


def is_cut(line: OpenConnection) -> bool:
    """Whether a connection on which nothing is said ends."""
    try:
        line.wait_closed(CUT_WITHIN_S)
    except DeadlineError:
        return False
    return True


def an_address_is_that_of_the_pod_that_has_it_now(lab: Lab) -> bool:
    """Another pod, of another account, gets the address of one that was deleted."""
    address = lab.pod("shop/server").ipv4
    lab.delete(SERVER)
    lab.apply(_pod("other", "node-2", "other", str(address)))
    return lab.pod("shop/client").http(f"http://{address}:8080/").answered


def an_identity_is_that_of_the_pod_that_has_the_address_now(lab: Lab) -> bool:
    """A pod of the same name comes again at its address, under another account."""
    address = lab.pod("shop/server").ipv4
    lab.replace(_pod("server", "node-2", "another", str(address)))
    return lab.pod("shop/client").http(f"http://{address}:8080/").answered


def what_a_control_plane_that_comes_back_does_not_serve_is_gone(lab: Lab) -> bool:
    before = lab.mesh
    lab.apply(DENY_CLIENT)
    lab.restart_control_plane(before)
    return lab.pod("shop/client").http(SERVER_URL).answered


def what_is_deleted_after_the_control_plane_came_back_is_gone(lab: Lab) -> bool:
    lab.apply(DENY_CLIENT)
    lab.instance("control-plane").restart()
    lab.delete(DENY_CLIENT)
    return lab.pod("shop/client").http(SERVER_URL).answered


def a_policy_outlives_a_control_plane(lab: Lab) -> bool:
    lab.apply(DENY_CLIENT)
    lab.instance("control-plane").restart()
    return lab.pod("shop/client").http(SERVER_URL).refused


def a_policy_cuts_a_connection_whose_client_has_sent_its_fin(lab: Lab) -> bool:
    line = lab.pod("shop/client").connect("shop/ticker:7000")
    line.half_close()
    assert line.receive(1) == b"."
    lab.apply(DENY_CLIENT)
    return is_cut(line)


def a_pod_that_comes_again_shows_the_identity_that_it_has_now(lab: Lab) -> bool:
    client = lab.pod("shop/client")
    assert client.http(SERVER_URL).answered
    lab.replace(_pod("client", "node-1", "another"))
    lab.apply(ALLOW_CLIENT)
    return lab.pod("shop/client").http(SERVER_URL).refused


def no_call_goes_to_an_endpoint_that_was_deleted(lab: Lab) -> bool:
    lab.delete(NEAR)
    planned = lab.pod("shop/client").plan_http("http://server/", timeout_s=2)
    return all(call.answered for call in lab.calls([planned] * CALLS_TO_REACH_BOTH))


def a_policy_outlives_the_refusal_of_another(lab: Lab) -> bool:
    lab.apply(DENY_CLIENT)
    assert lab.push_raw("istio.security.Authorization", "shop/mangled", b"\xff\xff\xff")
    return lab.pod("shop/client").http(SERVER_URL).refused


def calls_are_encrypted_after_the_peers_ztunnel_was_restarted(lab: Lab) -> bool:
    client = lab.pod("shop/client")
    assert client.http(SERVER_URL).answered
    lab.instance("ztunnel@node-2").restart()
    with lab.capture() as capture:
        call = client.http(SERVER_URL)
    assert call.answered
    try:
        capture.prove_encrypted(call)
    except ProofFailedError:
        return False
    return True


def a_client_has_its_identity_after_the_peers_ztunnel_was_restarted(lab: Lab) -> bool:
    lab.apply(ALLOW_CLIENT)
    client = lab.pod("shop/client")
    assert client.http(SERVER_URL).answered
    lab.instance("ztunnel@node-2").restart()
    return client.http(SERVER_URL).answered


def a_released_pod_has_no_identity(lab: Lab) -> bool:
    lab.apply(ALLOW_CLIENT)
    client = lab.pod("shop/client")
    assert client.http(SERVER_URL).answered
    client.release()
    return client.http(SERVER_URL).refused


def an_agent_that_comes_back_knows_every_pod(lab: Lab) -> bool:
    lab.instance("agent@node-1").restart()
    client, near = lab.pods("shop/client", "shop/near")
    return client.http(NEAR_URL).answered and near.http(SERVER_URL).answered


def a_new_policy_cuts_an_open_connection(lab: Lab) -> bool:
    line = lab.pod("shop/client").connect("shop/server:8080")
    assert line.ask()
    lab.apply(DENY_CLIENT)
    return is_cut(line)


def an_open_connection_goes_on_while_its_ztunnel_drains(lab: Lab) -> bool:
    line = lab.pod("shop/client").connect("shop/server:8080")
    assert line.ask()
    with ThreadPoolExecutor() as thread:
        stopping = thread.submit(lab.instance("ztunnel@node-1").stop)
        goes_on = not is_cut(line) and bool(line.ask())
        line.close()
        stopping.result()
    return goes_on
