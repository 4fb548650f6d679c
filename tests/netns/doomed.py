"""Labs that are to die: tests for a pytest of its own, which ``test_lab_faults`` starts, watches and kills.

``test_stops_at_a_step`` connects to the socket in ``DOOMED_WATCHER``, says when it has come to the step in
``DOOMED_STEP``, and goes on when told to. What its lab then says goes to that socket, and it stays until told again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from leftovers import Belongings

from meshlab.agent.agent import Agent
from meshlab.agent.main import serve
from meshlab.errors import MeshlabError

if TYPE_CHECKING:
    from meshlab.lab import Lab

BETWEEN_ADD_AND_ACK = "between ZDS add and ack"
PROGRAMS = ("control-plane", "agent@node-1", "ztunnel@node-2", "recorder", "echo@node-2")
IPC_KEY = 0x6D65736C
TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: doomed}
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
_MAKE_IPC = f"import ctypes; assert ctypes.CDLL(None).shmget({IPC_KEY}, 4096, 0o1600) >= 0"


class StopsAfterAdd(Agent):
    """Freezes when an add has left for the proxy and its ack was not looked at yet; from outside that is state T."""

    fault = signal.SIGSTOP
    _sent = False

    def _note(self, entry: dict[str, Any]) -> None:
        self._sent |= bool(entry.get("nfds"))
        super()._note(entry)

    def step(self, timeout_s: float | None = None) -> None:
        super().step(timeout_s)
        if self._sent:
            os.kill(os.getpid(), self.fault)


def stops_after_add(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(StopsAfterAdd, config, fds)


class DiesAfterAdd(StopsAfterAdd):
    fault = signal.SIGKILL


def dies_after_add(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    serve(DiesAfterAdd, config, fds)


def test_stops_at_a_step(lab_factory: Callable[..., AbstractContextManager[Lab]]) -> None:
    wanted = os.environ["DOOMED_STEP"]
    settings: dict[str, Any] = {}
    if wanted == BETWEEN_ADD_AND_ACK:
        settings["entries"] = {"agent": f"{__name__}:stops_after_add"}
    with socket.socket(socket.AF_UNIX) as watcher:
        watcher.connect(os.environ["DOOMED_WATCHER"])

        def step(name: str) -> None:
            if name == wanted:
                watcher.sendall(b"here")
                watcher.recv(1)
            elif name == "enrolling" and wanted == BETWEEN_ADD_AND_ACK:
                watcher.sendall(b"here")

        try:
            with lab_factory(TOPOLOGY, step=step, **settings) as lab:
                client = lab.pod("shop/client")
                assert client.exec(sys.executable, "-c", _MAKE_IPC).status == 0
                client.http("http://shop/server:8080/")
        except MeshlabError as error:
            watcher.sendall(f"{type(error).__name__}: {error}".encode())
            watcher.recv(1)
            raise


@pytest.fixture
def nothing_left() -> Iterator[list[Belongings]]:
    """Set up before the lab, so torn down after it: what is in the list then must be gone."""
    watched: list[Belongings] = []
    yield watched
    for belongings in watched:
        with belongings:
            assert belongings.left(5) == []


@pytest.mark.meshlab(TOPOLOGY)
@pytest.mark.parametrize("program", PROGRAMS)
def test_survives(nothing_left: list[Belongings], lab: Lab, program: str) -> None:
    """It claims nothing of the call, so only the lab itself can fail it."""
    nothing_left.append(Belongings.inside(f"pid:[{os.fstat(lab.sandbox.pid_fd).st_ino}]"))
    pid = lab.site.programs.by_name[program].pid
    lab.sandbox.kill(pid)
    lab.sandbox.wait_exit(pid, 5)
    lab.pod("shop/client").http("http://shop/server:8080/", timeout_s=1)
