"""Twenty labs alive at once on one machine: each answers and proves its own call, and the host is as it was."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import pytest
from leftovers import Belongings, bound_sockets, host

if TYPE_CHECKING:
    from meshlab.lab import Lab

LABS = 20
TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: one-of-many}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1}
    shop/server: {node: node-2, ports: [8080]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""


@pytest.mark.meshlab_dataplane
def test_twenty_labs_at_once_each_prove_their_call_and_take_nothing_of_the_host(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    before = host()
    with ExitStack() as watched:
        with ExitStack() as up, ThreadPoolExecutor(4) as pool:
            labs = list(pool.map(lambda _: up.enter_context(lab_factory(TOPOLOGY)), range(LABS)))
            theirs = [watched.enter_context(Belongings.inside(_pid_namespace(lab))) for lab in labs]
            assert list(pool.map(_answers_and_proves, labs)) == [True] * LABS
            _share_nothing(theirs)
            everyone = {os.getpid()}.union(*(belongings.pids for belongings in theirs))
            assert bound_sockets(everyone) == []
            assert host() == before
        assert [belongings.left(0) for belongings in theirs] == [[]] * LABS
    assert host() == before


def _pid_namespace(lab: Lab) -> str:
    return f"pid:[{os.fstat(lab.sandbox.pid_fd).st_ino}]"


def _answers_and_proves(lab: Lab) -> bool:
    with lab.capture() as capture:
        call = lab.pod("shop/client").http("http://server:8080/hello", timeout_s=30)
    capture.prove_encrypted(call)
    return call.status == 200 and call.peer is not None and call.peer.pod == "shop/server"


def _share_nothing(labs: list[Belongings]) -> None:
    """All are alive at this moment, and no namespace of one is another's."""
    kinds = ("net", "mnt", "pid", "ipc")
    of_each = [set().union(*(lab.links(kind) for kind in kinds)) for lab in labs]
    assert all(len(lab.links("net")) >= 8 for lab in labs)
    assert len(set().union(*of_each)) == sum(map(len, of_each))


def test_a_socket_on_a_port_of_the_host_would_have_been_seen() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert bound_sockets([os.getpid()]) == [f"tcp 0100007F:{port:04X}"]
