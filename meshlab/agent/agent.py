"""istio-cni's part on one node: it writes the rules of pods, hands them to the node proxy, and says when they are in.

    lab --enrol{pods} + netns descriptors--> rules written and read back --> add to the newest proxy --> ack
    lab <--{enrolled, pending}-------------- when every pod was acknowledged or refused, or at the deadline

Istio's order and rules hold: rules first, then ZDS; ``add`` goes to the proxy that connected last and ``del`` to all of
them, so that two can overlap in an upgrade; a proxy that comes (again) is told of every pod, and one that goes changes
nothing for the pods. One thread waits for everything in one selector, and only its step writes rules.

Source: https://github.com/istio/istio/blob/master/cni/pkg/nodeagent/ztunnelserver.go
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshlab.agent import rules
from meshlab.agent.connection import Connection
from meshlab.errors import KernelRefusedError, ProtocolError
from meshlab.kernel.channel import Channel, ChannelClosedError, wait_s
from meshlab.plan import nft
from meshlab.plan.redirect import inpod_rules
from meshlab.protocols.zds import Acknowledged, AgentEffect, Refused, ZdsPod


@dataclass(frozen=True, slots=True)
class EnrolledPod:
    """A pod with its rules written, or about to be."""

    zds: ZdsPod
    netns: int
    """Descriptor, open as long as the pod is known: a proxy that comes again needs it."""

    @property
    def key(self) -> str:
        return f"{self.zds.namespace}/{self.zds.name}"


@dataclass(slots=True)
class _Enrolment:
    """An ``enrol`` that has not been answered yet."""

    request: int
    deadline: float
    waiting: set[str]
    enrolled: list[str] = field(default_factory=list)
    pending: dict[str, str] = field(default_factory=dict)


class Agent:
    """One node's agent. ``step`` is one turn of its loop; mutants override the small methods."""

    def __init__(self, config: Mapping[str, Any], channel: Channel) -> None:
        self.node: str = config["node"]
        self._record: bool = config.get("record", False)
        self._started = time.monotonic()
        self._channel = channel
        self._pods: dict[str, EnrolledPod] = {}
        self._connections: list[Connection] = []
        """In the order in which they came."""
        self._accepted = 0
        self._enrolments: list[_Enrolment] = []
        self._listener = _listen(config["uds"])
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._answer)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self, stop: int) -> None:
        """Serve until the control channel ends or ``stop`` is readable."""
        stopped = False

        def end() -> None:
            nonlocal stopped
            stopped = True

        self._selector.register(stop, selectors.EVENT_READ, end)
        with contextlib.suppress(ChannelClosedError):
            while not stopped:
                self.step()
        self.close()

    def step(self, timeout_s: float | None = None) -> None:
        """Wait for something to happen, ``timeout_s`` at most, and do what follows from it.

        Raises:
            ChannelClosedError: the lab is gone.
        """
        self._channel.watch(self._selector)
        for key, _ in self._selector.select(self._patience(timeout_s)):
            if key.fileobj in self._connections or not isinstance(key.fileobj, Connection):
                key.data()
        self._meet_deadlines()

    def close(self) -> None:
        self._record = False  # nobody may be left to read it
        self._selector.close()
        for connection in self._connections:
            connection.close()
        self._listener.close()
        for pod in self._pods.values():
            os.close(pod.netns)
        self._channel.close()

    # --- what a pod gets ---

    def write_rules(self, pod: EnrolledPod) -> None:
        """Redirect the pod's traffic to the node proxy.

        Raises:
            KernelRefusedError, ValueError: it is not as it should be; the pod stays pending.
        """
        rules.write(pod.netns, f"pod:{pod.key}", inpod_rules())

    def read_rules(self, pod: EnrolledPod) -> str:
        return nft.text(rules.read(pod.netns, f"pod:{pod.key}", inpod_rules()))

    # --- what the lab asks ---

    def _answer(self) -> None:
        self._channel.flush()
        if (message := self._channel.take()) is None:
            return
        request, fds = message
        try:
            match request["op"]:
                case "enrol":
                    self._enrol(request, fds)
                case "give_up":
                    for enrolment in list(self._enrolments):
                        self._give_up(enrolment, request["why"])
                    self._channel.send({"id": request["id"]})
                case "remove":
                    self._remove(request["uids"])
                    self._channel.send({"id": request["id"], "removed": request["uids"]})
                case "rules":
                    self._channel.send({"id": request["id"], "text": self.read_rules(self._pods[request["uid"]])})
                case other:
                    raise ValueError(f"no operation {other!r}; there are enrol, give_up, remove, rules")
        except ChannelClosedError:
            raise
        except Exception as error:  # as netd: a request that makes no sense is answered as one that fails
            self._channel.send({"id": request.get("id"), "error": f"{type(error).__name__}: {error}"})

    def _enrol(self, request: dict[str, Any], fds: list[int]) -> None:
        deadline = time.monotonic() + wait_s(request, 10.0)
        enrolment = _Enrolment(request["id"], deadline, set())
        for asked, netns in zip(request["pods"], fds, strict=True):
            pod = EnrolledPod(_zds_pod(asked), netns)
            try:
                self.write_rules(pod)
            except (KernelRefusedError, OSError, ValueError) as error:
                enrolment.pending[pod.zds.uid] = f"rules: {error}"
                os.close(netns)
            else:
                enrolment.waiting.add(pod.zds.uid)
                self._know(pod)
        self._enrolments.append(enrolment)
        if request.get("no_proxy"):
            self._give_up(enrolment, "no node proxy was asked for")
        elif not enrolment.waiting:
            self._settle(enrolment)
        for uid in [uid for uid in self._pods if uid in enrolment.waiting]:
            self._hand_over(uid)

    def _know(self, pod: EnrolledPod) -> None:
        known = self._pods.pop(pod.zds.uid, None)
        if known is not None:
            os.close(known.netns)
        self._pods[pod.zds.uid] = pod

    def _remove(self, uids: Iterable[str]) -> None:
        """Forget pods that end. Their rules stay: live removal would break what they have open."""
        for uid in uids:
            pod = self._pods.pop(uid, None)
            if pod is None:
                continue
            for connection in list(self._connections):
                with self._surviving(connection):
                    self._take(connection.remove(uid, time.monotonic()))
            os.close(pod.netns)

    # --- proxies ---

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._accepted += 1
        pods = [pod.zds for pod in self._pods.values()]
        connection = Connection(sock, self._accepted, pods, lambda uid: self._pods[uid].netns, self._note)
        self._note({"k": "zds-accept", "conn": connection.number})
        self._connections.append(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: Connection) -> None:
        with self._surviving(connection):
            self._take(connection.receive(time.monotonic()))

    def _hand_over(self, uid: str) -> None:
        if not self._connections:
            return  # the next one to come is told of every pod
        newest = self._connections[-1]
        with self._surviving(newest):
            self._take(newest.add(self._pods[uid].zds, time.monotonic()))

    @contextlib.contextmanager
    def _surviving(self, connection: Connection) -> Iterator[None]:
        """A connection that ends or breaks the protocol is dropped, and takes nothing with it."""
        try:
            yield
        except ProtocolError as error:
            self._drop(connection, str(error))

    def _drop(self, connection: Connection, why: str) -> None:
        sys.stderr.write(f"agent of {self.node}: ZDS connection {connection.number} ended: {why}\n")
        sys.stderr.flush()
        was_newest = connection is self._connections[-1]
        self._selector.unregister(connection)
        self._connections.remove(connection)
        connection.close()
        if not was_newest:
            return
        for uid in sorted({uid for enrolment in self._enrolments for uid in enrolment.waiting}):
            self._hand_over(uid)

    def _take(self, effects: Iterable[AgentEffect]) -> None:
        for effect in effects:
            match effect:
                case Acknowledged(uid):
                    self._decided(uid, None)
                case Refused(uid, text):
                    self._decided(uid, f"the node proxy refused it: {text}")
                case _:
                    pass

    # --- answers ---

    def _decided(self, uid: str, why_not: str | None) -> None:
        for enrolment in list(self._enrolments):
            if uid not in enrolment.waiting:
                continue
            enrolment.waiting.remove(uid)
            if why_not is None:
                enrolment.enrolled.append(uid)
            else:
                enrolment.pending[uid] = why_not
            self._settle(enrolment)

    def _settle(self, enrolment: _Enrolment) -> None:
        """Answer, where nothing is waited for any more."""
        if enrolment.waiting:
            return
        self._enrolments.remove(enrolment)
        self._channel.send({"id": enrolment.request, "enrolled": enrolment.enrolled, "pending": enrolment.pending})

    def _give_up(self, enrolment: _Enrolment, why: str) -> None:
        enrolment.pending.update(dict.fromkeys(sorted(enrolment.waiting), why))
        enrolment.waiting.clear()
        self._settle(enrolment)

    def _patience(self, timeout_s: float | None) -> float | None:
        """Until the next deadline, at most ``timeout_s``."""
        dues = [enrolment.deadline for enrolment in self._enrolments]
        dues += [connection.answer_due for connection in self._connections if connection.answer_due is not None]
        waits = [max(0.0, due - time.monotonic()) for due in dues]
        return min(waits + ([] if timeout_s is None else [timeout_s]), default=None)

    def _meet_deadlines(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.answer_due is not None and connection.answer_due <= now:
                self._drop(connection, "it did not answer in time")
        for enrolment in list(self._enrolments):
            if enrolment.deadline <= now:
                self._give_up(enrolment, self._why_waiting())

    def _why_waiting(self) -> str:
        if not self._connections:
            return "no node proxy is connected to the agent"
        return "the node proxy has not acknowledged it"

    def _note(self, entry: dict[str, Any]) -> None:
        if self._record:
            seconds = round(time.monotonic() - self._started, 5)
            self._channel.send({"event": "conversation", "t": seconds, "agent": self.node, **entry})


def _zds_pod(asked: Mapping[str, str]) -> ZdsPod:
    return ZdsPod(
        uid=asked["uid"],
        name=asked["name"],
        namespace=asked["namespace"],
        service_account=asked["service_account"],
    )


def _listen(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # an agent that was killed leaves its socket behind
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    return listener
