"""The program: ``main(config, fds)`` for a lab, whose ``config["env"]`` is a ztunnel's environment.

Order at the start, as the real one's: xDS until both types are there, then ZDS. SIGTERM closes the listeners, lets
open connections go on for a while, and ends with status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshlab.protocols.messages import ADDRESS_TYPE
from meshlab.protocols.xds import Update
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit import status
from meshlab.proxykit.ca_client import CaClient
from meshlab.proxykit.certificates import Certificates
from meshlab.proxykit.config import Config
from meshlab.proxykit.pool import Key, Limits
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.xds_client import XdsClient
from meshlab.version import __version__
from meshlab.ztunnel import admin
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.metrics import PATHS, MeteredLog, Metrics, metrics_page
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.pods import Pods
from meshlab.ztunnel.proxy import PodProxy
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.state import State, Workload
from meshlab.ztunnel.zds_client import ZdsClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The classes that a ztunnel is made of. A variant of it is this with some of them replaced."""

    inbound: type[Inbound] = Inbound
    outbound: type[Outbound] = Outbound
    certificates: type[Certificates] = Certificates
    state: type[State] = State
    xds: type[XdsClient] = XdsClient


class Ztunnel:
    def __init__(self, config: Config, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._tasks = Tasks()
        self._state = parts.state()
        self._ca = CaClient(config)
        rng = random.Random()  # noqa: S311  # endpoints and trace ids, no secrets
        certificates = parts.certificates(self._ca.issue, time.time, asyncio.sleep, rng, self._tasks)
        self._output = Output()
        self._metrics = Metrics()
        log = MeteredLog(self._output.write, self._metrics, log_opened=config.log_opened)
        limits = Limits(max_streams=config.pool_max_streams, idle_s=config.pool_idle_s)
        self._shared = Shared(state=self._state, certificates=certificates, log=log, limits=limits, rng=rng)
        self._pods = Pods(self._proxy)
        self._xds = parts.xds(config, self._apply)
        self._zds = ZdsClient(config.uds, self._pods)

    async def run(self) -> None:
        """Serve until SIGTERM."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        pages = {"/healthz/ready": status.readiness(self._pending)}
        about = {"/config_dump": admin.config_dump(self._state, self._shared.certificates)}
        counted = metrics_page(self._metrics, self._xds, self._pods, __version__)
        servers = [
            await status.serve(None, status.READINESS_PORT, pages),
            await status.serve(None, status.METRICS_PORT, dict.fromkeys(PATHS, counted)),
            await status.serve("localhost", status.ADMIN_PORT, about),
        ]
        self._tasks.spawn(self._xds.run())
        zds = self._tasks.spawn(self._follow_pods())
        stop = self._tasks.spawn(stopped.wait())
        await asyncio.wait({zds, stop}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.close()
        await self._drain(zds)
        await self._tasks.cancel()
        await self._pods.close()
        await self._xds.close()
        await self._ca.close()
        self._output.flush()
        if zds.done() and not zds.cancelled():
            zds.result()

    async def _follow_pods(self) -> None:
        await self._xds.synced.wait()
        await self._zds.run()

    async def _drain(self, zds: asyncio.Task[None]) -> None:
        """End in order: no new pods from the agent, no new connections, and time for those that are open."""
        zds.cancel()
        self._pods.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                await self._pods.finished()

    def _proxy(self, pod: ZdsPod, netns: int) -> PodProxy:
        inbound = self._parts.inbound(self._shared, pod, netns)
        return PodProxy(pod, netns, inbound, self._parts.outbound(self._shared, pod, netns))

    def _apply(self, update: Update) -> Mapping[str, str]:
        refused = self._state.apply(update)
        self._pods.judge_again()
        if update.type_url == ADDRESS_TYPE:
            self._pods.retire_connections(self._is_someone_elses)
            self._shared.certificates.keep(workload.identity for workload in self._local_workloads())
        return refused

    def _is_someone_elses(self, key: Key) -> bool:
        """The address of a pooled connection is by now one of a workload with another identity.

        Where nobody has the address any more, or the same identity has it, the connection stays: what it carries goes
        on, and its end comes from the peer.
        """
        there = self._state.workload_at(key.destination.address)
        return there is not None and str(there.identity) not in key.peers

    def _local_workloads(self) -> list[Workload]:
        """Those whose certificates are had ahead of their first use: this node's, and those of the pods served here."""
        node = self._config.node_name
        here = [w for w in self._state.workloads.values() if w.hbone and node and w.node == node]
        served = [self._state.workload_of(pod) for pod in self._pods.served]
        return here + [workload for workload in served if workload is not None]

    def _pending(self) -> list[str]:
        waiting = [] if self._xds.synced.is_set() else ["state manager"]
        return waiting if self._zds.synced and not self._pods.failing else [*waiting, "workload proxy manager"]


class Output:
    """stdout, written once a turn of the loop: each write is a system call, and wakes whoever reads it."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def write(self, line: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        sys.stdout.write("".join(self._lines))
        sys.stdout.flush()
        self._lines.clear()


def run(
    config: Mapping[str, Any], fds: Mapping[str, int], parts: Parts | None = None, program: type[Ztunnel] = Ztunnel
) -> None:
    """A ztunnel of these parts, from its environment to SIGTERM.

    ``fds["keylog"]``, where there is one, is a file for its sessions' secrets, as SSLKEYLOGFILE in ``env`` would be.
    """
    keylog = {"SSLKEYLOGFILE": f"/proc/self/fd/{fds['keylog']}"} if "keylog" in fds else {}

    async def serve() -> None:
        await program(Config.from_env({**config["env"], **keylog}), parts or Parts()).run()

    asyncio.run(serve())


def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """The reference ztunnel."""
    run(config, fds)
